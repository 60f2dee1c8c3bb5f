# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a training run. Needs matplotlib (`pip install "trl-cppo[digits]"`)."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..facts import CardExample
from ..held_out import Answers, telling_examples, wilson_interval
from .example_rows import ROW_HEIGHT, draw_examples

# Panels from left to right with their lines: metric, what it is called there, colour of Okabe and Ito's palette, which any colour
# vision tells apart.
_PANELS = [
    ("held-out accuracy", [("held_out_accuracy", "", "#009E73")]),
    ("reward in training", [("reward", "", "#0072B2")]),
    ("perception tokens", [
        ("cpl/contrast_accuracy", "with d⁺ < d⁻", "#56B4E9"), ("cpl/perception_ratio", "of all tokens", "#CC79A7"),
    ]),
    ("Contrastive Perception Loss", [("cpl/loss", "", "#D55E00")]),
]  # fmt: skip
_METRICS = [name for _, lines in _PANELS for name, _, _ in lines]
_SMOOTHING = 10  # logged values in the running mean
# Inches of the picture and of a panel: a page shows it at half its 1,500 pixels.
_WIDTH, _HEIGHT, _DPI = 10.0, 2.6, 150

Series = list[list[float]]


@dataclass(frozen=True)
class Shown:
    """
    What a picture shows besides its series.

    Args:
        title (`str`): heading of the picture.
        machine (`str`): what the numbers were measured on; they are others elsewhere.
        questions (`int`, *optional*): that the held-out accuracy is of, for its interval.
        examples (`list[CardExample]`): what `answers` answer.
        answers (`list[Answers]`): before and after.
    """

    title: str
    machine: str
    questions: int | None
    examples: list[CardExample]
    answers: list[Answers]


def metric_history(log_history: list[dict[str, Any]]) -> dict[str, Series]:
    """
    The `[step, value]` series of the plotted metrics.

    Args:
        log_history (`list[dict[str, Any]]`): `trainer.state.log_history`.

    Returns:
        `dict[str, list[list[float]]]`: a series for each metric that was logged at least once.
    """
    history = {
        name: [[entry["step"], entry[name]] for entry in log_history if entry.get(name) is not None]
        for name in _METRICS
    }
    return {name: series for name, series in history.items() if series}


def plot_training(history: dict[str, Series], path: str | Path, shown: Shown) -> None:
    """
    Draw the metrics over the optimizer steps, below them answers before and after, and save it.

    Args:
        history (`dict[str, list[list[float]]]`): what [`metric_history`] returns, with at least one metric.
        path (`str` or `Path`): the image file to write; its suffix names the format.
        shown ([`Shown`]): title, machine, examples.

    Raises:
        `ValueError`: if there is nothing to draw.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    if not history:
        raise ValueError("No metric was logged, so there is nothing to plot. Lower logging_steps or train longer.")
    panels = panels_of(history)
    places, rule = (
        telling_examples(shown.answers, len(shown.examples)) if shown.answers and shown.examples else ([], "")
    )
    # One or two panels alone need no whole width.
    width = _WIDTH if places or len(panels) > 2 else _WIDTH / 2 * len(panels)
    heights = [_HEIGHT] + [ROW_HEIGHT * (len(places) + 0.75)] * bool(places)
    figure = Figure(figsize=(width, sum(heights) + 0.7), layout="constrained")
    figure.suptitle(textwrap.fill(shown.title, int(9 * width)), fontsize=12)
    measured = f"Measured on {shown.machine}. Another machine or version rounds, and so samples, otherwise."
    figure.supxlabel(textwrap.fill(measured, int(14 * width)), fontsize=7.5, color="0.35")
    grid = figure.add_gridspec(len(heights), len(panels), height_ratios=heights)
    shares = None  # the first panel from 0 to 1, whose axis the others share
    for column, (title, lines) in enumerate(panels):
        are_shares = all(0 <= value <= 1 for name, _, _ in lines for _, value in history[name])
        axes = figure.add_subplot(grid[0, column], sharey=shares if are_shares else None)
        if are_shares:
            axes.set_ylim(-0.02, 1.02)
            axes.tick_params(labelleft=shares is None)
            shares = shares or axes
        _draw_panel(axes, title, lines, history, shown.questions)
    if places:
        axes = figure.add_subplot(grid[1, :])
        draw_examples(axes, [shown.examples[place] for place in places], shown.answers, places, rule)
    figure.savefig(path, dpi=_DPI)


def panels_of(history: dict[str, Series]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The panels, each with those of its lines that were logged; none without one."""
    kept = [(title, [line for line in lines if line[0] in history]) for title, lines in _PANELS]
    return [(title, lines) for title, lines in kept if lines]


def _draw_panel(axes: Any, title: str, lines: list, history: dict[str, Series], questions: int | None) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    for name, label, color in lines:
        steps, values = zip(*history[name], strict=True)
        if name == "held_out_accuracy":
            _draw_measured(axes, steps, values, color, questions)
        elif len(values) <= 2 * _SMOOTHING:
            axes.plot(steps, values, color=color, marker="o", markersize=4, label=label)
        else:
            axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
            smooth = [sum(window) / len(window) for window in _trailing_windows(values)]
            axes.plot(steps, smooth, color=color, linewidth=2, label=label or f"mean of the last {_SMOOTHING}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _draw_measured(axes: Any, steps: tuple, values: tuple, color: str, questions: int | None) -> None:
    """Each value is of many questions already: no running mean, but its interval, and the first and the last in figures."""
    axes.plot(steps, values, color=color, marker="o", markersize=4)
    for place in {0, len(values) - 1}:
        below = 0.15 < values[place]
        axes.annotate(
            f"{values[place]:.2f}", (steps[place], values[place]), (-2 if place else 6, -7 if below else 7), color=color, weight="bold",
            textcoords="offset points", fontsize=11, ha="right" if place else "left", va="top" if below else "bottom",
        )  # fmt: skip
    if questions:
        low, high = zip(*(wilson_interval(value, questions) for value in values), strict=True)
        label = f"95 % interval,\n{questions} questions"
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0, label=label)
        axes.legend(fontsize=8, frameon=False, loc="lower right")


def _trailing_windows(values: tuple[float, ...]) -> list[tuple[float, ...]]:
    return [values[max(0, end - _SMOOTHING) : end] for end in range(1, len(values) + 1)]

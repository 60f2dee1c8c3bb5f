# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a training run. Needs matplotlib (`pip install "trl-cppo[digits]"`)."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .facts import CardExample
from .held_out import Answer, wilson_interval

# Okabe and Ito's palette: told apart with any colour vision. Shares stand in a row of their own, on one axis from 0 to 1.
_SHARES = [
    ("held_out_accuracy", "held-out accuracy", "#009E73"),
    ("cpl/contrast_accuracy", "contrast accuracy (d⁺ < d⁻)", "#56B4E9"),
    ("cpl/perception_ratio", "perception tokens / completion tokens", "#CC79A7"),
]
_OTHERS = [
    ("reward", "reward", "#0072B2"),
    ("cpl/loss", "Contrastive Perception Loss", "#D55E00"),
]
_SMOOTHING = 10  # logged values in the running mean
_SIZE = 4.2, 3.1  # inches of a panel, where three stand in a row

Series = list[list[float]]


@dataclass(frozen=True)
class Shown:
    """
    What a picture shows besides its series.

    Args:
        title (`str`): heading of the picture.
        machine (`str`): what the numbers were measured on; they are others elsewhere.
        questions (`int`, *optional*): that the held-out accuracy is of, for its interval.
        example ([`CardExample`], *optional*): what `answers` answer.
        answers (`list[Answer]`): before and after.
    """

    title: str
    machine: str
    questions: int | None
    example: CardExample | None
    answers: list[Answer]


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
        for name, _, _ in _OTHERS + _SHARES
    }
    return {name: series for name, series in history.items() if series}


def plot_training(history: dict[str, Series], path: str | Path, shown: Shown) -> None:
    """
    Draw one panel a metric over the optimizer steps, and one of the answers before and after, and save it.

    Args:
        history (`dict[str, list[list[float]]]`): what [`metric_history`] returns, with at least one metric.
        path (`str` or `Path`): the image file to write; its suffix names the format.
        shown ([`Shown`]): title, machine, example.

    Raises:
        `ValueError`: if there is nothing to draw.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    if not history:
        raise ValueError("No metric was logged, so there is nothing to plot. Lower logging_steps or train longer.")
    rows = panel_rows(history, with_answers=bool(shown.answers and shown.example))
    width, height = _SIZE
    figure = Figure(figsize=(width * max(map(len, rows)), height * len(rows) + 0.3), layout="constrained")
    figure.suptitle(shown.title)
    figure.supxlabel(
        f"Measured on {shown.machine}. Another machine or version rounds, and so samples, otherwise.", fontsize=8
    )
    grid = figure.add_gridspec(len(rows), 6)
    for place, panels in enumerate(rows):
        span = 6 // len(panels)
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(grid[place, column * span : (column + 1) * span])
            if panel is None:
                _draw_answers(axes, shown.example, shown.answers)
            else:
                _draw_panel(axes, history[panel[0]], *panel, shown.questions)
    figure.savefig(path, dpi=120)


def panel_rows(history: dict[str, Series], with_answers: bool) -> list[list[tuple[str, str, str] | None]]:
    """Which panels stand in which row, of one to three each that fill its width; `None` is that of the answers."""
    shares = [panel for panel in _SHARES if panel[0] in history]
    others = [panel for panel in _OTHERS if panel[0] in history] + [None] * with_answers
    rows = [others, shares] if len(shares + others) > 3 else [others + shares]
    return [row for row in rows if row]


def _draw_panel(axes: Any, series: Series, name: str, label: str, color: str, questions: int | None) -> None:
    steps, values = zip(*series, strict=True)
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if name in {share for share, _, _ in _SHARES}:
        axes.set_ylim(-0.02, 1.02)
    if name == "held_out_accuracy":
        _draw_measured(axes, steps, values, color, questions)
    elif len(values) <= 2 * _SMOOTHING:
        axes.plot(steps, values, color=color, marker="o", markersize=4)
    else:
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        smooth = [sum(window) / len(window) for window in _trailing_windows(values)]
        axes.plot(steps, smooth, color=color, linewidth=2, label=f"mean of the last {_SMOOTHING}")
        axes.legend(fontsize=8, frameon=False)


def _draw_measured(axes: Any, steps: tuple, values: tuple, color: str, questions: int | None) -> None:
    """Each value is of many questions already: no running mean, but its interval."""
    axes.plot(steps, values, color=color, marker="o", markersize=4)
    if questions:
        low, high = zip(*(wilson_interval(value, questions) for value in values), strict=True)
        label = f"95 % interval, {questions} questions"
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0, label=label)
        axes.legend(fontsize=8, frameon=False, loc="lower right")


def _draw_answers(axes: Any, example: CardExample, answers: list[Answer]) -> None:
    """The image, and what was answered. All text as it is: a model may write what would be mathematics or markup."""
    axes.set_title("one held-out example", fontsize=10)
    axes.axis("off")
    picture = axes.inset_axes((0.0, 0.2, 0.3, 0.6))
    picture.imshow(example.image, cmap="gray", interpolation="nearest")
    picture.axis("off")
    lines = [_short(f"{example.question} Right is {example.solution}.")]
    for answer in answers:
        lines += [f"{answer.when}, {'right' if answer.is_right else 'wrong'}:", _short(answer.text)]
    axes.text(
        0.33, 0.5, "\n".join(lines), transform=axes.transAxes, va="center", fontsize=7.5, linespacing=1.5, parse_math=False,
    )  # fmt: skip


def _short(text: str) -> str:
    """At most four lines of a text, of which the end counts most; a closing mark ends its line."""
    text = "".join(c if c.isprintable() else " " for c in text).replace("</think>", "</think>\n")
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 42)] or ["(nothing)"]
    return "\n".join(lines if len(lines) <= 4 else [*lines[:2], "…", lines[-1]])


def _trailing_windows(values: tuple[float, ...]) -> list[tuple[float, ...]]:
    return [values[max(0, end - _SMOOTHING) : end] for end in range(1, len(values) + 1)]

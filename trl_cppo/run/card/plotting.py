# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a training run. Needs matplotlib (`pip install "trl-cppo[digits]"`)."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .facts import CardExample
from .held_out import Answers, wilson_interval

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
_WIDTH = 48  # characters of a line of text in a panel
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
        examples (`list[CardExample]`): what `answers` answer, three at most.
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
    rows = panel_rows(history, with_answers=bool(shown.answers and shown.examples))
    width, height = _SIZE
    size = width * max(map(len, rows)), height * len(rows) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.fill(shown.title, int(9 * size[0])))
    measured = f"Measured on {shown.machine}. Another machine or version rounds, and so samples, otherwise."
    figure.supxlabel(textwrap.fill(measured, int(14 * size[0])), fontsize=8)
    grid = figure.add_gridspec(len(rows), 6)
    for place, panels in enumerate(rows):
        span = 6 // len(panels)
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(grid[place, column * span : (column + 1) * span])
            if panel is None:
                _draw_answers(axes, shown.examples, shown.answers)
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


def _draw_answers(axes: Any, examples: list[CardExample], answers: list[Answers]) -> None:
    """The images, and what was answered. All text as it is: a model may write what would be mathematics or markup."""
    axes.set_title("held-out examples, the first ones", fontsize=10)
    axes.axis("off")
    height = 1 / len(examples)
    for place, example in enumerate(examples):
        bottom = 1 - (place + 1) * height
        picture = axes.inset_axes((0.0, bottom + 0.02, 0.24, height - 0.04))
        picture.imshow(example.image, cmap="gray", interpolation="nearest")
        picture.axis("off")
        lines = [_short(f"{example.question} Right is {example.solution}.", 1)]
        for moment in answers:
            if place < len(moment.texts):
                judged = "right" if moment.are_right[place] else "wrong"
                lines.append(_short(f"{moment.when}, {judged}: {moment.texts[place]}", 2))
        axes.text(
            0.27, bottom + height / 2, "\n".join(lines), transform=axes.transAxes, va="center", fontsize=7, linespacing=1.3,
            parse_math=False,
        )  # fmt: skip


def _short(text: str, most: int) -> str:
    """A text in so many lines; of a longer one begin and end."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if len(text) > most * _WIDTH:
        text = f"{text[: most * _WIDTH - 16]} … {text[-12:]}"
    return "\n".join(text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH))


def _trailing_windows(values: tuple[float, ...]) -> list[tuple[float, ...]]:
    return [values[max(0, end - _SMOOTHING) : end] for end in range(1, len(values) + 1)]

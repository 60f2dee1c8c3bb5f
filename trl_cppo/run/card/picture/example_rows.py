# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The lower part of a training's picture: images, what was answered before and after, and where the model looked."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from ..facts import CardExample
from ..held_out import Answers

ROW_HEIGHT = 0.62  # inches
_SIZE = 9.5  # points of an answer
_ADVANCE = 0.602 * _SIZE  # points of a character of DejaVu Sans Mono
_COLUMNS = (0.265, 0.645)  # where answers begin, as shares of the width
_LINE, _LINES = 43, 2  # characters of a line of an answer, lines
_SIGNS = {True: ("✓", "#009E73"), False: ("✗", "#D55E00")}
_MARK = "#F0E442"
_STRONG = 1.0  # nats of a mark of full colour

Character = tuple[str, float | None]  # with the nats of the perception token that it belongs to


def draw_examples(
    axes: Any, examples: list[CardExample], answers: list[Answers], places: list[int], rule: str
) -> None:
    """
    A row an example. All text as it is: a model may write what would be mathematics or markup.

    Args:
        axes (`matplotlib.axes.Axes`): of the whole width, [`ROW_HEIGHT`] inches for each row and one more.
        examples (`list[CardExample]`): to show.
        answers (`list[Answers]`): before and after.
        places (`list[int]`): of each example among the answers.
        rule (`str`): how they were chosen.
    """
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(-len(examples), 0.75))
    key = f"\nMarked: perception tokens, in full colour where the entropy rises by {_STRONG:g} nat or more without the image's information"
    axes.set_title(rule + key * any(moment.perception for moment in answers), fontsize=9, loc="left")
    for start, moment in zip(_COLUMNS, answers, strict=False):
        axes.text(start, 0.3, moment.when, fontsize=10, fontweight="bold", va="center")
    axes.text(0, 0.3, "image, right answer", fontsize=10, fontweight="bold", va="center")
    for row, (example, place) in enumerate(zip(examples, places, strict=True)):
        picture = axes.inset_axes((0.0, -row - 0.92, 0.12, 0.84), transform=axes.transData)
        picture.imshow(example.image, cmap="gray", interpolation="nearest")
        picture.axis("off")
        picture.set_anchor("W")
        question = _plain(f"{example.question} {example.solution or ''}")
        axes.text(0.135, -row - 0.5, question[:12], fontsize=_SIZE, va="center", parse_math=False)
        for start, moment in zip(_COLUMNS, answers, strict=False):
            sign, color = _SIGNS[moment.are_right[place]]
            axes.text(start - 0.027, -row - 0.5, sign, color=color, fontsize=17, fontweight="bold", va="center")
            marks = moment.perception[place] if moment.perception else []
            _draw_answer(axes, start, -row - 0.5, characters(moment.texts[place], marks))


def characters(text: str, marks: list) -> list[Character]:
    """The characters that a picture has room for, of a longer text those at its begin and its end, with their marks."""
    nats = [None] * len(text)
    for start, end, shift in marks:
        nats[start:end] = [shift] * (end - start)
    whole = list(zip(_plain(text), nats, strict=True))
    room = _LINE * _LINES
    return whole if len(whole) <= room else [*whole[: room - 15], *((c, None) for c in " … "), *whole[-12:]]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _draw_answer(axes: Any, x: float, y: float, shown: list[Character]) -> None:
    lines = [shown[start : start + _LINE] for start in range(0, len(shown), _LINE)]
    for number, line in enumerate(lines):
        height = ((len(lines) - 1) / 2 - number) * 1.45 * _SIZE
        for start, text, nats in _runs(line):
            _draw_run(axes, x, y, (start * _ADVANCE, height), text, nats)


def _runs(line: list[Character]) -> Iterator[tuple[int, str, float | None]]:
    """Parts of a line that are marked alike, with the place where each begins."""
    start = 0
    for nats, part in groupby(line, key=lambda character: character[1]):
        text = "".join(letter for letter, _ in part)
        yield start, text, nats
        start += len(text)


def _draw_run(axes: Any, x: float, y: float, offset: tuple[float, float], text: str, nats: float | None) -> None:
    alpha = 0 if nats is None else 0.2 + 0.8 * min(1, max(0, nats) / _STRONG)
    box = {"boxstyle": "square,pad=0.12", "facecolor": _MARK, "alpha": alpha, "linewidth": 0}
    axes.annotate(
        text, (x, y), offset, textcoords="offset points", family="monospace", fontsize=_SIZE, va="center", parse_math=False,
        bbox=None if nats is None else box,
    )  # fmt: skip

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rows of a report, and which of them opens it."""

import math
from dataclasses import dataclass

from ..evaluate.results.summary import RIGHT
from ..rollouts import Rollout, TokenScores
from .summary import NOTICEABLE

SHOWN_TOKENS = 60  # of the row that opens the page


@dataclass
class Row:
    """One row of the report: a data set row, and the same completion as each model sees it."""

    number: int  # place in the data set
    prompt: str
    solution: str | None
    rollouts: list[Rollout]  # one a model
    rewards: dict[str, float]
    advantage: float | None = None

    @property
    def graded_by(self) -> str | None:
        """The reward that says whether the row is right: the first for accuracy, or the first of all."""
        named = [name for name in self.rewards if "accuracy" in name]
        return next(iter([*named, *self.rewards]), None)

    @property
    def is_right(self) -> bool | None:
        """By the rule of `trl-cppo evaluate`; `None` without a reward."""
        return None if self.graded_by is None else self.rewards[self.graded_by] >= RIGHT


@dataclass
class Settings:
    """What the head of the page says."""

    models: list[str]
    dataset: str
    split: str
    details: dict[str, str]


@dataclass
class Opening:
    """The row that is explained at the top of the page, as the first model sees it."""

    place: int  # among the rows of the report
    reason: str  # "the first row that ..."
    strongest: int | None  # of its tokens, the perception token of the largest entropy shift
    noticeable: int  # tokens with ΔH > `NOTICEABLE`
    selected: int  # perception tokens


def choose_opening(rows: list[Row]) -> Opening | None:
    """
    The first row with the merits that explain CPPO best ([`_merits`]), or else the first with the weightiest of them.

    Not the one with the strongest shades: the page should open with a row as they are. `None` if no row has an image.
    """
    viewed = [place for place, row in enumerate(rows) if row.rollouts[0].scores.has_views]
    if not viewed:
        return None
    place = max(viewed, key=lambda place: [found for found, _ in _merits(rows[place])])  # the first of equals
    merits = [name for found, name in _merits(rows[place]) if found]
    scores = rows[place].rollouts[0].scores
    return Opening(
        place, f"the first row that {' and '.join(merits) or 'has an image'}", _strongest(scores),
        sum(shift > NOTICEABLE for shift in scores.shifts), sum(scores.selected),
    )  # fmt: skip


def _strongest(scores: TokenScores) -> int | None:
    """The perception token of the largest entropy shift."""
    shifts = scores.shifts
    marked = [at for at, chosen in enumerate(scores.selected) if chosen and math.isfinite(shifts[at])]
    return max(marked, key=shifts.__getitem__, default=None)


def _merits(row: Row) -> list[tuple[bool, str]]:
    """What speaks for a row, the weightiest first."""
    scores = row.rollouts[0].scores
    at = _strongest(scores)
    return [
        (at is not None, "has perception tokens"),
        (bool(row.is_right), "is right"),
        (row.advantage is not None and row.advantage > 0, "has a positive advantage"),
        (
            at is not None and scores.divergences_preserved[at] < scores.divergences_removed[at],
            "has d⁺ below d⁻ at the strongest of them",
        ),
    ]


def shown_part(length: int, place: int | None) -> range:
    """The tokens of a completion that the opening shows: `SHOWN_TOKENS` of them, this one included."""
    start = max(0, min((place or 0) - SHOWN_TOKENS // 2, length - SHOWN_TOKENS))
    return range(start, min(length, start + SHOWN_TOKENS))

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a log says of held-out questions, of which digits.HeldOutAccuracy writes: how sure an accuracy is, and some answers."""

import math
from dataclasses import dataclass
from typing import Any

_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Answers:
    """What the model said to the held-out examples, when ("before training" or "after step 120"), and which of it is right."""

    when: str
    texts: list[str]
    are_right: list[bool]


def first_and_last_answers(history: list[dict[str, Any]]) -> list[Answers]:
    """Those before training and the last ones, as far as they are in a log."""
    found = [entry for entry in history if entry.get("held_out_answers")]
    kept = [found[0], found[-1]] if len(found) > 1 else found
    return [
        Answers(
            f"after step {entry['step']}" if entry["step"] else "before training",
            entry["held_out_answers"],
            entry["held_out_answers_are_right"],
        )
        for entry in kept
    ]


def questions_of(history: list[dict[str, Any]]) -> int | None:
    """How many questions the last held-out accuracy is of, if one was measured and the log says it."""
    return next((entry.get("held_out_questions") for entry in reversed(history) if "held_out_accuracy" in entry), None)


def wilson_interval(share: float, questions: int) -> list[float]:
    """
    Wilson's 95 % interval of a share: that of the questions alone, not of other seeds.

    Args:
        share (`float`): right answers of all, from 0 to 1.
        questions (`int`): how many were asked, 1 or more.

    Returns:
        `list[float]`: its lower and its upper end, between 0 and 1.
    """
    spread = _Z**2 / questions
    centre = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / questions + spread / (4 * questions))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return [max(0.0, min(share, low)), min(1.0, max(share, high))]  # an end at 0 or 1 is not missed by rounding

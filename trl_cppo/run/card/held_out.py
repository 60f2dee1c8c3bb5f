# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a log says of held-out questions, of which digits.HeldOutAccuracy writes: how sure an accuracy is, and some answers."""

import math
from dataclasses import dataclass, field
from typing import Any

_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


_SHOWN = {1: "the first is shown", 2: "the first two are shown", 3: "the first three are shown"}


@dataclass(frozen=True)
class Answers:
    """
    What the model said to the held-out examples.

    Args:
        when (`str`): "before training" or "after step 120".
        texts (`list[str]`): one an example.
        are_right (`list[bool]`): which of them are.
        perception (`list[list[tuple[int, int, float]]]`): of each text the perception tokens, as far as they are known: first
            character, the one after the last, nats by which the entropy rises.
    """

    when: str
    texts: list[str]
    are_right: list[bool]
    perception: list[list[tuple[int, int, float]]] = field(default_factory=list)


def first_and_last_answers(history: list[dict[str, Any]]) -> list[Answers]:
    """Those before training and the last ones, as far as they are in a log."""
    found = [entry for entry in history if entry.get("held_out_answers")]
    kept = [found[0], found[-1]] if len(found) > 1 else found
    return [
        Answers(
            f"after step {entry['step']}" if entry["step"] else "before training",
            entry["held_out_answers"],
            entry["held_out_answers_are_right"],
            entry.get("held_out_perception") or [],
        )
        for entry in kept
    ]


def telling_examples(answers: list[Answers], count: int) -> tuple[list[int], str]:
    """
    Which of the held-out examples to show: the first two that training mended and the first that is wrong after it; where there
    are fewer of these, more of the others.

    Args:
        answers (`list[Answers]`): the first and the last, or one of both.
        count (`int`): how many examples there are, the first of which the answers are to.

    Returns:
        `tuple[list[int], str]`: their places, three at most, and how many there are of each kind, with that rule.
    """
    before, after = answers[0].are_right, answers[-1].are_right
    asked = range(min(count, len(before), len(after)))
    kinds = {
        "wrong before and right after": [place for place in asked if after[place] and not before[place]],
        "wrong after": [place for place in asked if not after[place]],
        "right both times": [place for place in asked if after[place] and before[place]],
    }
    mended, wrong, right = kinds.values()
    shown = [*mended[:2], *wrong[:1], *mended[2:], *wrong[1:], *right][:3]
    told = []
    for kind, places in kinds.items():
        number = len({*shown} & {*places})
        told += [f"{len(places)} {kind}" + (f" ({_SHOWN[number]})" if number else "")] if places else []
    return shown, f"Of the first {len(asked)} held-out examples: {', '.join(told)}"


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

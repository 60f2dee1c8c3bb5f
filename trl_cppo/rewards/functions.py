# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rewards that CPPO's authors use and TRL does not ship. What a command line may call them: `commands/loading.py`."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from .client import GRADER, Overrun
from .grading import answers_match, check_no_reasoning, last_boxed

logger = logging.getLogger(__name__)


def final_text(completion: str | list[dict[str, Any]]) -> str:
    """What the model said last: the text of a completion's last assistant message."""
    if isinstance(completion, str):
        return completion
    content = next((message["content"] for message in reversed(completion) if message["role"] == "assistant"), None)
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def boxed_accuracy_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    solution: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    answer_tolerance: list[float | None] | None = None,
    **kwargs: Any,
) -> list[float]:
    r"""
    1.0 where the last `\boxed{…}` of a completion is the solution, else 0.0.

    The rules are those of [`~trl_cppo.rewards.grading.answers_match`]. Mathematics is compared by math-verify in a process of its
    own, with a limit of time and of memory for each answer: an answer that overruns one counts as wrong.

    Args:
        completions (`list[str]` or `list[list[dict]]`): of a conversation, its last assistant message counts.
        solution (`list[str]`): the right answers, bare, in `\boxed{}` or in `<answer></answer>`.
        log_extra (`Callable`, *optional*): TRL's, for the columns `solution` and `answer` of the completions table.
        answer_tolerance (`list[float]`, *optional*): the most by which a number may differ from the solution; 0 or `None`: equal.
        **kwargs: what TRL passes besides; not used.

    Returns:
        `list[float]`: one reward a completion, never `None`.

    Raises:
        `ImportError`: if math-verify is not installed.
        `TypeError`: if a solution is not a string.
        `ValueError`: if a solution holds reasoning.
    """
    for gold in solution:
        check_no_reasoning(gold)
    answers = [last_boxed(final_text(completion)) for completion in completions]
    tolerances = [tolerance or 0.0 for tolerance in answer_tolerance or [0.0] * len(solution)]
    rewards = _graded(list(zip(solution, answers, tolerances, strict=True)))
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("answer", ["" if answer is None else answer for answer in answers])
    return rewards


def _graded(triples: list[tuple[str, str | None, float]]) -> list[float]:
    """
    Two passes, so that a few answers that overrun do not cost the others their time: all get a first try of a fraction
    of a second, in which nearly every comparison ends; then those that did not end their whole limit, one by one, as
    long as the time of the batch lasts. What stays is wrong, as if it had overrun: so the clock hardly ever decides.
    """
    rewards: list[float | None] = [_try_to_grade(*triple, GRADER.quickly_equal) for triple in triples]
    deadline, overruns, untried = time.monotonic() + GRADER.batch_seconds, GRADER.overruns, 0
    for index, triple in enumerate(triples):
        if rewards[index] is None and time.monotonic() < deadline:
            rewards[index] = _try_to_grade(*triple, GRADER.equal)
        elif rewards[index] is None:
            untried += 1
    if GRADER.overruns > overruns:
        logger.warning(
            "%d answers overran the grader's limits (%g s, %d MiB) and count as wrong; %d since the start.",
            GRADER.overruns - overruns, GRADER.seconds, GRADER.mebibytes, GRADER.overruns,
        )  # fmt: skip
    if untried:
        logger.warning(
            "%d answers overran a first try of %g s, had no second one in the %g s of their batch and count as wrong.",
            untried, GRADER.quick_seconds, GRADER.batch_seconds,
        )  # fmt: skip
    return [reward or 0.0 for reward in rewards]


def _try_to_grade(gold: str, answer: str | None, tolerance: float, equal: Callable[..., bool]) -> float | None:
    try:
        return float(answers_match(gold, answer, functools.partial(equal, tolerance=tolerance)))
    except Overrun:
        return None


def think_boxed_format_reward(completions: list[str] | list[list[dict[str, Any]]], **kwargs: Any) -> list[float]:
    r"""
    1.0 where a completion reads `<think>…</think>…\boxed{…}…`, with one think block at its beginning, else 0.0.

    Takes time linear in the length of the text, whatever the text.

    Args:
        completions (`list[str]` or `list[list[dict]]`): of a conversation, its last assistant message counts.
        **kwargs: what TRL passes besides; not used.

    Returns:
        `list[float]`: one reward a completion.
    """
    return [float(_thinks_then_boxes(final_text(completion))) for completion in completions]


def _thinks_then_boxes(text: str) -> bool:
    # No regular expression: one that allows any text between the marks takes quadratic time on a megabyte of \boxed{.
    text = text.lstrip()
    if not text.startswith("<think>"):
        return False
    end = text.find("</think>")
    box = text.find("\\boxed{", end) if end >= 0 else -1
    return box >= 0 and "<think>" not in text[len("<think>") : box] and text.find("}", box) >= 0

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Scores of questions that a benchmark counts together: the steps of a WeMath problem, the variants of a DynaMath question.

Shapes: `G` groups, `N` completions of each question, one pass over them all being a column.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .statistics import bootstrap_interval, std_over_samples

Parts = dict[str, np.ndarray]  # of one group: whether each question's N completions are right, by its part


def _steps(parts: Parts) -> np.ndarray:
    return np.array([right for part, right in parts.items() if part != "multi"])


def strict(parts: Parts) -> np.ndarray:
    """WeMath's: 1 where all steps and the whole are right, half where the steps alone are, else 0: the whole was learned by rote."""
    return _steps(parts).all(axis=0) * (0.5 + 0.5 * parts["multi"])


def loose(parts: Parts) -> np.ndarray:
    """WeMath's: 1 where the whole and any step are right, half where the steps alone are."""
    steps = _steps(parts)
    return np.where(parts["multi"], steps.any(axis=0), 0.5 * steps.all(axis=0))


def worst(parts: Parts) -> np.ndarray:
    """DynaMath's worst case: 1 where all variants are right."""
    return np.array(list(parts.values())).all(axis=0).astype(float)


_SCORES: dict[str, Callable[[Parts], np.ndarray]] = {"strict": strict, "loose": loose, "worst": worst}


def group_scores(questions: list[dict[str, Any]], side: str) -> dict[str, np.ndarray]:
    """
    The score of each group, by the scores' names.

    Args:
        questions (`list[dict]`): with their outcomes, and the `group` of those that belong to one. Groups of which a
            question is missing are left out.
        side (`str`): `"greedy"`, which is one completion, or `"samples"`.

    Returns:
        `dict[str, np.ndarray]`: of shape `(G, N)`, float64, in the order of the questions; nothing without groups.
    """
    groups: dict[str, tuple[dict[str, Any], Parts]] = {}
    for question in questions:
        if "group" in question:
            _, parts = groups.setdefault(question["group"]["name"], (question["group"], {}))
            parts[question["group"]["part"]] = np.atleast_1d(question[side]).astype(bool)
    scored: dict[str, list[np.ndarray]] = {}
    for group, parts in groups.values():
        for name in group["scores"] if len(parts) == group["size"] else ():
            scored.setdefault(name, []).append(_SCORES[name](parts))
    return {name: np.array(rows) for name, rows in scored.items()}


def group_numbers(questions: list[dict[str, Any]], side: str, seed: int) -> dict[str, Any]:
    """Of each score its mean over groups and completions, the interval over groups, and the spread from pass to pass."""
    return {
        name: {
            "num_groups": len(scores),
            "score": float(scores.mean()),
            "interval": bootstrap_interval(scores.mean(axis=1), seed),
            "std_over_samples": std_over_samples(scores),
        }
        for name, scores in group_scores(questions, side).items()
    }


def compare_groups(
    first: list[dict[str, Any]], second: list[dict[str, Any]], side: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Of each score the difference second − first, paired by group, with its interval."""
    before, after = group_scores(first, side), group_scores(second, side)
    changes = {name: after[name].mean(axis=1) - before[name].mean(axis=1) for name in after}
    return {
        name: {"difference": float(change.mean()), "interval": bootstrap_interval(change, seed)}
        for name, change in changes.items()
    }

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Two evaluations on the same questions, compared question by question.

Shapes: `Q` questions, `N` samples a question.
"""

from typing import Any

import numpy as np

from ..errors import EvaluationError
from .groups import compare_groups
from .statistics import bootstrap_interval, mcnemar_exact


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """
    What changed from one evaluation to another.

    Args:
        first (`dict`): results of [`summarize`], say of the model before training.
        second (`dict`): the same of the other model, on the same questions with the same reward.

    Returns:
        `dict`: differences are second − first. `greedy`: difference of the accuracies, its paired bootstrap interval,
        rows `gained` and `lost`, exact McNemar `p`; or `None` if one side has no greedy completions. `sampled`: the
        same for the means over the samples, rows whose mean rose and fell, and, with equally many samples, for
        pass@N; or `None`. Both with `groups` where a benchmark scores questions together. `different_settings`: other than the model.

    Raises:
        `EvaluationError`: if the questions or the rewards differ, naming the first row that does.
    """
    check_comparable(first, second)
    seed = second["settings"]["seed"]
    pairs = list(zip(first["questions"], second["questions"], strict=True))
    rows = np.array([question["row"] for question in first["questions"]])
    return {
        "first": first["model"],
        "second": second["model"],
        "num_questions": len(rows),
        "different_settings": different_settings(first, second),
        "greedy": _compare_greedy(pairs, rows, seed) if first["greedy"] and second["greedy"] else None,
        "sampled": _compare_sampled(pairs, rows, seed) if first["sampled"] and second["sampled"] else None,
    }


def different_settings(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """Of two evaluations, by name, besides the model."""
    return {
        name: [first["settings"].get(name), value]
        for name, value in second["settings"].items()
        if name not in ("model", "weights", "revision") and first["settings"].get(name) != value
    }


def check_comparable(first: dict[str, Any], second: dict[str, Any]) -> None:
    """
    Raises:
        `EvaluationError`: if the questions or the rewards of two evaluations differ, naming the first row that does.
    """
    rewards = [side["settings"]["reward"] for side in (first, second)]
    counts = [len(side["questions"]) for side in (first, second)]
    for what, (one, other) in [("reward", rewards), ("number of scored questions", counts)]:
        if one != other:
            raise EvaluationError(
                f"The evaluations differ in their {what}: {one} and {other}. Evaluate both models with the same "
                "--dataset, --split, --num_rows and --reward."
            )
    for one, other in zip(first["questions"], second["questions"], strict=True):
        if (one["row"], one["question"]) != (other["row"], other["question"]):
            raise EvaluationError(
                f"Row {one['row']} of the first evaluation is not row {other['row']} of the second: prompt, solution or "
                "images differ. Evaluate both models on the same data."
            )


def _compare_greedy(pairs: list[tuple[dict, dict]], rows: np.ndarray, seed: int) -> dict[str, Any]:
    change = np.array([other["greedy"] - one["greedy"] for one, other in pairs])
    gained, lost = rows[change > 0].tolist(), rows[change < 0].tolist()
    return {
        "difference": float(change.mean()),
        "interval": bootstrap_interval(change, seed),
        "gained": gained,
        "lost": lost,
        "p": mcnemar_exact(len(gained), len(lost)),
        **_grouped(pairs, "greedy", seed),
    }


def _grouped(pairs: list[tuple[dict, dict]], side: str, seed: int) -> dict[str, Any]:
    changes = compare_groups([one for one, _ in pairs], [other for _, other in pairs], side, seed)
    return {"groups": changes} if changes else {}


def _compare_sampled(pairs: list[tuple[dict, dict]], rows: np.ndarray, seed: int) -> dict[str, Any]:
    first, second = (np.array([pair[side]["samples"] for pair in pairs]) for side in (0, 1))
    change = second.mean(axis=1) - first.mean(axis=1)
    numbers = {
        "num_samples": [first.shape[1], second.shape[1]],
        "difference": float(change.mean()),
        "interval": bootstrap_interval(change, seed),
        "rose": rows[change > 0].tolist(),
        "fell": rows[change < 0].tolist(),
        **_grouped(pairs, "samples", seed),
    }
    if first.shape[1] == second.shape[1]:  # pass@N grows with N
        change = second.max(axis=1) - first.max(axis=1)
        numbers["pass_difference"] = float(change.mean())
        numbers["pass_interval"] = bootstrap_interval(change, seed)
    return numbers


def comparison_table(comparison: dict[str, Any]) -> str:
    """The comparison as a small Markdown table."""
    greedy, sampled = comparison["greedy"], comparison["sampled"]
    title = f"{comparison['second']} against {comparison['first']}: {comparison['num_questions']} questions"
    lines = [title, "", f"| {'':9} | change | 95 % interval   | notes", "|---|---|---|---"]
    if greedy:
        note = f"{len(greedy['gained'])} gained, {len(greedy['lost'])} lost, McNemar p = {greedy['p']:.2g}"
        lines.append(_line("greedy", greedy["difference"], greedy["interval"], note))
        lines += _group_lines(greedy, "")
    if sampled:
        number, other = sampled["num_samples"]
        name = f"@{number}" if number == other else f"@{number}→{other}"
        note = f"{len(sampled['rose'])} rose, {len(sampled['fell'])} fell"
        lines.append(_line(f"avg{name}", sampled["difference"], sampled["interval"], note))
        if "pass_difference" in sampled:
            lines.append(_line(f"pass{name}", sampled["pass_difference"], sampled["pass_interval"], ""))
        lines += _group_lines(sampled, name)
    for name, (one, other) in comparison["different_settings"].items():
        lines += ["", f"Not the same setting: {name} {one!r} and {other!r}."]
    return "\n".join(lines)


def _group_lines(numbers: dict[str, Any], suffix: str) -> list[str]:
    groups = numbers.get("groups", {})
    return [_line(f"{name}{suffix}", group["difference"], group["interval"], "") for name, group in groups.items()]


def _line(name: str, change: float, interval: list[float], note: str) -> str:
    return f"| {name:9} | {change:+.3f} | {interval[0]:+.3f} … {interval[1]:+.3f} | {note}".rstrip()

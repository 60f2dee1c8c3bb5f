# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Two models on several data sets, a file of results each, and the mean over the data sets: the paper's table.

Shapes: `U` questions of a data set, or groups of them where the benchmark's score is of groups.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EvaluationError
from .comparison import check_comparable, different_settings
from .groups import group_scores
from .statistics import interval_of, resampled_means
from .summary import load_result

STRICT = "strict"  # WeMath's score, which the paper reports of it


def compare_folders(first: str | Path, second: str | Path) -> dict[str, Any]:
    """
    Compare what two folders hold under the same names.

    Args:
        first, second (`str` or `Path`): folders of results, `NAME.json` for each data set.

    Returns:
        `dict`: JSON values. `data_sets`: by name, `score` (avg@N or strict@N), both models' values, `difference`
        (second - first) and its 95 % `interval`, paired by question, and `different_settings`, other than the model. `mean`:
        the same over the data sets, each of which is resampled by itself.

    Raises:
        `EvaluationError`: for a file that one of them lacks, or that cannot be compared.
    """
    names = _common_names(Path(first), Path(second))
    generator, data_sets, means = np.random.default_rng(0), {}, []
    for name in names:
        one, other = (load_result(Path(folder) / f"{name}.json") for folder in (first, second))
        try:
            check_comparable(one, other)
        except EvaluationError as error:
            raise EvaluationError(f"{name}.json: {error}") from error
        (score, before), (other_score, after) = _values(one, name), _values(other, name)
        resampled = resampled_means(after - before, generator)
        data_sets[name] = {
            "score": score if score == other_score else f"{score}→{other_score.partition('@')[2]}",
            **_numbers(before.mean(), after.mean(), resampled),
            "different_settings": different_settings(one, other),
        }
        means.append((before.mean(), after.mean(), resampled))
    over_all = [np.mean(column, axis=0) for column in zip(*means, strict=True)]
    return {"first": str(first), "second": str(second), "data_sets": data_sets, "mean": _numbers(*over_all)}


def _common_names(first: Path, second: Path) -> list[str]:
    names = [{path.stem for path in folder.glob("*.json")} for folder in (first, second)]
    for folder, own, others in ((first, *names), (second, *names[::-1])):
        missing = sorted(others - own)
        if missing:
            raise EvaluationError(f"{folder} has no {missing[0]}.json, which the other folder has. Evaluate it, too.")
    if not names[0]:
        raise EvaluationError(f"{first} and {second} hold no results. Evaluate with --output {first}/NAME.json.")
    return sorted(names[0])


def _values(result: dict[str, Any], name: str) -> tuple[str, np.ndarray]:
    """What the score is called, and each unit's mean over the samples, of shape `(U,)`."""
    if not result["sampled"]:
        raise EvaluationError(f"{name}.json of {result['model']} has no samples. Evaluate with --num_samples 8.")
    number = result["sampled"]["num_samples"]
    strict = group_scores(result["questions"], "samples").get(STRICT)
    if strict is not None:
        return f"{STRICT}@{number}", strict.mean(axis=1)
    return f"avg@{number}", np.array([question["samples"] for question in result["questions"]]).mean(axis=1)


def _numbers(first: float, second: float, resampled: np.ndarray) -> dict[str, Any]:
    return {
        "first": float(first),
        "second": float(second),
        "difference": float(second - first),
        "interval": interval_of(resampled),
    }


def folders_table(comparison: dict[str, Any]) -> str:
    """The comparison as a small Markdown table."""
    lines = [f"{comparison['second']} against {comparison['first']}", ""]
    lines += [f"| {'':15} | score    | first | second | change | 95 % interval", "|---|---|---|---|---|---"]
    for name, numbers in [*comparison["data_sets"].items(), ("mean", comparison["mean"])]:
        low, high = numbers["interval"]
        lines.append(
            f"| {name:15} | {numbers.get('score', ''):8} | {numbers['first']:.3f} | {numbers['second']:.3f}  | "
            f"{numbers['difference']:+.3f} | {low:+.3f} … {high:+.3f}"
        )
    for name, numbers in comparison["data_sets"].items():
        for setting, (one, other) in numbers["different_settings"].items():
            lines += ["", f"Not the same setting: {name}, {setting} {one!r} and {other!r}."]
    return "\n".join(lines)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation, from its records.

Shapes: `Q` questions, `N` samples a question.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EvaluationError
from .groups import group_numbers
from .records import Record
from .statistics import bootstrap_interval, pass_at_k, std_over_samples

RIGHT = 0.5  # a score from here on counts as right


def summarize(records: list[Record], settings: dict[str, Any]) -> dict[str, Any]:
    """
    Accuracies with their intervals, and each question's outcomes.

    Args:
        records (`list[Record]`): one a question.
        settings (`dict`): of the evaluation.

    Returns:
        `dict`: JSON values; docs/evaluation.md describes the keys. All shares are in 0 … 1.

    Raises:
        `EvaluationError`: if the reward could score no question.
    """
    scored = [record for record in records if all(entry["score"] is not None for entry in completions_of(record))]
    if not scored:
        raise EvaluationError(
            f"The reward {settings['reward']} returned None for some completion of every question. Check the column "
            "'solution', or give another --reward."
        )
    seed = settings["seed"]
    greedy = (
        None if scored[0]["greedy"] is None else np.array([counts_as_right(record["greedy"]) for record in scored])
    )
    samples = np.array([[counts_as_right(entry) for entry in record["samples"]] for record in scored])
    questions = [
        {
            "row": record["row"],
            "question": record["question"],
            "greedy": None if greedy is None else int(greedy[i]),
            "samples": [int(right) for right in samples[i]],
            **{name: record[name] for name in ("group",) if name in record},
        }
        for i, record in enumerate(scored)
    ]
    return {
        **{name: settings[name] for name in ("model", "dataset", "split")},
        "num_questions": len(scored),
        "reward": settings["reward"].rpartition(".")[2],
        "greedy": None if greedy is None else _greedy_numbers(greedy, scored, questions, seed),
        "sampled": _sampled_numbers(samples, scored, questions, settings) if samples.size else None,
        "unscored_rows": sorted({record["row"] for record in records} - {record["row"] for record in scored}),
        "settings": settings,
        "questions": questions,
    }


def completions_of(record: Record) -> list[dict[str, Any]]:
    """Both the greedy completion, if there is one, and the samples of a question."""
    return [entry for entry in (record["greedy"], *record["samples"]) if entry is not None]


def counts_as_right(completion: dict[str, Any]) -> bool:
    """Whether a scored completion counts as right."""
    return completion["score"] >= RIGHT


def _greedy_numbers(
    right: np.ndarray, records: list[Record], questions: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    lengths = _length_numbers([record["greedy"] for record in records])
    numbers = {"accuracy": float(right.mean()), "interval": bootstrap_interval(right, seed), **lengths}
    return numbers | _grouped(questions, "greedy", seed)


def _grouped(questions: list[dict[str, Any]], side: str, seed: int) -> dict[str, Any]:
    numbers = group_numbers(questions, side, seed)
    return {"groups": numbers} if numbers else {}


def _sampled_numbers(
    right: np.ndarray, records: list[Record], questions: list[dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Any]:
    number, seed = right.shape[1], settings["seed"]
    ks = [k for k in (2**i for i in range(number.bit_length())) if k < number]
    best = right.any(axis=1)
    return {
        "num_samples": number,
        "temperature": settings["temperature"],
        "top_p": settings["top_p"],
        "avg": float(right.mean()),
        "std_over_samples": std_over_samples(right),
        "interval": bootstrap_interval(right.mean(axis=1), seed),
        "pass": float(best.mean()),
        "pass_interval": bootstrap_interval(best, seed),
        "pass_at_k": {str(k): float(pass_at_k(right, k).mean()) for k in [*ks, number]},
        **_length_numbers([entry for record in records for entry in record["samples"]]),
        **_grouped(questions, "samples", seed),
    }


def _length_numbers(completions: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "mean_tokens": float(np.mean([entry["tokens"] for entry in completions])),
        "clipped": float(np.mean([entry["clipped"] for entry in completions])),
    }


def to_json(result: dict[str, Any]) -> str:
    """The results as an indented JSON object, but one line a question."""
    head = json.dumps({name: value for name, value in result.items() if name != "questions"}, indent=2)
    questions = ",\n".join("    " + json.dumps(question) for question in result["questions"])
    return f'{head[:-2]},\n  "questions": [\n{questions}\n  ]\n}}\n'


def load_result(path: str | Path) -> dict[str, Any]:
    """
    Read what [`to_json`] wrote.

    Raises:
        `EvaluationError`: if there is no such file or it holds something else.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(result, dict) and {"questions", "settings", "reward"} <= set(result):
            return result
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}).") from error
    raise EvaluationError(f"{path} holds no results of trl-cppo evaluate.")


def table(result: dict[str, Any]) -> str:
    """The results as a small Markdown table."""
    greedy, sampled = result["greedy"], result["sampled"]
    title = f"{result['model']} on {result['dataset']} ({result['split']}): {result['num_questions']} questions"
    lines = [f"{title}, {result['reward']}", "", f"| {'':9} | share | 95 % interval  | notes", "|---|---|---|---"]
    if greedy:
        lines.append(_line("greedy", greedy["accuracy"], greedy["interval"], _length_note(greedy)))
        lines += _group_lines(greedy, "")
    if sampled:
        number, std = sampled["num_samples"], sampled["std_over_samples"]
        spread = "" if std is None else f"± {std:.3f} from sample to sample, "
        note = f"{spread}temperature {sampled['temperature']}, {_length_note(sampled)}"
        lines.append(_line(f"avg@{number}", sampled["avg"], sampled["interval"], note))
        lines.append(_line(f"pass@{number}", sampled["pass"], sampled["pass_interval"], "any sample right"))
        lines += _group_lines(sampled, f"@{number}")
    if result["unscored_rows"]:
        lines += ["", f"{len(result['unscored_rows'])} more questions could not be scored by the reward."]
    return "\n".join(lines)


def _group_lines(numbers: dict[str, Any], suffix: str) -> list[str]:
    lines = []
    for name, group in numbers.get("groups", {}).items():
        std = group["std_over_samples"]
        spread = "" if std is None else f", ± {std:.3f} from sample to sample"
        note = f"{group['num_groups']} groups of questions{spread}"
        lines.append(_line(f"{name}{suffix}", group["score"], group["interval"], note))
    return lines


def _line(name: str, share: float, interval: list[float], note: str) -> str:
    return f"| {name:9} | {share:.3f} | {interval[0]:.3f} … {interval[1]:.3f}  | {note}"


def _length_note(numbers: dict[str, Any]) -> str:
    return f"{numbers['mean_tokens']:.1f} tokens on average, {numbers['clipped']:.1%} cut"

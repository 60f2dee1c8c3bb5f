# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What was measured of a model: the `model-index` of its card and the table of results."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .markdown import escape, is_hub_id, is_number, number, one_line, table

TASK = "image-text-to-text"
_RESULTS = "<!-- trl-cppo: results -->"  # around the section that an evaluation rewrites
_EMBEDDED = {"dataset": "digits", "split": "test"}  # what digits.HeldOutAccuracy measures on


def embedded_results(history: list[dict[str, Any]]) -> list[EvalResult]:
    """The last held-out accuracy of the embedded digits run; nothing else logs one."""
    values = [entry["held_out_accuracy"] for entry in history if "held_out_accuracy" in entry]
    if not values:
        return []
    details = {"before training": values[0], "measured": "during training"}
    return [_result(**_EMBEDDED, name="accuracy, greedy", value=values[-1], details=details)]


def _result(dataset: str, split: str, name: str, value: float, details: dict[str, Any]) -> EvalResult:
    shown = dataset if is_hub_id(dataset) else one_line(Path(dataset).name)  # a path is nobody's business
    return EvalResult(
        task_type=TASK,
        dataset_type=shown,
        dataset_name=shown,
        dataset_split=one_line(split),
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(value, 6),
        metric_args=details,
    )


def _results_of(evaluation: dict[str, Any]) -> list[EvalResult]:
    where = {"dataset": evaluation["dataset"], "split": evaluation["split"]}
    common = {"questions": evaluation["num_questions"], "reward": one_line(evaluation["reward"])}
    results = []
    if evaluation.get("greedy"):
        greedy = evaluation["greedy"]
        details = {**common, "interval": list(greedy["interval"])}
        results.append(_result(**where, name="accuracy, greedy", value=greedy["accuracy"], details=details))
    if evaluation.get("sampled"):
        sampled = evaluation["sampled"]
        draws = {**common, "samples": sampled["num_samples"], "temperature": sampled["temperature"]}
        spread = {**draws, "interval": list(sampled["interval"]), "spread": sampled["std_over_samples"]}
        results.append(_result(**where, name=f"avg@{sampled['num_samples']}", value=sampled["avg"], details=spread))
        details = {**draws, "interval": list(sampled["pass_interval"])}
        results.append(_result(**where, name=f"pass@{sampled['num_samples']}", value=sampled["pass"], details=details))
    return results


def results_section(results: list[EvalResult]) -> str:
    """A table between two marks; the marks alone where nothing was measured."""
    rows = []
    for result in results:
        details = {key: value for key, value in (result.metric_args or {}).items() if value is not None}
        interval = "–".join(number(bound) for bound in details.pop("interval", []))
        how = ", ".join(
            f"{escape(key)} {escape(number(value) if is_number(value) and value % 1 else value)}"
            for key, value in details.items()
        )
        where = f"{escape(result.dataset_name)} ({escape(result.dataset_split)})"
        rows.append((where, escape(result.metric_name), number(result.metric_value), interval, how))
    shown = table(rows, ["data", "metric", "value", "95 % interval", "how"])
    section = f"## Results\n\n{shown}\n" if rows else ""
    return f"{_RESULTS}\n{section}{_RESULTS}"


def add_evaluation(folder: str | os.PathLike, evaluation: dict[str, Any]) -> None:
    """
    Put what `examples/evaluate.py` measured into the card of a model: the `model-index` and the table of results.

    Results on the same data set and split are replaced, others kept; so is whatever else the card says.

    Args:
        folder (`str` or `os.PathLike`): the model's, with a `README.md`.
        evaluation (`dict`): the content of `evaluation.json`.

    Raises:
        `FileNotFoundError`: if there is no card.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no README.md to write the results into.")
    card = ModelCard.load(path)
    new = _results_of(evaluation)
    replaced = {(result.dataset_type, result.dataset_split) for result in new}
    kept = [r for r in card.data.eval_results or [] if (r.dataset_type, r.dataset_split) not in replaced]
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.data.eval_results = [*kept, *new]
    section = results_section(card.data.eval_results)
    before, marked, rest = card.text.partition(_RESULTS)
    after = rest.partition(_RESULTS)[2] if marked else ""
    card.text = f"{before.rstrip()}\n\n{section}\n\n{after.lstrip()}".rstrip() + "\n"
    card.save(path)

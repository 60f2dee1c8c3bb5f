# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What was measured of a model: the `model-index` of its card and the table of results."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .held_out import wilson_interval
from .markdown import escape, is_hub_id, is_number, number, one_line, table

TASK = "image-text-to-text"
_RESULTS = "<!-- trl-cppo: results -->"  # around the section that an evaluation rewrites
_EMBEDDED = {"dataset": "digits", "split": "test"}  # what digits.HeldOutAccuracy measures on


def embedded_results(history: list[dict[str, Any]], step: int) -> list[EvalResult]:
    """
    The held-out accuracy of the embedded digits run; nothing else logs one.

    Args:
        history (`list[dict[str, Any]]`): `trainer.state.log_history`.
        step (`int`): the step of the weights; what was measured of others is not theirs.
    """
    measured = {entry["step"]: entry for entry in history if "held_out_accuracy" in entry}
    if step not in measured:
        return []
    share, questions = measured[step]["held_out_accuracy"], measured[step].get("held_out_questions")
    details = {
        "questions": questions,  # logs of earlier versions lack it
        "interval": [round(end, 6) for end in wilson_interval(share, questions)] if questions else None,
        "before training": measured[0]["held_out_accuracy"] if 0 in measured else None,
        "measured": "during training",
    }
    details = {key: value for key, value in details.items() if value is not None}
    return [_result(**_EMBEDDED, name="accuracy, greedy", value=share, details=details)]


def _result(dataset: str, split: str, name: str, value: float, details: dict[str, Any]) -> EvalResult:
    shown = dataset if is_hub_id(dataset) else one_line(Path(dataset).name)  # a path is nobody's business
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset if is_hub_id(dataset) else f"custom:{shown}",  # no id that the Hub would link
        dataset_name=shown,
        dataset_split=one_line(split),
        metric_type="accuracy",
        metric_name=name,
        metric_value=round(_share(value, name), 6),
        metric_args=details,
    )


def _share(value: Any, what: str) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"The evaluation's {what} must be a share between 0 and 1, got {value!r}.")
    return value


def evaluation_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    """
    The contents of an `evaluation.json` as the metadata have them.

    Raises:
        `ValueError`: naming an entry that is missing, or is no share between 0 and 1.
    """
    try:
        return _results_of(evaluation)
    except (KeyError, TypeError) as error:
        raise ValueError(f"The evaluation lacks an entry, or has one of another kind: {error}.") from error


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
        std = sampled["std_over_samples"]  # None for a single sample
        spread = {**draws, "interval": list(sampled["interval"]), "spread": None if std is None else round(std, 6)}
        results.append(_result(**where, name=f"avg@{sampled['num_samples']}", value=sampled["avg"], details=spread))
        details = {**draws, "interval": list(sampled["pass_interval"])}
        results.append(_result(**where, name=f"pass@{sampled['num_samples']}", value=sampled["pass"], details=details))
    if not results:
        raise ValueError("The evaluation holds no result: neither 'greedy' nor 'sampled'.")
    return results


def merge_results(older: list[EvalResult], newer: list[EvalResult]) -> list[EvalResult]:
    """The newer results, behind the older ones on other data sets and splits."""
    replaced = {(result.dataset_type, result.dataset_split) for result in newer}
    return [*(x for x in older if (x.dataset_type, x.dataset_split) not in replaced), *newer]


def results_section(results: list[EvalResult]) -> str:
    """A table between two marks; the marks alone where nothing was measured."""
    rows = []
    for result in results:
        if not isinstance(result.metric_args, dict) or not {"reward", "measured"} & result.metric_args.keys():
            continue  # the metadata's, by another hand
        details = {key: value for key, value in result.metric_args.items() if value is not None}
        interval = "–".join(number(bound) for bound in details.pop("interval", [])) or "not known"
        how = ", ".join(
            f"{escape(key)} {escape(number(value) if is_number(value) and value % 1 else value)}"
            for key, value in details.items()
        )
        where = f"{escape(result.dataset_name)} ({escape(result.dataset_split)})"
        shown = number(result.metric_value) if is_number(result.metric_value) else escape(result.metric_value)
        rows.append((where, escape(result.metric_name or result.metric_type), shown, interval, how))
    shown = table(rows, ["data", "metric", "value", "95 % interval", "how"])
    section = f"## Results\n\n{shown}\n" if rows else ""
    return f"{_RESULTS}\n{section}{_RESULTS}"


def add_evaluation(folder: str | os.PathLike, evaluation: dict[str, Any]) -> None:
    """
    Put what `trl-cppo evaluate` measured into the card of a model: the `model-index` and the table of results.

    Results on the same data set and split are replaced, others kept; so is whatever else the card says.

    Args:
        folder (`str` or `os.PathLike`): the model's, with a `README.md`.
        evaluation (`dict`): the content of `evaluation.json`.

    Raises:
        `FileNotFoundError`: if there is no card.
        `ValueError`: if the evaluation lacks an entry or has one that is no share between 0 and 1.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no README.md to write the results into.")
    card = ModelCard.load(path)
    results = merge_results(card.data.eval_results or [], evaluation_results(evaluation))
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.data.eval_results = results
    section = results_section(results)
    before, marked, rest = card.text.partition(_RESULTS)
    _, closed, after = rest.partition(_RESULTS)
    if not (marked and closed):  # somebody deleted a mark: nothing says where the old table ends
        before, after = card.text.replace(_RESULTS, ""), ""
    card.text = f"{before.rstrip()}\n\n{section}\n\n{after.lstrip()}".rstrip() + "\n"
    card.save(path)

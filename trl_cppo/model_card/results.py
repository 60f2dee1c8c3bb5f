# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measured results in a card: in the text, and as the Hub's `model-index` in the metadata."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .text import escape, is_hub_id, one_line, public_name, table

TASK = "image-text-to-text"
# Comments, which no renderer shows, mark what belongs to a measurement, so that a later one can replace it.
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_HEADING = "## Results"
_BLOCK = "<!-- result {key}: begin -->\n{text}\n<!-- result {key}: end -->"


@dataclass
class Measurement:
    """
    What one evaluation measured.

    Args:
        heading (`str`): escaped Markdown that says what was asked.
        table (`str`): the table of figures.
        results (`list[EvalResult]`): the same for the metadata; empty if the figures are of other weights.
        dataset (`str`), split (`str`): a later measurement of the same replaces this one.
    """

    heading: str
    table: str
    results: list[EvalResult]
    dataset: str
    split: str

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.dataset, self.split)).encode()).hexdigest()[:12]

    @property
    def block(self) -> str:
        return _BLOCK.format(key=self.key, text=f"\n{self.heading}\n\n{self.table}\n")


def dataset_type(name: str) -> str:
    """The `type` of a data set in a model-index: its Hub id, or what can be none."""
    return name if is_hub_id(name) else f"custom:{public_name(name)}"


def _share(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"evaluation: {what} must be a share between 0 and 1, got {value!r}.")
    return float(value)


def _interval(part: dict[str, Any], name: str, what: str) -> str:
    if part.get(name) is None:
        return ""
    low, high = (_share(value, f"{what}.{name}") for value in part[name])
    return f"{low:.3f} – {high:.3f}"


def _figures(evaluation: dict[str, Any]) -> list[tuple[str, str, float, str, str]]:
    """Type and name of each metric, value, note, interval."""
    greedy, sampled = evaluation.get("greedy"), evaluation.get("sampled")
    figures = []
    if greedy is not None:
        value = _share(greedy["accuracy"], "greedy.accuracy")
        figures.append(("accuracy", "accuracy, greedy", value, "", _interval(greedy, "interval", "greedy")))
    if sampled is not None:
        count, temperature = int(sampled["num_samples"]), float(sampled["temperature"])
        how = f"{count} samples at temperature {temperature:g}"
        spread = f" (± {_share(sampled['std_over_samples'], 'sampled.std_over_samples'):.3f} between samples)"
        mean, best = _share(sampled["avg"], "sampled.avg"), _share(sampled["pass"], "sampled.pass")
        interval = _interval(sampled, "interval", "sampled")
        figures.append(("accuracy", f"avg@{count}, {how}", mean, spread, interval))
        interval = _interval(sampled, "pass_interval", "sampled")
        figures.append((f"pass@{count}", f"pass@{count}, {how}", best, "", interval))
    if not figures:
        raise ValueError("evaluation: neither 'greedy' nor 'sampled' holds a result.")
    return figures


def measurement(evaluation: dict[str, Any]) -> Measurement:
    """
    The contents of an `evaluation.json`, for a card.

    Raises:
        `ValueError`: naming the entry that is missing or no share between 0 and 1.
    """
    try:
        dataset, split = str(evaluation["dataset"]), str(evaluation["split"])
        count, reward = int(evaluation["num_questions"]), str(evaluation["reward"])
        figures = _figures(evaluation)
    except KeyError as error:
        raise ValueError(f"evaluation: there is no entry {error}.") from error
    name = public_name(dataset)
    heading = f"{escape(name)}, split {escape(split)}, {count:,} questions, scored by {escape(reward)}:"
    rows = [(escape(name), f"{value:.3f}{note}", interval) for _, name, value, note, interval in figures]
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset_type(dataset),
            dataset_name=name,
            dataset_split=one_line(split),
            metric_type=metric,
            metric_name=metric_name,
            metric_value=value,
        )
        for metric, metric_name, value, _, _ in figures
    ]
    header = ("", "value", "95 % interval (bootstrap over questions)")
    return Measurement(heading, table(header, rows), results, dataset_type(dataset), one_line(split))


def held_out_measurement(log_history: list[dict[str, Any]], num_canvases: int | None, step: int) -> Measurement | None:
    """
    The accuracies that the embedded digits run measures on its way.

    Args:
        log_history (`list[dict[str, Any]]`): `trainer.state.log_history`.
        num_canvases (`int`, *optional*): on how many canvases, if that is known.
        step (`int`): the step of the card's weights; the metadata get the accuracy only if it is theirs.

    Returns:
        `Measurement` or `None`: `None` where nothing was measured.
    """
    measured = {entry["step"]: entry["held_out_accuracy"] for entry in log_history if "held_out_accuracy" in entry}
    if not measured:
        return None
    dataset, split = "trl_cppo.digits", "held_out"
    count = "" if num_canvases is None else f"{num_canvases:,} "
    heading = f"Greedy accuracy on {count}canvases of handwriting that was held out ({dataset}):"
    ends = sorted({min(measured), max(measured)})
    rows = [("before training" if at == 0 else f"after {at:,} steps", f"{measured[at]:.3f}") for at in ends]
    results = []
    if step in measured:
        results.append(
            EvalResult(
                task_type=TASK,
                dataset_type=dataset_type(dataset),
                dataset_name=dataset,
                dataset_split=split,
                metric_type="accuracy",
                metric_name="accuracy, greedy",
                metric_value=measured[step],
            )
        )
    return Measurement(heading, table(("", "accuracy"), rows), results, dataset_type(dataset), split)


def results_section(measurements: list[Measurement]) -> str:
    """The section of a card, or, without a measurement, only the place where one can be added."""
    if not measurements:
        return f"{BEGIN}\n{END}"
    return "\n".join([f"{BEGIN}\n\n{_HEADING}\n", *(each.block for each in measurements), END])


def _with_block(text: str, new: Measurement) -> str:
    """The text of a card with the measurement in the place of an earlier one, else at the end of the results."""
    earlier = re.compile(rf"<!-- result {new.key}: begin -->.*?<!-- result {new.key}: end -->", re.DOTALL)
    if earlier.search(text):
        return earlier.sub(lambda _: new.block, text, count=1)
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:  # a card by another hand
        return f"{text.rstrip()}\n\n{results_section([new])}\n"
    before, rest = text.split(BEGIN, 1)
    inside, after = rest.split(END, 1)
    heading = "" if inside.strip() else f"\n\n{_HEADING}\n"
    return f"{before}{BEGIN}{heading}{inside.rstrip()}\n{new.block}\n{END}{after}"


def add_evaluation(folder: str | Path, evaluation: dict[str, Any]) -> None:
    """
    Put an evaluation into the model card of a folder: its figures with their intervals into the section "Results",
    and into the metadata's `model-index`, which the Hub shows beside the model.

    An earlier evaluation of the same data set and split is replaced, others stay, and so does all other text. Doing
    it twice changes nothing.

    Args:
        folder (`str` or `Path`): the model's, with a `README.md`.
        evaluation (`dict`): what `examples/evaluate.py` writes into `evaluation.json`.

    Raises:
        `FileNotFoundError`: if there is no card.
        `ValueError`: if the evaluation lacks an entry or holds a share outside of 0 … 1, or the card's metadata
            cannot be read.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Save the model with CPPOTrainer, or write a card, first.")
    new = measurement(evaluation)
    card = ModelCard.load(path)
    kept = [
        result
        for result in card.data.eval_results or []
        if (result.dataset_type, result.dataset_split) != (new.dataset, new.split)
    ]
    card.data.model_name = card.data.model_name or path.parent.resolve().name
    card.data.eval_results = [*kept, *new.results]
    card.text = _with_block(card.text, new)
    card.save(path)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Completions that were written elsewhere: TRL's tables of completions, evaluation records, a file of one's own."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from ...run.completions import DATASET_ROW

_NO_REWARD = {DATASET_ROW, "row", "step", "sample", "advantage"}  # numbers in such a file that are no reward


@dataclass(frozen=True)
class GivenCompletion:
    """One line of the file."""

    row: int  # place in the data set
    text: str
    rewards: dict[str, float]
    advantage: float | None


def read_completions(path: str, dataset: Dataset, num_rows: int) -> list[GivenCompletion]:
    """
    The first completions of a parquet or JSON-lines file, each with its row of the data set.

    The column `completion` holds a text or one assistant message. A column `dataset_row` or `row` says which row of the
    data set it answers; without one, the `prompt` is looked up. The other columns of numbers are rewards, but for
    `advantage`, `step` and `sample`. The records of `trl-cppo evaluate` are read too.

    Args:
        path (`str`): ends in `.parquet`, `.jsonl` or `.json`; such as the files that TRL's `log_completions` writes.
        dataset ([`~datasets.Dataset`]): the data set that was answered.
        num_rows (`int`): how many completions to read.

    Raises:
        `ValueError`: naming file, line and column, for what cannot be used.
    """
    lines = [entry for line in _read_lines(Path(path)) for entry in _entries(line)][:num_rows]
    if not lines:
        raise ValueError(f"--completions: {path} holds no completion.")
    by_number = isinstance(lines[0], dict) and not lines[0].keys().isdisjoint((DATASET_ROW, "row"))
    places = _Places(dataset, by_number)
    try:
        return [_given(line, places, f"completion {number} of {path}") for number, line in enumerate(lines)]
    except ValueError as error:
        raise ValueError(f"--completions: {error}") from error


def _read_lines(file: Path) -> list[Any]:
    if not file.is_file():
        raise FileNotFoundError(f"--completions: there is no file {file}.")
    if file.suffix not in (".parquet", ".jsonl", ".json"):
        raise ValueError(f"--completions: {file} must end in .parquet, .jsonl or .json (one object a line).")
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file).to_dict("records")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except Exception as error:  # pyarrow raises what it likes
        raise ValueError(f"--completions: {file} cannot be read: {error}") from error


def _entries(line: Any) -> list[Any]:
    """A line itself; of a file of evaluation records, which begins with their settings, one entry a completion."""
    if not isinstance(line, dict) or "completion" in line:
        return [line]
    if "samples" not in line:
        return [] if set(line) == {"settings"} else [line]
    completions = [line["greedy"]] * (line["greedy"] is not None) + line["samples"]
    return [{"row": line["row"], "completion": found["text"], "reward": found["score"]} for found in completions]


class _Places:
    """Finds the data set row that a line answers."""

    def __init__(self, dataset: Dataset, by_number: bool):
        self._dataset = dataset.select_columns(["prompt"])
        self._size = len(dataset)
        self._by_number = by_number
        self._by_prompt: dict[str, list[int]] = {}
        for row, prompt in enumerate([] if by_number else dataset["prompt"]):
            self._by_prompt.setdefault(prompt_text(prompt), []).append(row)

    def __call__(self, line: dict[str, Any]) -> int:
        if self._by_number:
            row = _number(line.get(DATASET_ROW, line.get("row")))
            if row is None or not 0 <= row < self._size or row != int(row):
                has = f"the rows 0 to {self._size - 1}" if self._size > 1 else "row 0 alone"
                raise ValueError(
                    f"has row {row if row is None else f'{row:.12g}'}, but the split has {has}. Give the --split that was trained on."
                )
            if line.get("prompt") is not None:
                shown, own = (
                    _bare(prompt_text(prompt)) for prompt in (line["prompt"], self._dataset[int(row)]["prompt"])
                )
                if shown != own:
                    raise ValueError(
                        f"has another prompt than row {int(row)} of the data set: {shown[:60]!r}, not {own[:60]!r}. It is of "
                        "another split, or of a data set that was shuffled or filtered since."
                    )
            return int(row)
        rows = self._by_prompt.get(prompt_text(line.get("prompt")), [])
        if len(rows) != 1:
            raise ValueError(
                f"has a prompt that {len(rows)} rows of the data set have. Add a column 'row' with its place in it."
            )
        return rows[0]


def _bare(text: str) -> str:
    """A prompt's text without white space and without what the completions table writes for images."""
    return "".join(re.sub(r"\[(IMAGE|VIDEO)\]|<image>", "", text).split())


def _given(line: dict[str, Any], places: _Places, name: str) -> GivenCompletion:
    try:
        if not isinstance(line, dict) or "completion" not in line:
            raise ValueError(f"has no column 'completion', only {list(line) if isinstance(line, dict) else line!r}.")
        rewards = {key: _number(value) for key, value in line.items() if key not in _NO_REWARD}
        return GivenCompletion(
            row=places(line),
            text=_completion_text(line["completion"]),
            rewards={str(key): value for key, value in rewards.items() if value is not None},
            advantage=_number(line.get("advantage")),
        )
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else None


def _completion_text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    messages = list(completion) if completion is not None and not isinstance(completion, (int, float)) else []
    if len(messages) != 1 or not isinstance(messages[0], dict) or "content" not in messages[0]:
        raise ValueError("has no single message in column 'completion'. Conversations with tools cannot be scored.")
    return prompt_text(messages)


def prompt_text(prompt: Any) -> str:
    """The text of a prompt: of its messages' text parts, one message a paragraph."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n\n".join(_content_text(message.get("content")) for message in prompt)


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))

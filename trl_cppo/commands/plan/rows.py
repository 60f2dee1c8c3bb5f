# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The prompts and images of a prepared data set, from some of its rows."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...run.rows.checks import images_of
from ..loading import load_split
from .counts.images import Sizes

LOOKED_AT = 64  # rows, evenly over the data set


@dataclass(frozen=True)
class RowShape:
    """A row's prompt: tokens of its text, `None` where no tokenizer is at hand, and width and height of its images."""

    text: int | None
    sizes: Sizes

    @property
    def size(self) -> tuple[int, int]:
        """By which rows are compared: pixels, then text."""
        return sum(width * height for width, height in self.sizes), self.text or 0


@dataclass(frozen=True)
class DatasetShape:
    """Of a split: how many rows it has; of those looked at, the largest and the one in the middle."""

    num_rows: int
    largest: RowShape
    usual: RowShape


def measure(name: str, split: str, model: str) -> DatasetShape:
    """
    Look at some rows of a data set.

    Args:
        name, split (`str`): see [`~trl_cppo.commands.loading.load_split`].
        model (`str`): Hub id or local folder, whose tokenizer is used if it is on this machine.
    """
    dataset: Dataset = load_split(name, split)
    tokenizer = _tokenizer(model)
    step = max(1, len(dataset) // LOOKED_AT)
    shapes = [_shape(dataset[row], tokenizer) for row in range(0, len(dataset), step)]
    shapes.sort(key=lambda shape: shape.size)
    texts = [shape.text for shape in shapes if shape.text is not None]
    largest = RowShape(max(texts, default=None), shapes[-1].sizes)
    return DatasetShape(len(dataset), largest, shapes[len(shapes) // 2])


def _tokenizer(model: str) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError):  # without its files, or of no known kind
        return None
    return tokenizer if tokenizer.chat_template else None  # from a configuration alone comes one without words


def _shape(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> RowShape:
    _, images = images_of(row)
    sizes = tuple(image.size for image in images)
    if tokenizer is None:
        return RowShape(None, sizes)
    messages = [{**message, "content": _words(message["content"])} for message in row["prompt"]]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # Before each image, and behind it, a token of its own in most families.
    return RowShape(len(tokenizer(text)["input_ids"]) + 2 * len(sizes), sizes)


def _words(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)

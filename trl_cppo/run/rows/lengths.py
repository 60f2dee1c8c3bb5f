# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How many tokens the longest prompts of a data set make, told before the first step from few of its rows."""

import heapq
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import PretrainedConfig
from transformers.utils import logging

from ...config import CPPOConfig
from .forwards import forward_text
from .layouts import PREPARE

_COLUMNS = ("prompt", "images", "image")
_BATCH = 256  # rows
_LOOKED_AT = 3  # rows by each of the four measures below

logger = logging.get_logger(__name__)


@dataclass
class _Size:
    """What a row's number of tokens depends on, without decoding it."""

    pixels: int = 0  # of all its images, after the limit
    images: int = 0
    characters: int = 0  # of the prompt

    def measures(self) -> tuple[float, ...]:
        """Families count tokens by pixels or by images; the last guesses at both kinds: a Qwen's, and English text's."""
        return self.pixels, self.images, self.characters, self.pixels / 28**2 + self.characters / 4


@dataclass
class _Look:
    """Which rows are worth tokenizing."""

    largest: list[int]  # that may make the most tokens, each once
    middle: list[int]  # with about as many rows below as above
    counted: np.ndarray | None = None  # tokens of all rows, as `prepare` counted them

    def agrees(self, lengths: dict[int, int]) -> bool:
        """Whether the counts are of this run: of its processor, its limit of pixels."""
        return self.counted is not None and all(self.counted[row] == tokens for row, tokens in lengths.items())


def report_prompt_lengths(
    dataset: Dataset | IterableDataset,
    args: CPPOConfig,
    config: PretrainedConfig,
    num_tokens: Callable[[dict[str, Any]], int],
    packs: bool = False,
) -> None:
    """
    Log the most tokens that a prompt of the training data set makes, images included, the median, and what a micro-batch comes to with
    its views, where there is an accelerator; warn if prompt and completion together are more than vLLM or the model can hold. For the main process.

    The column `num_tokens` that `prepare` makes is taken, if the rows with its largest and middle numbers are found to have
    so many. Else the headers of each row's images and the length of its text are read, and the rows with the largest and
    middle ones tokenized. Streams and data sets with a transform are passed over. An error of this look is no reason to stop a
    run: what is wrong with a row is named later.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): that is trained on.
        args ([`CPPOConfig`]): of the run.
        config (`PretrainedConfig`): the model's.
        num_tokens (`Callable`): tokenizes a row's prompt as the trainer does, and counts.
        packs (`bool`): whether rollouts share their prompt's prefix.
    """
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return
    fault: Any = "no row"
    try:
        look = _counted_rows(dataset)
        lengths, fault = _tokenized(look, dataset, num_tokens) if look else ({}, fault)
        if look is None or not look.agrees(lengths):
            look = _measured_rows(dataset, args)
            lengths, fault = _tokenized(look, dataset, num_tokens)
        room = _room(args, config)
    except Exception as error:
        fault, lengths = error, {}
    if not lengths:
        logger.info(f"The lengths of the prompts were not measured ({fault}).")
        return
    row = max(lengths, key=lengths.__getitem__)
    # What to do about memory is for whoever has an accelerator: a CPU's rarely falls short, and nobody could plan by it.
    forward = "" if args.device.type == "cpu" else forward_text(args, lengths[row], packs)
    logger.info(
        f"Longest prompt found: {lengths[row]} tokens, images included (row {row} of {len(dataset)}, {len(lengths)} of which were "
        f"tokenized); {_median(look, lengths)}. A completion has at most {args.max_completion_length}.{forward}"
    )
    _warn(row, lengths[row], args, room)


def _tokenized(
    look: _Look, dataset: Dataset, num_tokens: Callable[[dict[str, Any]], int]
) -> tuple[dict[int, int], str]:
    lengths, fault = {}, "no row"
    for row in dict.fromkeys([*look.largest, *look.middle]):
        try:
            lengths[row] = num_tokens(dataset[row])
        except Exception as error:
            fault = f"row {row}: {error}"
    return lengths, fault


def _median(look: _Look, lengths: dict[int, int]) -> str:
    if look.agrees(lengths):
        return f"median {np.median(look.counted):g}"
    middle = [lengths[row] for row in look.middle if row in lengths]
    return f"median about {statistics.median(middle):g}" if middle else "the median is not known"


def _counted_rows(dataset: Dataset) -> _Look | None:
    """By the numbers that `prepare` wrote; `None` if it did not."""
    if "num_tokens" not in dataset.column_names or not len(dataset):
        return None
    counted = dataset.select_columns(["num_tokens"]).with_format("arrow")[:]["num_tokens"].to_numpy()
    if not np.issubdtype(counted.dtype, np.integer):
        return None
    order = np.argsort(counted, kind="stable")
    return _Look(order[-_LOOKED_AT:].tolist(), [int(order[len(order) // 2])], counted)


def _room(args: CPPOConfig, config: PretrainedConfig) -> dict[str, int]:
    """The most tokens of prompt and completion, by what sets it."""
    room = {"the model's max_position_embeddings": config.get_text_config().max_position_embeddings}
    if args.use_vllm and args.vllm_max_model_length is not None:
        room["vllm_max_model_length"] = args.vllm_max_model_length
    return room


def _warn(row: int, tokens: int, args: CPPOConfig, room: dict[str, int]) -> None:
    needed, name = tokens + (args.max_completion_length or 0), min(room, key=room.__getitem__)
    if needed <= room[name]:
        return
    logger.warning(
        f"Row {row} of the training data set makes a prompt of {tokens} tokens, images included; with "
        f"max_completion_length={args.max_completion_length} that is {needed}, more than the {room[name]} of {name}. "
        f"Set max_pixels (now {args.max_pixels}) or max_completion_length lower"
        f"{', vllm_max_model_length higher' if name == 'vllm_max_model_length' else ''}, or leave long prompts out: "
        f"{PREPARE} --max_prompt_length."
    )


def _measured_rows(dataset: Dataset, args: CPPOConfig) -> _Look:
    measures = [size.measures() for size in _sizes(dataset, args.max_pixels, args.min_pixels)]
    rows = range(len(measures))
    largest = [heapq.nlargest(_LOOKED_AT, rows, key=lambda row, by=by: measures[row][by]) for by in range(4)]
    middle = len(measures) // 2
    by_guess = sorted(rows, key=lambda row: measures[row][-1])[max(0, middle - 1) : middle + 2]
    return _Look(list(dict.fromkeys(row for rows in largest for row in rows)), by_guess)


def _sizes(dataset: Dataset, max_pixels: int | None, min_pixels: int | None) -> Iterator[_Size]:
    columns = [column for column in _COLUMNS if column in dataset.column_names]
    table = dataset.select_columns(columns).with_format("arrow")  # which decodes and copies no image
    for start in range(0, len(table), _BATCH):
        batch = table[start : start + _BATCH]
        for row in range(batch.num_rows):
            size, images = _Size(), []
            for column in columns:
                size.characters += _walk(batch[column][row], column, images)
            pixels = [max(min(number, max_pixels or number), min_pixels or 0) for number in images]
            size.pixels, size.images = sum(pixels), len(images)
            yield size


def _walk(value: pyarrow.Scalar, column: str, images: list[int]) -> int:
    """Characters of a value's texts; the pixels of its images are appended to `images`."""
    if not value.is_valid:
        return 0
    if isinstance(value, pyarrow.StructScalar):
        if set(value.keys()) == {"bytes", "path"}:
            data = value["bytes"]
            images.append(_pixels(pyarrow.BufferReader(data.as_buffer()) if data.is_valid else value["path"].as_py()))
            return 0
        return sum(_walk(value[key], column, images) for key in value)
    if isinstance(value, (pyarrow.ListScalar, pyarrow.LargeListScalar)):
        return sum(_walk(entry, column, images) for entry in value.values)
    if not isinstance(value, (pyarrow.StringScalar, pyarrow.LargeStringScalar)):
        return 0
    if column == "prompt":
        return len(value.as_py())
    images.append(_pixels(value.as_py()))
    return 0


def _pixels(source: Any) -> int:
    """By the header alone; 0 for what is no image file here, such as a URL."""
    try:
        if isinstance(source, str) and not os.path.isfile(source):
            return 0
        with Image.open(source) as picture:
            return picture.width * picture.height
    except Exception:  # PIL raises SyntaxError and its own DecompressionBombError too
        return 0

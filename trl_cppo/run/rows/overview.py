# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a run will do with its data, told before the first step: rows, images, rollouts and steps of an epoch."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, List
from transformers.utils import logging

from ...config import CPPOConfig
from .prompts import can_be_looked_into

_BATCH = 1000  # rows

logger = logging.get_logger(__name__)


def steps_of_an_epoch(num_rows: int, args: CPPOConfig) -> tuple[int, int]:
    """
    How many of the rows an epoch uses, and in how many optimizer steps. TRL drops rows that do not fill a generation batch.

    Args:
        num_rows (`int`): of the training data set.
        args ([`CPPOConfig`]): of the run.
    """
    prompts = args.generation_batch_size // args.num_generations
    batches = num_rows // prompts
    micro_batches = batches * args.steps_per_generation * args.num_iterations
    return batches * prompts, -(-micro_batches // args.gradient_accumulation_steps)


def check_epoch(dataset: Any, args: CPPOConfig) -> None:
    """
    For every process.

    Raises:
        `ValueError`: if the rows do not fill one generation batch. TRL would end such a run without a step and without an error.
    """
    if not isinstance(dataset, Dataset) or steps_of_an_epoch(len(dataset), args)[0]:
        return
    prompts = args.generation_batch_size // args.num_generations
    raise ValueError(
        f"The training data set has {len(dataset)} rows, and a generation batch takes {prompts} prompts "
        f"({args.generation_batch_size} rollouts, {args.num_generations} a prompt): not one step could be made. Set "
        "gradient_accumulation_steps (or steps_per_generation) or per_device_train_batch_size lower, or num_generations higher."
    )


def report_epoch(dataset: Any, args: CPPOConfig) -> None:
    """Log the rows, their images, and what an epoch makes of them. For the main process; a stream has no known end."""
    if not isinstance(dataset, Dataset):
        return
    rows, steps = steps_of_an_epoch(len(dataset), args)
    unused = len(dataset) - rows
    which = "others each epoch" if args.shuffle_dataset else "the last, in every epoch"
    images = f"; {images_text(count_images(dataset))}" if can_be_looked_into(dataset) else ""
    logger.info(
        f"Training data: {len(dataset)} rows{images}. An epoch: {rows} prompts x {args.num_generations} = "
        f"{rows * args.num_generations} rollouts in {steps} steps"
        + (f"; left over, since they do not fill a generation batch: {unused} ({which})" if unused else "")
        + f". This run: {_length_of_run(steps, args)}."
    )


def _length_of_run(steps: int, args: CPPOConfig) -> str:
    if args.max_steps > 0:
        return f"{args.max_steps} steps, {args.max_steps / steps:.3g} epochs"
    return f"{args.num_train_epochs:g} epochs, {-(-args.num_train_epochs * steps // 1):g} steps"


def count_images(dataset: Dataset) -> Counter:
    """How many rows have how many images in the columns `images` or `image`, without decoding one; of images in prompts none."""
    column = next((name for name in ("images", "image") if name in dataset.column_names), None)
    if column is None:
        return Counter()
    is_list = isinstance(dataset.features[column], List)
    counts: Counter = Counter()
    for batch in dataset.select_columns([column]).with_format("arrow").iter(_BATCH):
        values = batch[column]
        numbers = pc.fill_null(pc.list_value_length(values), 0) if is_list else pc.cast(pc.is_valid(values), "int32")
        counts.update(numbers.to_pylist())
    return counts


def images_text(counts: Counter) -> str:
    """The counts in words."""
    if not counts:
        return "images in the prompts"
    if len(counts) == 1:
        return f"images a row: {next(iter(counts))}"
    without = f" (rows without one: {counts[0]})" if counts[0] else ""
    return f"images a row: {min(counts)} to {max(counts)}{without}"

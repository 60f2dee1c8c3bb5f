# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Bringing the rollouts of a prompt together, once TRL has shuffled a generation batch and cut it into micro-batches."""

import math
from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..config import CPPOConfig


def window_size(args: CPPOConfig) -> int:
    """
    How many micro-batches, counted from the first of a generation batch, surely fall into one optimizer step.

    Generation batches begin at multiples of `steps_per_generation` micro-batches from an epoch's start, optimizer steps at
    multiples of `gradient_accumulation_steps`.
    """
    return math.gcd(args.steps_per_generation, args.gradient_accumulation_steps)


def micro_batches_matter(args: CPPOConfig) -> bool:
    """Whether the loss of an optimizer step depends on which of its rollouts share a micro-batch."""
    return (
        args.loss_type == "bnpo"  # a mean over the micro-batch's tokens
        or args.top_entropy_quantile < 1  # a quantile of theirs
        or args.entropy_coef != 0
        or args.use_adaptive_entropy
        or args.cpl_reduction == "token"
        or args.cpl_max_gradient_ratio is not None
    )


def regrouped(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    The same rows in as many micro-batches of the same size, those of a prompt after one another, and the prompts in the order
    in which they came first.

    Args:
        micro_batches (`list[dict[str, Any]]`): as TRL cut them: a tensor or list by rows, a 0-dim tensor, or `None` an entry.
            `prompt_keys`, int64, says which rows are of one prompt. Not modified.
    """
    batch = split_pixel_values_by_grid(
        {name: _joined([micro_batch[name] for micro_batch in micro_batches]) for name in micro_batches[0]}
    )
    keys = batch["prompt_keys"].tolist()
    firsts = {key: row for row, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(keys)), key=lambda row: (firsts[keys[row]], row))
    batch = {name: _taken(values, order) for name, values in batch.items()}
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(batch, len(micro_batches))]


def _of_batch(values: Any) -> bool:
    return values is None or (isinstance(values, torch.Tensor) and values.dim() == 0)


def _joined(parts: list[Any]) -> Any:
    if _of_batch(parts[0]):
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [value for part in parts for value in part]


def _taken(values: Any, rows: list[int]) -> Any:
    if _of_batch(values):
        return values
    return values[rows] if isinstance(values, torch.Tensor) else [values[row] for row in rows]

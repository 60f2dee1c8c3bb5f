# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of GRPOTrainer's scoring function: which there are, and what of each belongs to which row."""

import functools
import inspect
import itertools
from typing import Any

import trl.trainer.grpo_trainer as grpo_module

# How each argument of GRPOTrainer's scoring function is indexed. One that is in none of these sets is refused: a
# tensor handed on unextended would silently pair view rows with other rows' pixels.
BY_ROW = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
SHAPES = frozenset({"image_grid_thw", "image_sizes", "spatial_shapes"})  # they say how many tokens an image makes
PIXELS = SHAPES | {"pixel_values", "pixel_attention_mask", "image_position_ids"}
COUNTS = frozenset({"num_images", "num_tiles"})
_PASSED_ON = frozenset({"model", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss"})
SCORING_ARGUMENTS = BY_ROW | PIXELS | COUNTS | _PASSED_ON


def bind_scoring(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of `GRPOTrainer._get_per_token_logps_and_entropies` by name."""
    score = functools.partial(grpo_module.GRPOTrainer._get_per_token_logps_and_entropies, None)
    return inspect.signature(score).bind(*args, **kwargs).arguments


def given_arguments(scoring: dict[str, Any]) -> set[str]:
    """The names of the scoring arguments that are not `None`."""
    return {name for name, value in scoring.items() if value is not None}


def entries_of_rows(name: str, scoring: dict[str, Any], pixels_by_row: bool) -> list[int]:
    """How many entries along dimension 0 of a pixel tensor belong to each anchor row."""
    num_images = scoring["num_images"]
    if pixels_by_row:
        return [1] * len(num_images)
    if name == "pixel_values" and scoring.get("image_grid_thw") is not None:
        patches = iter(scoring["image_grid_thw"].prod(dim=-1).tolist())
        return [sum(itertools.islice(patches, count)) for count in num_images]
    return num_images if scoring.get("num_tiles") is None else scoring["num_tiles"]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks count with the package's own `count`."""

from importlib.metadata import version
from typing import Any

import torch


def score_views_apart(trainer: Any, model: torch.nn.Module, batch: dict[str, Any], views: list[torch.Tensor]) -> Any:
    """
    The authors' way: every row is scored on each view in a forward of its own.

    Args:
        trainer (`GRPOTrainer`): its scoring is used.
        batch (`dict[str, Any]`): the micro-batch.
        views (`list[torch.Tensor]`): pixel values of all rows, for each view.

    Returns:
        `torch.Tensor`: a scalar that depends on all scores. The CPL's own arithmetic is negligible and left out.
    """
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    rest = {name: batch[name] for name in ("image_grid_thw", "num_images", "mm_token_type_ids")}
    total = 0.0
    for pixel_values in views:
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, batch["completion_ids"].size(1), compute_entropy=True, pixel_values=pixel_values, **rest
        )
        total = total + 0.01 * logps.mean()
    return total


def versions() -> dict[str, str]:
    """Of what decides the counts."""
    return {name: version(name) for name in ("torch", "transformers", "trl")}

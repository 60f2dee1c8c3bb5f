# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Appending view rows to a scoring batch, so that one model forward scores the anchors and their views.

`B` rows, of which `N` have views; the extended batch has `B + 2N`: the anchors, the information-preserving rows, the
information-removing rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor

# How each argument of GRPOTrainer's scoring function is indexed. One that is in none of these sets is refused: a
# tensor handed on unextended would silently pair view rows with other rows' pixels.
_BY_ROW = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
_BY_IMAGE = frozenset({"pixel_values", "image_grid_thw"})
_PASSED_ON = frozenset({"model", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss"})


@dataclass(frozen=True)
class ViewPair:
    """The two views of one row's images: lists of RGB images, in the order of the row's images."""

    preserved: list[Image.Image]
    removed: list[Image.Image]


@dataclass(frozen=True)
class ViewScores:
    """What the forward says of the N gated rows, each tensor of shape `(N, T)`."""

    logps: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # anchor, preserved, removed; gradient flows
    entropies: torch.Tensor
    removed_entropies: torch.Tensor


def split_scores(logps: torch.Tensor, entropies: torch.Tensor, rows: list[int]) -> ViewScores:
    """
    Take the results of an extended batch apart.

    Args:
        logps (`torch.Tensor` of shape `(B + 2N, T)`): log-probabilities in the order of [`append_view_rows`].
        entropies (`torch.Tensor` of shape `(B + 2N, T)`): entropies, likewise.
        rows (`list[int]` of length N): the anchor rows that have views.
    """
    num_views = len(rows)
    num_anchors = logps.size(0) - 2 * num_views
    index = torch.tensor(rows, dtype=torch.long, device=logps.device)
    sizes = [num_anchors, num_views, num_views]
    anchor, preserved, removed = logps.split(sizes)
    anchor_entropies, _, removed_entropies = entropies.detach().split(sizes)
    return ViewScores((anchor[index], preserved, removed), anchor_entropies[index], removed_entropies)


def append_view_rows(
    scoring: dict[str, Any], rows: list[int], pairs: list[ViewPair], image_processor: BaseImageProcessor
) -> dict[str, Any]:
    """
    The scoring arguments with 2N view rows behind the B anchor rows.

    Args:
        scoring (`dict[str, Any]`):
            Arguments of `GRPOTrainer._get_per_token_logps_and_entropies` by name. Not modified.
        rows (`list[int]` of length N):
            The rows that have views.
        pairs (`list[ViewPair]` of length N):
            Their views.
        image_processor (`BaseImageProcessor`):
            The model's own image processor; the pixels of a view go through it as the anchor's did.

    Returns:
        `dict[str, Any]`: the extended arguments; `scoring` itself where N = 0.

    Raises:
        `NotImplementedError`: for an argument or an image processor output that is not known here.
        `ValueError`: if a view does not make as many patches as its image.
    """
    used = {name for name, value in scoring.items() if value is not None}
    unknown = used - _BY_ROW - _BY_IMAGE - _PASSED_ON - {"num_images"}
    if unknown:
        raise NotImplementedError(
            f"The scoring argument(s) {', '.join(sorted(unknown))} are not known to CPPOTrainer, so view rows cannot "
            "be appended safely. This model family or TRL version is not supported yet; cpl_coef=0 trains with GRPO."
        )
    if not rows:
        return scoring
    extended = dict(scoring)
    for name in _BY_ROW & used:
        view_rows = scoring[name][rows]
        extended[name] = torch.cat([scoring[name], view_rows, view_rows])
    images = [pair.preserved for pair in pairs] + [pair.removed for pair in pairs]
    for name, tensor in _process(image_processor, images, scoring, rows).items():
        extended[name] = torch.cat([scoring[name], tensor.to(scoring[name].device, scoring[name].dtype)])
    extended["num_images"] = scoring["num_images"] + [len(row_images) for row_images in images]
    return extended


def _process(
    image_processor: BaseImageProcessor, images: list[list[Image.Image]], scoring: dict[str, Any], rows: list[int]
) -> dict[str, torch.Tensor]:
    """Pixel tensors of the view rows, checked against the anchor rows: same tensors, same patch grids."""
    processed = image_processor(images=images, return_tensors="pt")
    expected = {name for name in _BY_IMAGE if scoring[name] is not None}
    if set(processed) != expected:
        raise NotImplementedError(
            f"{type(image_processor).__name__} returned {sorted(processed)} for the views, but the batch holds "
            f"{sorted(expected)}. This model family is not supported yet; cpl_coef=0 trains with GRPO."
        )
    grids = torch.split(scoring["image_grid_thw"], scoring["num_images"])
    anchor_grids = torch.cat([grids[row] for row in rows]).cpu()
    view_grids = processed["image_grid_thw"].cpu()
    if not torch.equal(torch.cat([anchor_grids, anchor_grids]), view_grids):
        raise ValueError(
            f"The views make patch grids {view_grids.tolist()} where their images make {anchor_grids.tolist()} "
            "(once for each of the two views). A view must keep the size that the model's processor sees."
        )
    return dict(processed)

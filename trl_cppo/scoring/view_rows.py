# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Appending view rows to a scoring batch, so that one model forward scores the anchors and their views.

`B` rows, of which `N` have views; the extended batch has `B + 2N`: the anchors, the information-preserving rows, the
information-removing rows.
"""

from typing import Any

import torch
import torch.nn.functional as F

from ..method.request import ViewPair
from .arguments import BY_ROW, COUNTS, PIXELS, SCORING_ARGUMENTS, SHAPES, entries_of_rows, given_arguments
from .families import ViewProcessor


def append_view_rows(
    scoring: dict[str, Any], rows: list[int], pairs: list[ViewPair], process: ViewProcessor
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
        process (`ViewProcessor`):
            Makes the pixel tensors of the views as the anchor's were made, see [`~trl_cppo.scoring.families.ViewProcessor`].

    Returns:
        `dict[str, Any]`: the extended arguments; `scoring` itself where N = 0.

    Raises:
        `NotImplementedError`: for an argument that is not known here, or pixel tensors that the anchor has and the
            views lack.
        `ValueError`: if the views of a row do not fill the same image tokens as its images.
    """
    used = given_arguments(scoring)
    unknown = used - SCORING_ARGUMENTS
    if unknown:
        raise NotImplementedError(
            f"The scoring argument(s) {', '.join(sorted(unknown))} are not known to CPPOTrainer, so view rows cannot "
            "be appended safely. This model family or TRL version is not supported yet; cpl_coef=0 trains with GRPO."
        )
    if not rows:
        return scoring
    extended = dict(scoring)
    for name in BY_ROW & used:
        view_rows = scoring[name][rows]
        extended[name] = torch.cat([scoring[name], view_rows, view_rows])
    for name in COUNTS & used:
        extended[name] = scoring[name] + 2 * [scoring[name][row] for row in rows]
    firsts, order = _distinct(pairs)
    first_rows = [rows[first] for first in firsts]
    views = process([pairs[first].preserved for first in firsts] + [pairs[first].removed for first in firsts])
    for name in sorted(PIXELS & used):
        if name not in views:
            raise NotImplementedError(
                f"The image processor made {sorted(views)} of the views, but the batch holds {name} too. This model "
                "family is not supported yet; cpl_coef=0 trains with GRPO."
            )
        entries = entries_of_rows(name, scoring, process.pixels_by_row)
        _check_same_shape(name, views[name], scoring[name], entries, first_rows)
        padding = -1 if name == "image_position_ids" else 0
        extended[name] = _concatenate(
            scoring[name], views[name], 2 * [entries[row] for row in first_rows], order, padding
        )
    return extended


def view_keys(keys: list[int], rows: list[int]) -> list[tuple[str, int]]:
    """Of the rows of an extended batch, which are of one prompt and one kind, from the anchors' keys: B + 2N keys."""
    views = [keys[row] for row in rows]
    kinds = {"anchor": keys, "preserved": views, "removed": views}
    return [(kind, key) for kind, kind_keys in kinds.items() for key in kind_keys]


def _distinct(pairs: list[ViewPair]) -> tuple[list[int], list[int]]:
    """
    The rollouts of one prompt share a pair, whose pixels are made once: the place of each distinct pair, and of each
    view row the number of its images among those of the distinct pairs, the preserved before the removed.
    """
    numbers: dict[int, int] = {}
    order = [numbers.setdefault(id(pair), len(numbers)) for pair in pairs]
    firsts = [order.index(number) for number in range(len(numbers))]
    return firsts, order + [number + len(firsts) for number in order]


def _check_same_shape(
    name: str, views: torch.Tensor, anchors: torch.Tensor, entries: list[int], rows: list[int]
) -> None:
    """A view of another size would fill other image tokens, or push the pixels of every row behind it out of place."""
    expected = 2 * sum(entries[row] for row in rows)
    if views.size(0) != expected:
        raise ValueError(f"The views make {views.size(0)} entries of {name} where their images make {expected}.")
    if name in SHAPES:
        by_row = torch.split(anchors, entries)
        shapes = torch.cat([by_row[row] for row in rows]).cpu()
        if not torch.equal(torch.cat([shapes, shapes]), views.cpu()):
            raise ValueError(
                f"The views make {name} {views.tolist()} where their images make {shapes.tolist()} (once for each of "
                "the two views). A view must keep the size that the model's processor sees."
            )


def _concatenate(
    anchors: torch.Tensor, views: torch.Tensor, entries: list[int], order: list[int], padding: int
) -> torch.Tensor:
    """
    Along dimension 0: the anchors, then the views, cut into parts of so many `entries`, in this order.

    The ones or the others are padded at the end to the larger: processors pad to the largest image they see.
    """
    views = views.to(anchors.device, anchors.dtype)
    shape = [max(sizes) for sizes in zip(anchors.shape[1:], views.shape[1:], strict=True)]

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        missing = [new - old for new, old in zip(shape, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [side for amount in reversed(missing) for side in (0, amount)], value=padding)

    parts = torch.split(padded(views), entries)
    return torch.cat([padded(anchors), *(parts[number] for number in order)])

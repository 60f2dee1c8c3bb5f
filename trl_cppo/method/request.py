# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a scoring forward is asked beyond TRL's arguments, and what it answers.

Shapes: `B` rows of a micro-batch, `N` gated rows among them, `T` completion tokens.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from PIL import Image


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
        logps (`torch.Tensor` of shape `(B + 2N, T)`): log-probabilities in the order of [`~trl_cppo.scoring.view_rows.append_view_rows`].
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


@dataclass
class ScoringRequest:
    """Of one generation batch or one loss. Without prompts rows are plain, without gated rows there are anchors alone."""

    prompts: list[Hashable] | None = None  # of length B: which rows are of one prompt
    rows: list[int] = field(default_factory=list)  # the gated ones
    pairs: list[ViewPair] = field(default_factory=list)  # their views
    mask: torch.Tensor | None = None  # (N, T), bool: the tokens that count
    everywhere: bool = False  # whether divergences are asked for at all of these, not at the perception tokens alone
    weights: list[float] | None = None  # of the N rows, where there is a budget of views; None: all are 1
    num_undrawn: int = 0  # rows that are gated too, and get no views for that budget

    # What is answered.
    logps: torch.Tensor | None = None  # (B + 2N, T)
    entropies: torch.Tensor | None = None  # (B + 2N, T)
    selected: torch.Tensor | None = None  # (N, T), bool: the perception tokens
    divergences: tuple[torch.Tensor, torch.Tensor] | None = None  # d⁺ and d⁻, each (N, T), 0 elsewhere

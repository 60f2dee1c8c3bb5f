# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a scoring forward is asked beyond TRL's arguments, and what it answers.

Shapes: `B` rows of a micro-batch, `N` gated rows among them, `T` completion tokens.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from .view_batch import ViewPair


@dataclass
class ScoringRequest:
    """Of one generation batch or one loss. Without prompts rows are plain, without gated rows there are anchors alone."""

    prompts: list[Hashable] | None = None  # of length B: which rows are of one prompt
    rows: list[int] = field(default_factory=list)  # the gated ones
    pairs: list[ViewPair] = field(default_factory=list)  # their views
    mask: torch.Tensor | None = None  # (N, T), bool: the tokens that count

    # What is answered.
    logps: torch.Tensor | None = None  # (B + 2N, T)
    entropies: torch.Tensor | None = None  # (B + 2N, T)
    selected: torch.Tensor | None = None  # (N, T), bool: the perception tokens
    divergences: tuple[torch.Tensor, torch.Tensor] | None = None  # d⁺ and d⁻, each (N, T), 0 where not selected

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
A budget of views (`cpl_rollouts_per_prompt`): which of a prompt's gated rollouts get some, and what each then weighs.

Shapes: `R` rollouts of all processes, groups of `G` after one another.
"""

import torch

from .view_maker import generator_of

_STREAM = "cpl_rollouts_per_prompt"  # not the views', which a budget leaves as they are


def drawn_weights(
    gated: list[bool], group_size: int, budget: int, seed: int, key: tuple[str | int, ...]
) -> list[float | None]:
    """
    At most K gated rollouts of each prompt, drawn uniformly without replacement, and the weights that keep sums over rollouts
    unbiased: of n gated ones, each is drawn with probability K/n and weighs n/K.

    Args:
        gated (`list[bool]` of length R): which rollouts have a CPL and images. Of all processes: a group may lie on two.
        group_size (`int`): G.
        budget (`int`): K.
        seed (`int`), key (`tuple[str | int, ...]`): of the run, and what identifies the generation batch in it. They alone, and
            a prompt's place, decide the draw: every process makes the same, and a resumed run too.

    Returns:
        `list[float | None]` of length R: `None` for a rollout that is not gated, 0 for one that is and gets no views.
    """
    weights: list[float | None] = [0.0 if is_gated else None for is_gated in gated]
    for prompt, first in enumerate(range(0, len(gated), group_size)):
        rows = [row for row in range(first, min(first + group_size, len(gated))) if gated[row]]
        drawn = rows
        if len(rows) > budget:
            order = torch.randperm(len(rows), generator=generator_of(seed, _STREAM, *key, prompt))
            drawn = [rows[place] for place in order[:budget].tolist()]
        for row in drawn:
            weights[row] = len(rows) / len(drawn)
    return weights

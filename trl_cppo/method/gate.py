# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Which rollouts did better than their group: the condition that is CPPO's own (arXiv 2601.00501) among those of the gate, which
[`~trl_cppo.CPPOTrainer`] puts together in `_gated`.

Shapes: `R` rollouts of all processes, groups of `G` after one another, `F` reward functions.
"""

import torch

# Rewards and weights come in float32. Of equal sums of them, each product is off by up to 2⁻²³ of itself, a difference of
# two sums by twice as much.
_ROUNDING = 2.0**-22


def above_group_mean(
    rewards: torch.Tensor, weights: torch.Tensor, group_size: int, normalize_each: bool = False
) -> torch.Tensor:
    """
    The rollouts whose advantage is positive by more than rounding.

    TRL's advantages are float32: where all rewards of a group are equal, their mean may fall a last place below them. That
    advantage of some 10⁻⁴ hardly scales a gradient, but it has a sign, and a sign is what the gate asks for.

    Args:
        rewards (`torch.Tensor` of shape `(R, F)`, float): NaN where a function did not score a rollout; a rollout that none
            scored is never above.
        weights (`torch.Tensor` of shape `(F,)`, float): `reward_weights`.
        group_size (`int`): G.
        normalize_each (`bool`, *optional*, defaults to `False`): whether each function's rewards are normalised by group
            before they are summed (TRL's `multi_objective_aggregation="normalize_then_sum"`).

    Returns:
        `torch.Tensor` of shape `(R,)`, bool, on the CPU.
    """
    grouped = rewards.detach().cpu().double().view(-1, group_size, rewards.size(1))
    weights = weights.detach().cpu().double()
    unscored = grouped.isnan().all(dim=2)
    sizes = (grouped * weights).abs()
    if normalize_each:
        centred = grouped - grouped.nanmean(dim=1, keepdim=True)
        # A function whose rewards are equal says nothing: neither by rounding, nor by its size over a spread of nearly 0.
        equal = centred.abs().nan_to_num().amax(dim=1, keepdim=True) <= _ROUNDING * grouped.abs().nan_to_num().amax(
            dim=1, keepdim=True
        )
        centred, sizes = centred.masked_fill(equal, 0.0), sizes.masked_fill(equal, 0.0)
        count = centred.isfinite().sum(dim=1, keepdim=True)
        spread = (centred.square().nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + 1e-4  # as TRL's
        grouped, sizes = centred / spread, sizes / spread
    sums = (grouped * weights).nansum(dim=2).masked_fill(unscored, torch.nan)
    excess = sums - (sums.nanmean() if normalize_each else sums.nanmean(dim=1, keepdim=True))
    return (excess > _ROUNDING * sizes.nansum(dim=2).amax(dim=1, keepdim=True)).flatten()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""λ · CPL of a micro-batch: from what its scoring answered to the loss that is added, free of TRL.

Shapes: `B` rows of a micro-batch, `N` rows among them that have views, `T` completion tokens.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from .losses import divergence_contrast, masked_mean, perception_token_mask, sampled_divergences, squared_gradients
from .metrics import SUMS, cpl_sums
from .request import ScoringRequest, ViewScores, split_scores


@dataclass(frozen=True)
class Objective:
    """The settings of [`CPPOConfig`] that say what the CPL is, by their names there."""

    cpl_coef: float
    cpl_temperature: float
    cpl_divergence: str
    perception_token_ratio: float | None
    perception_score: str
    min_entropy_shift: float
    cpl_reduction: str
    cpl_max_gradient_ratio: float | None

    @classmethod
    def of(cls, args: Any) -> "Objective":
        """From a [`CPPOConfig`]."""
        return cls(**{setting.name: getattr(args, setting.name) for setting in fields(cls)})

    def select(self, entropies: torch.Tensor, removed_entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The perception tokens; see [`~trl_cppo.method.losses.perception_token_mask`]."""
        return perception_token_mask(
            entropies,
            removed_entropies,
            mask,
            ratio=self.perception_token_ratio,
            score=self.perception_score,
            min_shift=self.min_entropy_shift,
        )

    def answer(self, request: ScoringRequest) -> ViewScores:
        """
        Fill in the selection and the divergences of a scored request, where its forward has not.

        Returns:
            [`ViewScores`]: what the forward says of the rows that have views.
        """
        scores = split_scores(request.logps, request.entropies, request.rows)
        if request.divergences is None:
            request.selected = self.select(scores.entropies, scores.removed_entropies, request.mask)
            tokens = request.mask if request.everywhere else request.selected
            request.divergences = sampled_divergences(scores.logps, tokens, self.cpl_divergence)
        return scores

    def loss(
        self,
        request: ScoringRequest,
        policy_loss: torch.Tensor,
        num_rows: int,
        steps: int,
        num_gated: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The micro-batch's share of λ · CPL, so scaled that the shares of a window add up to it, before the bound.

        Args:
            request ([`ScoringRequest`]): scored; see [`answer`] for the rest.
            policy_loss (`torch.Tensor`, 0-dim): L_GRPO of the micro-batch.
            num_rows (`int`): B.
            steps (`int`): micro-batches of an optimizer step.
            num_gated (`torch.Tensor`, 0-dim): gated rows of an optimizer step, with views or not, on average over the processes.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the share, 0-dim, with its gradient; and the sums of this process that
                [`~trl_cppo.method.metrics.cpl_metrics`] reads.
        """
        exact = request.divergences is not None
        scores = self.answer(request)
        loss = divergence_contrast(*request.divergences, self.cpl_temperature)
        weights = loss.new_ones(len(loss)) if request.weights is None else loss.new_tensor(request.weights)
        at_logps = loss
        if exact:  # it comes from hidden states: what it does to the log-probs is told by its estimate
            estimates = sampled_divergences(scores.logps, request.selected, "k3")
            at_logps = divergence_contrast(*estimates, self.cpl_temperature)

        def share_of(token_losses: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
            if self.cpl_reduction == "token":
                reduced = self._token_mean(token_losses, request, weights, factors) / steps
            else:
                reduced = (masked_mean(token_losses, request.selected, dim=1) * factors).sum() / num_gated
            return self.cpl_coef * reduced

        # The square of √w times a row's gradient is w times its square: on average that of all gated rows, which is told. What is
        # bounded is the gradient that is added.
        told = [policy_loss, share_of(at_logps, weights.sqrt())]
        told += [] if request.weights is None else [share_of(at_logps, weights)]
        squares = squared_gradients(tuple(told), request.logps)
        squares = [squares[0], squares[1], squares[-1]]
        return share_of(loss, weights), cpl_sums(scores, request, loss, weights, num_rows, *squares)

    @staticmethod
    def _token_mean(
        token_losses: torch.Tensor, request: ScoringRequest, weights: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """
        Σ factor · loss over Σ weight, both over the perception tokens of a micro-batch; times the rows that those with views stand
        for, over the gated ones: a micro-batch may hold more or less than its prompts' share of the drawn rows.
        """
        total = (torch.where(request.selected, token_losses, 0.0) * factors[:, None]).sum()
        tokens = (request.selected * weights[:, None]).sum().clamp(min=1)
        return total / tokens * (weights.sum() / max(1, len(weights) + request.num_undrawn))

    def bounded(self, share: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """
        The share under `cpl_max_gradient_ratio`, given the sums of all processes. Where the policy loss has no gradient the CPL,
        too, gets none: the bound holds there as well.
        """
        limit = self.cpl_max_gradient_ratio
        squares = [totals[SUMS.index(name)] for name in ("policy_gradient", "added_gradient")]
        policy_norm, share_norm = torch.stack(squares).sqrt().tolist()
        if limit is None or share_norm <= limit * policy_norm:
            return share
        return share * (limit * policy_norm / share_norm)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The `cpl/*` metrics, as sums and counts that add up over processes.

Shapes: `N` gated rows, `T` completion tokens.
"""

import torch

from .losses import masked_mean
from .request import ViewScores


def _quotient(total: float, count: float) -> float:
    # NaN where there is nothing to average: TRL logs None.
    return total / count if count else float("nan")


class WindowSums:
    """
    Sums over the micro-batches of a logging step. Of a quotient's two parts, so that a micro-batch counts by what is in it: the
    mean of micro-batches' quotients would follow one that has hardly a policy gradient, or one gated row.
    """

    def __init__(self):
        self._sums: torch.Tensor | None = None

    def add(self, sums: torch.Tensor) -> None:
        """Of one micro-batch and all processes, shape `(12,)`, as [`cpl_metrics`] takes them; on the CPU."""
        sums = sums.double()  # counts of tokens outgrow float32
        self._sums = sums if self._sums is None else self._sums + sums

    def settle(self) -> torch.Tensor | None:
        """What was added since the last call, float64; `None` if nothing was."""
        sums, self._sums = self._sums, None
        return sums


@torch.no_grad()
def cpl_sums(
    scores: ViewScores,
    completion_mask: torch.Tensor,
    selected: torch.Tensor,
    divergences: tuple[torch.Tensor, torch.Tensor],
    token_loss: torch.Tensor,
    num_rows: int,
) -> torch.Tensor:
    """
    Sums and counts of one micro-batch on one process.

    Args:
        scores (`ViewScores`): log-probabilities and entropies, each of shape `(N, T)`.
        completion_mask (`torch.Tensor` of shape `(N, T)`, bool): the tokens that count.
        selected (`torch.Tensor` of shape `(N, T)`, bool): the perception tokens.
        divergences (`tuple[torch.Tensor, torch.Tensor]`, each of shape `(N, T)`, float): d⁺ and d⁻, 0 where not selected.
        token_loss (`torch.Tensor` of shape `(N, T)`, float): the CPL of each token.
        num_rows (`int`): rows of the micro-batch, gated or not.

    Returns:
        `torch.Tensor` of shape `(10,)`, float32: the first ten of what [`cpl_metrics`] reads.
    """
    to_preserved, to_removed = divergences
    shift = (scores.removed_entropies.float() - scores.entropies.float()).masked_fill(~completion_mask, 0.0)
    sums = [
        masked_mean(token_loss, selected, dim=1).sum(),
        token_loss.masked_fill(~selected, 0.0).sum(),
        torch.tensor(len(token_loss)),
        torch.tensor(num_rows),
        completion_mask.sum(),
        selected.sum(),
        shift.sum(),
        to_preserved.sum(),
        to_removed.sum(),
        ((to_preserved < to_removed) & selected).sum(),
    ]
    return torch.stack([value.to(selected.device, torch.float32) for value in sums])


def cpl_metrics(sums: torch.Tensor, reduction: str) -> dict[str, float]:
    """
    The metrics from the sums of all processes.

    Args:
        sums (`torch.Tensor` of shape `(12,)`, float): added-up results of [`cpl_sums`], then those of
            [`~trl_cppo.method.losses.squared_gradients`] for the policy loss and for λ · CPL.
        reduction (`str`): `args.cpl_reduction`; `cpl/loss` is the mean over gated rows or over perception tokens.

    Returns:
        `dict[str, float]`: the same keys whatever the sums; NaN where nothing can be averaged.
    """
    row_loss, token_loss, gated, rows, tokens, selected, shift, preserved, removed, correct, *squares = sums.tolist()
    # A gated row without a perception token has a loss of 0, in either reduction.
    loss = (row_loss, gated) if reduction == "sequence" else (token_loss, max(selected, 1.0) if gated else 0)
    return {
        "cpl/loss": _quotient(*loss),
        "cpl/gated_ratio": _quotient(gated, rows),
        "cpl/perception_ratio": _quotient(selected, tokens),
        "cpl/entropy_shift": _quotient(shift, tokens),
        "cpl/divergence_preserved": _quotient(preserved, selected),
        "cpl/divergence_removed": _quotient(removed, selected),
        "cpl/contrast_accuracy": _quotient(correct, selected),
        "cpl/gradient_ratio": _quotient(squares[1], squares[0]) ** 0.5 if gated else float("nan"),
    }

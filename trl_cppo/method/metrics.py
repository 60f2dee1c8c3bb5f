# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The `cpl/*` metrics, as sums and counts that add up over processes.

Shapes: `N` rows that have views, `T` completion tokens.
"""

import torch

from .losses import masked_mean
from .request import ScoringRequest, ViewScores


def _quotient(total: float, count: float) -> float:
    # NaN where there is nothing to average: TRL logs None.
    return total / count if count else float("nan")


# What each process adds up in a micro-batch. Squares of gradients stand among them for the bound's sake, which needs the totals.
SUMS = (
    "row_loss", "token_loss", "gated", "rows", "tokens", "selected", "shift", "preserved", "removed", "correct", "policy_gradient",
    "cpl_gradient", "added_gradient",
)  # fmt: skip


class WindowSums:
    """
    Sums over the micro-batches of a logging step. Of a quotient's two parts, so that a micro-batch counts by what is in it: the
    mean of micro-batches' quotients would follow one that has hardly a policy gradient, or one gated row.
    """

    def __init__(self):
        self._sums: torch.Tensor | None = None

    def add(self, sums: torch.Tensor) -> None:
        """Of one micro-batch and all processes, in the order of [`SUMS`]; on the CPU."""
        sums = sums.double()  # counts of tokens outgrow float32
        self._sums = sums if self._sums is None else self._sums + sums

    def settle(self) -> torch.Tensor | None:
        """What was added since the last call, float64; `None` if nothing was."""
        sums, self._sums = self._sums, None
        return sums


@torch.no_grad()
def cpl_sums(
    scores: ViewScores,
    request: ScoringRequest,
    token_loss: torch.Tensor,
    weights: torch.Tensor,
    num_rows: int,
    policy_gradient: torch.Tensor,
    cpl_gradient: torch.Tensor,
    added_gradient: torch.Tensor,
) -> torch.Tensor:
    """
    Sums and counts of one micro-batch on one process: of all gated rows, or, where not all have views, estimates of them.

    Args:
        scores (`ViewScores`): log-probabilities and entropies, each of shape `(N, T)`.
        request (`ScoringRequest`): answered; its divergences are 0 where nothing is selected.
        token_loss (`torch.Tensor` of shape `(N, T)`, float): the CPL of each token.
        weights (`torch.Tensor` of shape `(N,)`, float): how many gated rows each row stands for.
        num_rows (`int`): rows of the micro-batch, gated or not.
        policy_gradient, cpl_gradient (`torch.Tensor`, 0-dim): [`~trl_cppo.method.losses.squared_gradients`] of L_GRPO and λ · CPL.
        added_gradient (`torch.Tensor`, 0-dim): that of λ · CPL as it is added. Where not all gated rows have views, the former
            estimates what it would be if they had, and this one is larger.

    Returns:
        `torch.Tensor` of shape `(len(SUMS),)`, float32, in the order of [`SUMS`].
    """
    (to_preserved, to_removed), selected, by_token = request.divergences, request.selected, weights[:, None]
    shift = (scores.removed_entropies.float() - scores.entropies.float()).masked_fill(~request.mask, 0.0)
    sums = {
        "row_loss": (masked_mean(token_loss, selected, dim=1) * weights).sum(),
        "token_loss": (token_loss.masked_fill(~selected, 0.0) * by_token).sum(),
        "gated": torch.tensor(len(token_loss) + request.num_undrawn),
        "rows": torch.tensor(num_rows),
        "tokens": (request.mask * by_token).sum(),
        "selected": (selected * by_token).sum(),
        "shift": (shift * by_token).sum(),
        "preserved": (to_preserved * by_token).sum(),
        "removed": (to_removed * by_token).sum(),
        "correct": (((to_preserved < to_removed) & selected) * by_token).sum(),
        "policy_gradient": policy_gradient,
        "cpl_gradient": cpl_gradient,
        "added_gradient": added_gradient,
    }
    return torch.stack([sums[name].to(selected.device, torch.float32) for name in SUMS])


def cpl_metrics(sums: torch.Tensor, reduction: str) -> dict[str, float]:
    """
    The metrics from the sums of all processes.

    Args:
        sums (`torch.Tensor` of shape `(len(SUMS),)`, float): added-up results of [`cpl_sums`].
        reduction (`str`): `args.cpl_reduction`; `cpl/loss` is the mean over gated rows or over perception tokens.

    Returns:
        `dict[str, float]`: the same keys whatever the sums; NaN where nothing can be averaged.
    """
    of = dict(zip(SUMS, sums.tolist(), strict=True))
    # A gated row without a perception token has a loss of 0, in either reduction.
    by_row = of["row_loss"], of["gated"]
    by_token = of["token_loss"], max(of["selected"], 1.0) if of["gated"] else 0
    ratio = _quotient(of["cpl_gradient"], of["policy_gradient"]) ** 0.5 if of["gated"] else float("nan")
    return {
        "cpl/loss": _quotient(*(by_row if reduction == "sequence" else by_token)),
        "cpl/gated_ratio": _quotient(of["gated"], of["rows"]),
        "cpl/perception_ratio": _quotient(of["selected"], of["tokens"]),
        "cpl/entropy_shift": _quotient(of["shift"], of["tokens"]),
        "cpl/divergence_preserved": _quotient(of["preserved"], of["selected"]),
        "cpl/divergence_removed": _quotient(of["removed"], of["selected"]),
        "cpl/contrast_accuracy": _quotient(of["correct"], of["selected"]),
        "cpl/gradient_ratio": ratio,
    }

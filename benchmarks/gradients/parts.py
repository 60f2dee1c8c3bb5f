# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The gradient of the Contrastive Perception Loss with respect to the weights, taken apart.

Shapes: `B` rows of a batch, `N` gated rows, `T` completion tokens, `V` vocabulary, `P` weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from trl_cppo import CPPOTrainer
from trl_cppo.method.losses import divergence_contrast, masked_mean, squared_gradients, token_divergence
from trl_cppo.method.request import split_scores
from trl_cppo.scoring.head import observed_head

from ..lib import digits_lab as lab

SHIFT_BOUNDS = (0.01, 0.1, 0.5)  # nats
LEAST_SHIFT = 0.1  # nats, as `min_entropy_shift`


class Probe(CPPOTrainer):
    """Keeps what a loss computation consists of, with its graph."""

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        if self._request.mask is None:
            return score(model, *args, **kwargs)
        with observed_head(lambda arguments, results: setattr(self, "head", arguments[:2])):
            return score(model, *args, **kwargs)

    def _cpl_share(self, inputs, request, policy_loss):
        share = super()._cpl_share(inputs, request, policy_loss)
        self.request, self.policy_loss, self.contrast = request, policy_loss, share / self.args.cpl_coef
        return share


@dataclass
class Scored:
    """One batch's losses as functions of its scores, which are functions of the weights."""

    weights: list[torch.Tensor]
    policy_loss: torch.Tensor
    contrast: torch.Tensor
    logps: torch.Tensor  # (B + 2N, T): the anchors, the preserving views, the removing views
    log_probs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (N, T, V) each: anchor, preserved, removed
    rows: list[int]  # the gated ones
    mask: torch.Tensor  # (N, T), bool: the tokens that count
    selected: torch.Tensor  # (N, T), bool
    perception: torch.Tensor  # (N, T), bool: true perception tokens

    @property
    def views(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities of the sampled tokens, 0 where not selected: anchor, preserved, removed, each `(N, T)`."""
        logps = split_scores(self.logps, self.logps, self.rows).logps
        return tuple(part.masked_fill(~self.selected, 0.0) for part in logps)

    @property
    def wrong(self) -> torch.Tensor:
        """Where the preserving view hurts at least as much as the removing one, d⁺ ≥ d⁻: `(N, T)`, bool."""
        anchor, preserved, removed = self.views
        return token_divergence(anchor, preserved) >= token_divergence(anchor, removed)

    @property
    def shift(self) -> torch.Tensor:
        """ΔH, shape `(N, T)`, without a gradient."""
        anchor, _, removed = (lab.entropy(log_probs.detach()) for log_probs in self.log_probs)
        return removed - anchor

    def gradient(self, outputs: torch.Tensor, upstream: torch.Tensor | None = None) -> torch.Tensor:
        """Of some outputs, weighted by `upstream`, with respect to all weights: shape `(P,)`."""
        return flat(torch.autograd.grad(outputs, self.weights, upstream, retain_graph=True))

    def reduce(self, token_losses: torch.Tensor) -> torch.Tensor:
        """`(N, T)` to the batch's loss, as the trainer reduces the CPL."""
        return masked_mean(token_losses, self.selected, dim=1).mean()

    def everywhere(self, tokens: torch.Tensor) -> torch.Tensor:
        """A mask `(N, T)` of tokens in all three scorings, as float `(B + 2N, T)`."""
        count = len(self.rows)
        mask = torch.zeros_like(self.logps)
        mask[self.rows] = mask[-2 * count : -count] = mask[-count:] = tokens.to(mask.dtype)
        return mask


def flat(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def score(probe: Probe, batch: dict[str, Any]) -> Scored:
    """The forward of one training batch."""
    probe.compute_loss(probe.model, batch)
    return scored(probe, batch)


def scored(probe: Probe, batch: dict[str, Any]) -> Scored:
    """What the last forward left behind."""
    request, (hidden, head) = probe.request, probe.head
    rows, logps = request.rows, request.logps
    logits = (hidden @ head.T).view(len(logps), -1, len(head))[:, -logps.size(1) :]
    completions = batch["completion_ids"]
    return Scored(
        weights=[weight for weight in probe.model.parameters() if weight.requires_grad],
        policy_loss=probe.policy_loss,
        contrast=probe.contrast,
        logps=logps,
        log_probs=split_scores(logits.float().log_softmax(dim=-1), logps, rows).logps,
        rows=rows,
        mask=request.mask,
        selected=request.selected,
        perception=lab.true_perception_tokens(probe.processing_class, completions)[rows] & request.mask,
    )


def contrast_parts(scored: Scored) -> dict[str, torch.Tensor]:
    """
    The gradient of the authors' CPL, whole and in parts, each of shape `(P,)`.

    The loss is a function of the log-probs alone, so a part is the product of the model's Jacobian with some of the
    entries of the loss's gradient there: those of a scoring, or of some tokens.
    """
    (upstream,) = torch.autograd.grad(scored.contrast, scored.logps, retain_graph=True)
    count = len(scored.rows)
    sizes = [len(upstream) - 2 * count, count, count]
    of_rows = torch.eye(3).repeat_interleave(torch.tensor(sizes), dim=1)
    blocks = dict(zip(("anchor", "positive", "negative"), of_rows, strict=True))

    def part(block: str | None = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
        kept = upstream if block is None else upstream * blocks[block][:, None]
        return scored.gradient(scored.logps, kept if tokens is None else kept * scored.everywhere(tokens))

    anchor, preserved, removed = scored.views
    wrong, shift = scored.wrong, scored.shift
    parts = {"cpl": part()} | {block: part(block) for block in blocks}
    through_removed = divergence_contrast(
        token_divergence(anchor, preserved).detach(), token_divergence(anchor, removed.detach())
    )
    parts["anchor: through d⁻"] = scored.gradient(scored.reduce(through_removed))
    parts["anchor: through d⁺"] = parts["anchor"] - parts["anchor: through d⁻"]
    for block, whole in (("cpl", None), ("negative", "negative")):
        parts[f"{block}: tokens with d⁺ < d⁻"] = part(whole, ~wrong)
        parts[f"{block}: tokens with d⁺ ≥ d⁻"] = parts[block] - parts[f"{block}: tokens with d⁺ < d⁻"]
    for low, high in zip((0.0, *SHIFT_BOUNDS), (*SHIFT_BOUNDS, float("inf")), strict=True):
        name = f"negative: {low} ≤ ΔH < {high}" if high < float("inf") else f"negative: ΔH ≥ {low}"
        parts[name] = part("negative", (shift >= low) & (shift < high))
    parts["negative: perception tokens"] = part("negative", scored.perception)
    parts["negative: other tokens"] = parts["negative"] - parts["negative: perception tokens"]
    for scale in (0.0, 0.25):
        parts[f"cpl: negative × {scale:g}"] = parts["cpl"] - (1 - scale) * parts["negative"]
    return parts


def other_forms(scored: Scored) -> dict[str, torch.Tensor]:
    """The gradients of other losses on the same selected tokens, each of shape `(P,)`."""
    anchor, preserved, removed = scored.views

    def of(token_losses: torch.Tensor) -> torch.Tensor:
        return scored.gradient(scored.reduce(token_losses))

    def contrast(anchor: torch.Tensor, preserved: torch.Tensor, removed: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "k1":
            return of(divergence_contrast(*(token_divergence(anchor, view, "k1") for view in (preserved, removed))))
        return of(
            divergence_contrast(*((anchor.exp() * (anchor - view)).sum(dim=-1) for view in (preserved, removed)))
        )

    k3 = token_divergence(anchor, preserved), token_divergence(anchor, removed)
    forms = {"cpl: τ = 1": of(divergence_contrast(*k3, 1.0))}
    lower, _, higher = (lab.entropy(log_probs) for log_probs in scored.log_probs)
    rising = scored.selected & (scored.shift >= LEAST_SHIFT)
    forms[f"cpl: least ΔH {LEAST_SHIFT}"] = scored.gradient(
        masked_mean(divergence_contrast(*k3), rising, dim=1).mean()
    )
    for kind, scores in (("k1", scored.views), ("kl", scored.log_probs)):
        anchor, preserved, removed = (part.detach() for part in scores)
        forms[kind] = contrast(*scores, kind)
        forms[f"{kind}: positive"] = contrast(anchor, scores[1], removed, kind)
        forms[f"{kind}: negative"] = contrast(anchor, preserved, scores[2], kind)
        forms[f"{kind}: anchor"] = forms[kind] - forms[f"{kind}: positive"] - forms[f"{kind}: negative"]
    del forms["k1: anchor"]  # it cancels out of the margin
    forms["−H⁻"] = of(-higher)
    forms["H"] = of(lower)
    forms["H − H⁻"] = forms["H"] + forms["−H⁻"]
    forms["2 H − H⁻"] = 2 * forms["H"] + forms["−H⁻"]
    return forms


def gradient_ratios(scored: Scored, coef: float) -> dict[str, float]:
    """
    ‖λ · CPL's gradient‖ / ‖GRPO's‖ at three places: at the weights, which is the truth, and two that need no backward of
    the model: at the log-probs, and there with each entry times 1 − p, which is the metric `cpl/gradient_ratio`.
    """
    losses = scored.policy_loss, scored.contrast
    tails = [torch.autograd.grad(loss, scored.logps, retain_graph=True)[0] for loss in losses]

    def ratio(norms: Iterable[torch.Tensor]) -> float:
        policy, contrast = map(float, norms)
        return coef * contrast / policy if policy else float("nan")

    return {
        "weights": ratio(scored.gradient(scored.logps, tail).norm() for tail in tails),
        "logps": ratio(tail.norm() for tail in tails),
        "metric": ratio(squared_gradients(losses, scored.logps).sqrt()),
    }


def token_shares(scored: Scored) -> dict[str, float]:
    """What the selected tokens are, and how few of them hold most of the CPL's gradient at the log-probs."""
    anchor, _, removed = (part[scored.selected] for part in scored.views)
    shift = scored.shift[scored.selected]
    upstream = split_scores(*2 * torch.autograd.grad(scored.contrast, scored.logps, retain_graph=True), scored.rows)
    squares = sum(part[scored.selected].square() for part in upstream.logps).sort(descending=True).values
    shares = {
        "true perception tokens": scored.perception[scored.selected],
        "d⁺ ≥ d⁻": scored.wrong[scored.selected],
        "likelier under the removing view": removed > anchor,
        **{f"ΔH < {bound}": shift < bound for bound in SHIFT_BOUNDS},
    }
    shares = {name: float(tokens.float().mean()) for name, tokens in shares.items()}
    shares["squared gradient in the top 1 %"] = float(squares[: max(1, len(squares) // 100)].sum() / squares.sum())
    shares["squared gradient in the top 10 %"] = float(squares[: max(1, len(squares) // 10)].sum() / squares.sum())
    return shares

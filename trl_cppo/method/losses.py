# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The tensor maths of CPPO (arXiv 2601.00501), free of TRL, images and randomness.

Shapes: `B` rows (rollouts), `T` completion tokens. All floating inputs are taken to at least float32.
"""

import math

import torch
import torch.nn.functional as F

PERCEPTION_SCORES = ("relative_entropy_shift", "entropy_shift")
DIVERGENCES = ("k3", "k1", "kl")

# The bounds of the authors' estimator: they keep one unlikely token from dominating a batch.
_MAX_LOG_RATIO = 20.0
_MAX_DIVERGENCE = 10.0
_ENTROPY_EPS = 1e-6


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def perception_token_mask(
    entropies: torch.Tensor,
    removed_entropies: torch.Tensor,
    completion_mask: torch.Tensor,
    ratio: float | None = 0.5,
    score: str = "relative_entropy_shift",
    min_shift: float = 0.0,
) -> torch.Tensor:
    """
    Select the tokens whose prediction depends on what the information-removing view took away.

    With the entropy shift ΔH_t = H⁻_t − H_t, the candidates of a row are its completion tokens with ΔH_t > 0. Of these
    `n` candidates, those whose score reaches the `max(1, floor(ratio · n))`-th largest are selected; ties at that
    score are all selected, and those with ΔH_t < `min_shift` are left out again. A row without a candidate selects
    nothing. No gradient flows through the selection.

    Args:
        entropies (`torch.Tensor` of shape `(B, T)`, float):
            Entropy `H_t` of the next-token distribution given the image, in nats.
        removed_entropies (`torch.Tensor` of shape `(B, T)`, float):
            Entropy `H⁻_t` given the information-removing view, in nats.
        completion_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Non-zero where a token counts. What stands in the other places, even NaN, has no influence.
        ratio (`float` or `None`, *optional*, defaults to `0.5`):
            Share of the candidates to select, in (0, 1]. `None` selects every completion token, candidate or not.
        score (`str`, *optional*, defaults to `"relative_entropy_shift"`):
            `"relative_entropy_shift"` ranks by `relu(ΔH_t) / (H⁻_t + 1e-6)` (the authors' code), `"entropy_shift"` by
            `ΔH_t` (the paper's wording).
        min_shift (`float`, *optional*, defaults to `0.0`):
            The least ΔH_t of a selected token, in nats. Without effect where `ratio` is `None`.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool.

    Raises:
        `ValueError`: for a ratio outside (0, 1] or an unknown score.
    """
    _check_score(score)
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio must be None or lie in (0, 1], got {ratio}.")
    completion_mask = completion_mask.bool()
    if ratio is None:
        return completion_mask
    shift = at_least_float32(removed_entropies) - at_least_float32(entropies)
    candidates = completion_mask & (shift > 0)
    values = token_scores(entropies, removed_entropies, score).masked_fill(~candidates, -torch.inf)

    length = values.size(1)
    if length == 0:
        return candidates
    # Python's own float64 floor, for every possible n: float32 on the device would round 0.29 · 100 up to 29.
    kept = torch.tensor([max(1, math.floor(ratio * n)) for n in range(length + 1)], device=values.device)
    rank = kept[candidates.sum(dim=1)]
    threshold = values.sort(dim=1, descending=True).values.gather(1, rank.unsqueeze(1) - 1)
    return candidates & (values >= threshold) & (shift >= min_shift)


@torch.no_grad()
def token_scores(
    entropies: torch.Tensor, removed_entropies: torch.Tensor, score: str = "relative_entropy_shift"
) -> torch.Tensor:
    """
    What ranks the tokens in [`perception_token_mask`], which describes the arguments: not negative, of shape `(B, T)`.

    Raises:
        `ValueError`: for an unknown score.
    """
    _check_score(score)
    removed_entropies = at_least_float32(removed_entropies)
    shift = (removed_entropies - at_least_float32(entropies)).clamp(min=0)
    return shift / (removed_entropies + _ENTROPY_EPS) if score == "relative_entropy_shift" else shift


def _check_score(score: str) -> None:
    if score not in PERCEPTION_SCORES:
        raise ValueError(f"score must be one of {PERCEPTION_SCORES}, got {score!r}.")


def token_divergence(anchor_logps: torch.Tensor, view_logps: torch.Tensor, divergence: str = "k3") -> torch.Tensor:
    """
    One-sample estimate of KL(anchor ‖ view) at each token, from the log-probabilities of the sampled token.

    With δ = clamp(logp_view − logp_anchor, −20, 20): `"k3"` is clamp(e^δ − δ − 1, −10, 10), never negative and of low
    variance; `"k1"` is clamp(−δ, −10, 10). Both are unbiased inside the clamps.

    Args:
        anchor_logps (`torch.Tensor`, float): log-probabilities given the image. Gradient flows.
        view_logps (`torch.Tensor` of the same shape, float): log-probabilities given the view. Gradient flows.
        divergence (`str`, *optional*, defaults to `"k3"`): `"k3"` or `"k1"`.

    Returns:
        `torch.Tensor` of the same shape, float32 (float64 for float64 inputs).

    Raises:
        `ValueError`: for an unknown divergence, `"kl"` included: it needs whole distributions, not sampled tokens.
    """
    delta = (at_least_float32(view_logps) - at_least_float32(anchor_logps)).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if divergence == "k3":
        estimate = torch.expm1(delta) - delta  # expm1: e^δ − 1 would cancel where the view barely matters
    elif divergence == "k1":
        estimate = -delta
    else:
        raise ValueError(f"divergence must be 'k3' or 'k1' where only sampled tokens are known, got {divergence!r}.")
    return estimate.clamp(-_MAX_DIVERGENCE, _MAX_DIVERGENCE)


def sampled_divergences(
    logps: tuple[torch.Tensor, torch.Tensor, torch.Tensor], selected: torch.Tensor, divergence: str = "k3"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    d⁺ and d⁻ at the selected tokens, 0 elsewhere.

    Args:
        logps (`tuple` of three tensors of shape `(B, T)`, float): log-probabilities of the sampled tokens given the image, the
            information-preserving and the information-removing view. Gradient flows. What stands where nothing is selected,
            even NaN, has no influence.
        selected (`torch.Tensor` of shape `(B, T)`, bool): the perception tokens.
        divergence (`str`, *optional*, defaults to `"k3"`): see [`token_divergence`], which also says what it raises.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: each of shape `(B, T)`, float32 (float64 for float64 inputs).
    """
    # Filled before the loss and not only left out after it: 0 · NaN is NaN in the backward pass too.
    anchor, preserved, removed = (tensor.masked_fill(~selected, 0.0) for tensor in logps)
    return token_divergence(anchor, preserved, divergence), token_divergence(anchor, removed, divergence)


def contrastive_perception_loss(
    logps: torch.Tensor,
    preserved_logps: torch.Tensor,
    removed_logps: torch.Tensor,
    temperature: float = 0.1,
    divergence: str = "k3",
) -> torch.Tensor:
    """
    The Contrastive Perception Loss of each token, softplus((d⁺ − d⁻) / τ), from log-probabilities. The trainer, which has the
    divergences of the selected tokens already, calls [`divergence_contrast`].

    It is InfoNCE with the information-preserving view as the one positive and the information-removing view as the one
    negative, −log(e^(−d⁺/τ) / (e^(−d⁺/τ) + e^(−d⁻/τ))), d⁺ and d⁻ being [`token_divergence`] from the anchor to each.

    Args:
        logps (`torch.Tensor` of shape `(B, T)`, float):
            Log-probabilities of the sampled tokens given the image (the anchor). Gradient flows.
        preserved_logps (`torch.Tensor` of shape `(B, T)`, float):
            The same given the information-preserving view. Gradient flows.
        removed_logps (`torch.Tensor` of shape `(B, T)`, float):
            The same given the information-removing view. Gradient flows.
        temperature (`float`, *optional*, defaults to `0.1`):
            τ, in nats; not the sampling temperature, which the log-probabilities already carry.
        divergence (`str`, *optional*, defaults to `"k3"`):
            `"k3"` or `"k1"`, see [`token_divergence`].

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32 (float64 for float64 inputs): per token, not reduced, not masked.

    Raises:
        `ValueError`: for an unknown divergence or a temperature that is not positive.
    """
    preserved = token_divergence(logps, preserved_logps, divergence)
    removed = token_divergence(logps, removed_logps, divergence)
    return divergence_contrast(preserved, removed, temperature)


def divergence_contrast(preserved: torch.Tensor, removed: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """
    softplus((d⁺ − d⁻) / τ): the loss of [`contrastive_perception_loss`] from the divergences themselves.

    Args:
        preserved (`torch.Tensor`, float): d⁺, from the anchor to the information-preserving view, in nats.
        removed (`torch.Tensor` of the same shape, float): d⁻, to the information-removing view.
        temperature (`float`, *optional*, defaults to `0.1`): τ, in nats.

    Raises:
        `ValueError`: for a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    return F.softplus((preserved - removed) / temperature)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Mean of `values` where `mask` is true, over `dim` or everything; 0, still connected, where nothing is."""
    total = torch.where(mask, values, 0.0)
    if dim is None:
        return total.sum() / mask.sum().clamp(min=1)
    return total.sum(dim) / mask.sum(dim).clamp(min=1)


def squared_gradients(losses: tuple[torch.Tensor, ...], logps: torch.Tensor) -> torch.Tensor:
    """
    How hard each loss pulls at the policy, told from the sampled tokens: the sum of the squares of (1 − p) ∂loss/∂log p.

    A log-probability passes (1 − p) of its gradient on to the logit of its token and between nothing and as much to the
    others: a token that is nearly sure moves hardly a weight. Only the tail of the graph is walked, from the losses to the
    log-probabilities, never the model. That tail is kept.

    Args:
        losses (`tuple[torch.Tensor, ...]`): 0-dim losses computed from `logps`.
        logps (`torch.Tensor`, float): log p of the sampled tokens, of any shape.

    Returns:
        `torch.Tensor` of shape `(len(losses),)`, at least float32, without a gradient; 0 where no gradient is recorded.
    """
    if not logps.requires_grad:  # evaluation
        return torch.zeros(len(losses), device=logps.device)
    passed_on = -torch.expm1(at_least_float32(logps.detach()))
    gradients = [torch.autograd.grad(loss, logps, retain_graph=True)[0] for loss in losses]
    # Where no loss looks, a log-probability may be NaN, and 0 · NaN is NaN.
    pulls = [torch.where(gradient == 0, 0.0, passed_on * gradient) for gradient in gradients]
    return torch.stack([pull.square().sum() for pull in pulls])

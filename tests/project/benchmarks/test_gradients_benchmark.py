# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gradients: the parts of the gradient against the loss itself with the other scorings held fixed."""

import math

import pytest
import torch

from benchmarks.gradients.measure import agreement, measure_part
from benchmarks.gradients.parts import Scored, contrast_parts, gradient_ratios
from benchmarks.gradients.report import follows
from trl_cppo.method.losses import contrastive_perception_loss, masked_mean

ROWS, GATED, TOKENS, WORDS = 4, [0, 2], 5, 6


@pytest.fixture
def scored():
    """A linear model of seven weights in place of the VLM: 4 rows, two of them with views."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(7, generator=draw, dtype=torch.float64, requires_grad=True)
    places = torch.randn(ROWS + 4, TOKENS, WORDS, 7, generator=draw, dtype=torch.float64)
    log_probs = (places @ weights).log_softmax(dim=-1)
    sampled = torch.randint(WORDS, (ROWS, TOKENS), generator=draw)
    logps = log_probs.gather(2, torch.cat([sampled, sampled[GATED], sampled[GATED]])[..., None])[..., 0]
    selected = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 0, 0]]).bool()
    views = logps[GATED], logps[4:6], logps[6:]
    loss = masked_mean(contrastive_perception_loss(*views), selected, dim=1).mean()
    return Scored(
        [weights], logps[:ROWS].sum(), loss, logps, (log_probs[GATED], log_probs[4:6], log_probs[6:]), GATED,
        torch.ones(2, TOKENS).bool(), selected, torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]]).bool(),
    )  # fmt: skip


def gradient_with(scored, moving, tokens=None):
    """By the definition: of the CPL whose other scorings are held fixed, on some of the selected tokens."""
    views = (scored.logps[GATED], scored.logps[4:6], scored.logps[6:])
    views = [view if name in moving else view.detach() for name, view in zip("apn", views, strict=True)]
    losses = contrastive_perception_loss(*views)
    losses = losses if tokens is None else torch.where(tokens, losses, losses.detach())
    return torch.autograd.grad(scored.reduce(losses), scored.weights, retain_graph=True)[0]


def test_parts_are_the_loss_with_the_other_scorings_held_fixed(scored):
    parts = contrast_parts(scored)
    for name, moving in {"cpl": "apn", "anchor": "a", "positive": "p", "negative": "n"}.items():
        torch.testing.assert_close(parts[name], gradient_with(scored, moving))
    torch.testing.assert_close(
        parts["negative: perception tokens"], gradient_with(scored, "n", tokens=scored.perception)
    )
    torch.testing.assert_close(
        parts["cpl: negative × 0.25"], gradient_with(scored, "ap") + 0.25 * gradient_with(scored, "n")
    )


def test_parts_add_up(scored):
    parts = contrast_parts(scored)
    for whole, names in {
        "cpl": ["anchor", "positive", "negative"],
        "anchor": ["anchor: through d⁺", "anchor: through d⁻"],
        "negative": [name for name in parts if "ΔH" in name],
    }.items():
        total = sum(parts[name] for name in names)
        if whole == "negative":  # the bins begin at 0, where the trainer's candidates do
            shift = torch.distributions.Categorical(logits=scored.log_probs[2]).entropy()
            shift = shift - torch.distributions.Categorical(logits=scored.log_probs[0]).entropy()
            torch.testing.assert_close(total, gradient_with(scored, "n", tokens=shift >= 0))
        else:
            torch.testing.assert_close(total, parts[whole])


def test_ratio_at_the_weights_is_that_of_the_gradients(scored):
    ratios = gradient_ratios(scored, 0.5)
    policy = torch.autograd.grad(scored.policy_loss, scored.weights, retain_graph=True)[0]
    assert ratios["weights"] == pytest.approx(0.5 * float(gradient_with(scored, "apn").norm() / policy.norm()))
    assert ratios["logps"] > 0 and ratios["metric"] > 0


def test_effect_is_that_of_a_small_step(scored):
    """A step of length h against a gradient changes a quantity by h times its effect, up to h²."""
    weights, step = torch.tensor([1.0, -2.0, 0.5]), 1e-4
    gradient, quantity = torch.tensor([0.3, 0.4, -1.2]), lambda w: (w**2).sum()
    part = measure_part(gradient, gradient, {"square": 2 * weights})
    moved = weights.double() - step * (gradient / gradient.norm()).double()
    assert part["effects"]["square"] == pytest.approx(float(quantity(moved) - quantity(weights)) / step, abs=1e-3)
    assert part["ratio"] == pytest.approx(1) and part["cosine"] == pytest.approx(1)


def test_agreement_of_equal_and_of_orthogonal_gradients():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert agreement([one, one, one]) == pytest.approx(1)
    assert agreement([one, other]) == pytest.approx(0)
    assert math.isnan(agreement([one]))


def test_a_proxy_that_is_a_third_follows_perfectly():
    ratios = [{"weights": value, "logps": value / 3} for value in (1.0, 5.0, 2.0)]
    found = follows(ratios, "logps")
    assert found["mean"] == pytest.approx(1 / 3) and found["correlation"] == pytest.approx(1)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Oracles for the mask and the loss: float64 loops written from the paper's text, gradcheck, properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_cppo.method.losses import contrastive_perception_loss, masked_mean, perception_token_mask, token_divergence


def mask_by_loop(entropies, removed, mask, ratio, score, min_shift):
    """The selection of one row after another, in Python floats."""
    selected = [[False] * len(row) for row in entropies]
    for b, (row, removed_row, mask_row) in enumerate(zip(entropies, removed, mask, strict=True)):
        scores = {}
        for t, (h, h_removed, counts) in enumerate(zip(row, removed_row, mask_row, strict=True)):
            if counts and h_removed - h > 0:
                scores[t] = (
                    (h_removed - h) / (h_removed + 1e-6) if score == "relative_entropy_shift" else h_removed - h
                )
        if scores:
            k = max(1, math.floor(ratio * len(scores)))
            kth = sorted(scores.values(), reverse=True)[k - 1]
            for t, value in scores.items():
                selected[b][t] = value >= kth and removed_row[t] - row[t] >= min_shift
    return selected


def loss_by_loop(anchor, preserved, removed, temperature, divergence):
    def distance(p, q):
        delta = min(max(q - p, -20.0), 20.0)
        estimate = math.exp(delta) - delta - 1 if divergence == "k3" else -delta
        return min(max(estimate, -10.0), 10.0)

    out = []
    for row in zip(anchor, preserved, removed, strict=True):
        out.append([])
        for a, p, r in zip(*row, strict=True):
            close, far = math.exp(-distance(a, p) / temperature), math.exp(-distance(a, r) / temperature)
            margin = (distance(a, p) - distance(a, r)) / temperature
            # the InfoNCE form where it is representable, its limit where both exponentials underflow
            out[-1].append(-math.log(close / (close + far)) if close > 1e-300 else max(margin, 0.0))
    return out


def random_case(seed, rows=6, length=23):
    generator = torch.Generator().manual_seed(seed)
    entropies = torch.rand(rows, length, generator=generator, dtype=torch.float64) * 3
    removed = entropies + torch.randn(rows, length, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=generator) < 0.7
    return entropies, removed.clamp(min=0), mask


@pytest.mark.parametrize("score", ["relative_entropy_shift", "entropy_shift"])
@pytest.mark.parametrize("min_shift", [0.0, 0.8])
@pytest.mark.parametrize("ratio", [0.01, 0.29, 0.5, 0.7, 1.0])
def test_mask_agrees_with_the_loop(ratio, score, min_shift):
    for seed in range(20):
        entropies, removed, mask = random_case(seed)
        expected = mask_by_loop(entropies.tolist(), removed.tolist(), mask.tolist(), ratio, score, min_shift)
        assert perception_token_mask(entropies, removed, mask, ratio, score, min_shift).tolist() == expected


def test_ratio_is_floored_as_python_does():
    # 0.29 · 100 is 28.999… in float64 and 29.0 in float32
    entropies = torch.zeros(1, 100)
    removed = torch.arange(1, 101, dtype=torch.float32).unsqueeze(0)
    mask = torch.ones(1, 100, dtype=torch.bool)
    assert perception_token_mask(entropies, removed, mask, 0.29, "entropy_shift").sum() == math.floor(0.29 * 100) == 28


def test_ties_are_all_selected():
    entropies = torch.zeros(1, 4)
    removed = torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    mask = torch.ones(1, 4)
    selected = perception_token_mask(entropies, removed, mask, 0.5, "entropy_shift")
    assert selected.tolist() == [[False, True, True, True]]


def test_rows_without_a_candidate_or_a_token_select_nothing():
    entropies = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    removed = torch.tensor([[1.0, 0.5], [1.0, 1.0], [0.5, 1.0]])
    mask = torch.tensor([[1, 1], [0, 0], [1, 1]])
    assert perception_token_mask(entropies, removed, mask).tolist() == [[False, False], [False, False], [False, True]]
    assert perception_token_mask(entropies[:, :0], removed[:, :0], mask[:, :0]).shape == (3, 0)
    assert perception_token_mask(entropies[:0], removed[:0], mask[:0]).shape == (0, 2)


def test_ratio_none_selects_the_completion():
    entropies, removed, mask = random_case(0)
    assert torch.equal(perception_token_mask(entropies, removed, mask.long(), None), mask)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_masked_places_do_not_reach_the_mask(garbage):
    entropies, removed, mask = random_case(3)
    clean = perception_token_mask(entropies, removed, mask)
    for spoil_first, spoil_second in [(True, False), (False, True), (True, True)]:
        first = entropies.masked_fill(~mask, garbage) if spoil_first else entropies
        second = removed.masked_fill(~mask, garbage) if spoil_second else removed
        assert torch.equal(perception_token_mask(first, second, mask), clean)


def test_mask_carries_no_gradient():
    entropies, removed, mask = random_case(1)
    assert not perception_token_mask(entropies.requires_grad_(), removed.requires_grad_(), mask).requires_grad


@given(seed=st.integers(0, 10_000), ratio=st.floats(0.01, 1.0), scale=st.floats(0.01, 100.0))
@settings(max_examples=60, deadline=None)
def test_mask_properties(seed, ratio, scale):
    entropies, removed, mask = random_case(seed, rows=3, length=11)
    selected = perception_token_mask(entropies, removed, mask, ratio, "entropy_shift")
    candidates = mask & (removed > entropies)
    assert not (selected & ~candidates).any()
    assert torch.equal(selected.any(1), candidates.any(1))
    # no candidate left out is better than one taken, and the unit of the entropy does not matter
    shift = removed - entropies
    worst = torch.where(selected, shift, torch.inf).amin(1, keepdim=True)
    assert not (candidates & ~selected & (shift >= worst)).any()
    assert torch.equal(
        perception_token_mask(entropies * scale, removed * scale, mask, ratio, "entropy_shift"), selected
    )
    # rows are independent of each other
    order = torch.tensor([2, 0, 1])
    permuted = perception_token_mask(entropies[order], removed[order], mask[order], ratio, "entropy_shift")
    assert torch.equal(permuted, selected[order])


@pytest.mark.parametrize("divergence", ["k3", "k1"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_agrees_with_infonce(divergence, temperature):
    generator = torch.Generator().manual_seed(5)
    logps = [-torch.rand(4, 9, generator=generator, dtype=torch.float64) * scale for scale in (3, 3, 30)]
    logps[2][0, 0] = -200.0  # beyond both clamps
    expected = torch.tensor(loss_by_loop(*(x.tolist() for x in logps), temperature, divergence), dtype=torch.float64)
    loss = contrastive_perception_loss(*logps, temperature, divergence)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    single = contrastive_perception_loss(*(x.float() for x in logps), temperature, divergence)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", ["k3", "k1"])
def test_gradient_of_all_three_scorings(divergence):
    generator = torch.Generator().manual_seed(6)
    logps = [-torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    inputs = [x.requires_grad_() for x in logps]
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_perception_loss(*x, temperature=0.5, divergence=divergence), inputs
    )


def test_k1_cancels_the_anchor():
    generator = torch.Generator().manual_seed(7)
    anchor, preserved, removed = (-torch.rand(2, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    anchor.requires_grad_()
    contrastive_perception_loss(anchor, preserved, removed, divergence="k1").sum().backward()
    torch.testing.assert_close(anchor.grad, torch.zeros_like(anchor), atol=1e-12, rtol=0)


def test_k3_stays_exact_for_small_shifts_in_float32():
    delta = torch.tensor([1e-5, 1e-4, 1e-3])
    exact = torch.expm1(delta.double()) - delta.double()
    estimate = token_divergence(torch.zeros(3), delta)
    torch.testing.assert_close(estimate.double(), exact, rtol=2e-3, atol=1e-12)


def test_half_precision_neither_overflows_nor_truncates():
    generator = torch.Generator().manual_seed(8)
    half = [(-torch.rand(3, 7, generator=generator) * 60).bfloat16().requires_grad_() for _ in range(3)]
    loss = contrastive_perception_loss(*half)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_perception_loss(*(x.float() for x in half)))
    loss.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in half)


def test_masked_mean():
    values = torch.tensor([[1.0, float("nan")], [3.0, 5.0], [float("inf"), 1.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    assert masked_mean(values, mask, dim=1).tolist() == [1.0, 4.0, 0.0]
    assert masked_mean(values, mask).item() == 3.0
    nothing = masked_mean(values, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0.0 and values.grad.tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: perception_token_mask(x, x, x, ratio=0.0), r"\(0, 1\]"),
        (lambda x: perception_token_mask(x, x, x, ratio=1.5), r"\(0, 1\]"),
        (lambda x: perception_token_mask(x, x, x, score="kl"), "relative_entropy_shift"),
        (lambda x: contrastive_perception_loss(x, x, x, temperature=0.0), "positive"),
        (lambda x: contrastive_perception_loss(x, x, x, divergence="kl"), "'k3' or 'k1'"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 2))

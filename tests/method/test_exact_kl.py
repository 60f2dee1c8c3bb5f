# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The exact KL against its definition, written out with all logits in float64."""

import pytest
import torch

import trl_cppo.method.exact_kl as exact_kl_module
from trl_cppo.method.exact_kl import LogitTransform, exact_kl
from trl_cppo.scoring.head import scored_positions

TRANSFORMS = [LogitTransform(), LogitTransform(0.7), LogitTransform(1.3, 0.5, 2.0)]


def draw(dtype=torch.float64, tokens=5, hidden=6, vocabulary=11, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, hidden), (2, tokens, hidden), (vocabulary, hidden), (vocabulary,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors[: 4 if bias else 3]]


def by_definition(anchor, views, weight, bias=None, transform=TRANSFORMS[0]):
    def log_probs(hidden):
        output = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
        logits = output * transform.scale
        if transform.softcap is not None:
            logits = transform.softcap * torch.tanh(logits / transform.softcap)
        return torch.log_softmax(logits / transform.temperature, dim=-1)

    p = log_probs(anchor)
    return torch.stack([(p.exp() * (p - log_probs(view))).sum(dim=-1) for view in views])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_definition(transform, chunk_size, bias):
    inputs = draw(bias=bias)
    ours = exact_kl(*inputs, transform=transform, chunk_size=chunk_size)
    expected = by_definition(*inputs, transform=transform)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    for own, true in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(own, true, atol=1e-12, rtol=1e-12)


def test_gradcheck():
    inputs = draw(tokens=2, hidden=3, vocabulary=5)
    assert torch.autograd.gradcheck(lambda *tensors: exact_kl(*tensors, transform=TRANSFORMS[2], chunk_size=2), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision(dtype, tolerance):
    inputs = draw(dtype, tokens=20, vocabulary=500, hidden=16, bias=False)
    ours = exact_kl(*inputs, chunk_size=64)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), by_definition(*inputs), atol=tolerance, rtol=tolerance)
    gradients = torch.autograd.grad(ours.sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3


def test_an_equal_view_costs_nothing_and_pulls_nowhere():
    anchor, _, weight = draw(bias=False)
    views = anchor.detach().clone()[None].requires_grad_()
    kl = exact_kl(anchor, views, weight, chunk_size=3)
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-14, rtol=0)
    for gradient in torch.autograd.grad(kl.sum(), [anchor, views, weight]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-13, rtol=0)


def test_far_logits_stay_finite():
    anchor, views, weight = draw(torch.float32, bias=False)
    kl = exact_kl(anchor * 1e3, views * 1e3, weight, chunk_size=3)
    assert kl.isfinite().all() and (kl >= 0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(kl.sum(), [anchor, views, weight]))


def test_no_token_gives_an_empty_result_that_is_connected():
    anchor, views, weight = draw(tokens=0, bias=False)
    kl = exact_kl(anchor, views, weight)
    assert kl.shape == (2, 0)
    assert torch.autograd.grad(kl.sum(), weight)[0].eq(0).all()


def test_what_is_kept_for_the_backward_does_not_grow_with_the_vocabulary():
    def saved(vocabulary):
        anchor, views, weight = draw(torch.float32, tokens=32, vocabulary=vocabulary, bias=False)
        sizes = {}

        def keep(tensor):
            if tensor.data_ptr() != weight.data_ptr():
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            exact_kl(anchor, views, weight, chunk_size=16)
        return sum(sizes.values())

    assert saved(20) == saved(2000) > 0


@pytest.mark.parametrize("compact", [True, False])
def test_the_place_of_each_completion_token_among_those_that_the_head_scores(compact):
    attention = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    keep = 3
    position = torch.arange(18).view(3, 6)[:, 1:]  # what stands at each scored position: the token that it predicts
    valid = attention[:, 1:].bool() & (torch.arange(5) >= 5 - keep)
    scored = position[valid] if compact else position.flatten()
    places = scored_positions(attention, keep, len(scored))
    assert places.shape == (3, keep)
    tokens = scored[places]
    attended = attention[:, -keep:].bool()
    assert tokens[attended].tolist() == torch.arange(18).view(3, 6)[:, -keep:][attended].tolist()


def test_no_tile_grows_with_tokens_and_vocabulary(monkeypatch):
    sizes = []
    tile = exact_kl_module._tile
    monkeypatch.setattr(exact_kl_module, "_MAX_TILE", 300)
    monkeypatch.setattr(exact_kl_module, "_tile", lambda *args: sizes.append(tile(*args)) or sizes[-1])
    inputs = draw(tokens=20, vocabulary=50)
    kl = exact_kl(*inputs, chunk_size=1000)
    kl.sum().backward()
    assert max(logits.numel() for logits in sizes) <= 300
    torch.testing.assert_close(kl, by_definition(*inputs), atol=1e-12, rtol=1e-12)

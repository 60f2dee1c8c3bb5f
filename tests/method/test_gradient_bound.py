# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How hard the CPL pulls beside the policy loss: the metric `cpl/gradient_ratio` and its bound."""

import functools
import math

import pytest
import torch
from conftest import cpl_logged, generation_batch, make_rows, make_trainer
from trl import GRPOTrainer

from trl_cppo.method.losses import squared_gradients


def test_squared_gradients_are_those_of_each_loss_and_keep_the_graph():
    logps = (-torch.rand(3, 4, dtype=torch.float64)).requires_grad_()
    tail = logps.exp()
    losses = (tail.sum(), (2 * logps).sum())
    squares = squared_gradients(losses, logps)
    expected = [sum((p * (1 - p)) ** 2 for p in tail.flatten().tolist())]
    expected += [sum((2 * (1 - p)) ** 2 for p in tail.flatten().tolist())]
    assert squares.tolist() == pytest.approx(expected)
    assert not squares.requires_grad
    sum(losses).backward()  # the graph is still there
    torch.testing.assert_close(logps.grad, tail + 2)


def test_squared_gradients_are_zero_where_no_gradient_is_recorded():
    with torch.no_grad():
        logps = torch.randn(3, requires_grad=False)
        assert squared_gradients((logps.sum(), logps.mean()), logps).tolist() == [0.0, 0.0]


def ratio_of(trainer):
    return cpl_logged(trainer)["cpl/gradient_ratio"]


def gradient_at_logps(trainer, batch, coef, bound=None):
    """(1 − p) ∂loss/∂log p, the log-probs being parameters: no model stands behind them."""
    trainer.args.cpl_coef, trainer.args.cpl_max_gradient_ratio = coef, bound
    leaves = []
    score = GRPOTrainer._get_per_token_logps_and_entropies

    @functools.wraps(score)  # the trainer reads its signature
    def with_leaf(self, *args, **kwargs):
        logps, *rest = score(self, *args, **kwargs)
        leaves.append(logps.detach().requires_grad_())
        return leaves[-1], *rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", with_leaf)
        trainer.compute_loss(trainer.model, batch).backward()
    return leaves[-1].grad * (1 - leaves[-1].detach().exp())


@pytest.fixture
def batch_and_trainer(tmp_path):
    def build(**settings):
        trainer = make_trainer(tmp_path, make_rows([1] * 8), cpl_coef=0.7, **settings)
        batch = generation_batch(trainer)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return batch, trainer

    return build


@pytest.mark.parametrize("settings", [{"cpl_divergence": "k3"}, {"cpl_divergence": "k1", "cpl_reduction": "token"}])
def test_the_metric_is_the_ratio_of_the_gradients_and_the_bound_holds(batch_and_trainer, settings):
    batch, trainer = batch_and_trainer(**settings)
    policy = gradient_at_logps(trainer, batch, coef=0.0)
    ratio_of(trainer)  # with λ = 0
    free = gradient_at_logps(trainer, batch, coef=0.7)
    ratio = ((free - policy).norm() / policy.norm()).item()
    assert ratio_of(trainer) == pytest.approx(ratio, rel=1e-4) and ratio > 0.01
    bounded = gradient_at_logps(trainer, batch, coef=0.7, bound=ratio / 4)
    assert ratio_of(trainer) == pytest.approx(ratio, rel=1e-4)  # what the bound was up against
    torch.testing.assert_close(bounded - policy, (free - policy) / 4, rtol=1e-3, atol=1e-7)
    loose = gradient_at_logps(trainer, batch, coef=0.7, bound=2 * ratio)
    assert torch.equal(loose, free)  # the authors' form, to the bit


def parameter_gradients(trainer, batch, coef, bound=None):
    trainer.args.cpl_coef, trainer.args.cpl_max_gradient_ratio = coef, bound
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_without_a_policy_gradient_the_bound_leaves_none(batch_and_trainer):
    batch, trainer = batch_and_trainer(gate_by_advantage=False)
    batch["advantages"] = torch.zeros_like(batch["advantages"])  # all rewards of each group are equal
    assert gradient_at_logps(trainer, batch, coef=0.7).norm() > 0.01
    ratio_of(trainer)
    assert gradient_at_logps(trainer, batch, coef=0.7, bound=0.4).norm() == 0
    assert math.isnan(ratio_of(trainer))


def test_what_no_loss_looks_at_does_not_count():
    logps = torch.tensor([[-1.0, -2.0], [float("nan"), -0.5]], requires_grad=True)
    loss = logps.masked_fill(logps.detach().isnan(), 0.0).sum()
    expected = sum((1 - math.exp(value)) ** 2 for value in (-1.0, -2.0, -0.5))
    assert squared_gradients((loss,), logps).item() == pytest.approx(expected)


def test_the_exact_kl_is_bounded_by_its_estimate(batch_and_trainer):
    batch, trainer = batch_and_trainer(cpl_divergence="kl")
    policy = parameter_gradients(trainer, batch, coef=0.0)
    ratio_of(trainer)  # with λ = 0
    free = parameter_gradients(trainer, batch, coef=0.7)
    ratio = ratio_of(trainer)
    bounded = parameter_gradients(trainer, batch, coef=0.7, bound=ratio / 4)
    torch.testing.assert_close(bounded - policy, (free - policy) / 4, rtol=1e-3, atol=1e-6)
    trainer.args.cpl_divergence = "k3"
    ratio_of(trainer)  # with the bound
    gradient_at_logps(trainer, batch, coef=0.7)
    assert ratio_of(trainer) == pytest.approx(ratio, rel=1e-4)


def test_an_evaluation_has_no_gradient_and_no_bound(batch_and_trainer):
    batch, trainer = batch_and_trainer(cpl_max_gradient_ratio=1e-6)
    trainer.model.eval()
    with torch.no_grad():
        bounded = trainer.compute_loss(trainer.model, batch)
        trainer.args.cpl_max_gradient_ratio = None
        assert torch.equal(bounded, trainer.compute_loss(trainer.model, batch))
    assert math.isnan(cpl_logged(trainer, "eval")["cpl/gradient_ratio"])

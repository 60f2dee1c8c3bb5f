# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is logged of the CPL: quotients of sums over a logging step, under the same names at every step."""

import math

import pytest
import torch
from conftest import cpl_logged, generation_batch, logged, make_rows, make_trainer, told

from trl_cppo.method.metrics import WindowSums, cpl_metrics

NAMES = {f"cpl/{name}" for name in (
    "loss", "gated_ratio", "perception_ratio", "entropy_shift", "divergence_preserved", "divergence_removed",
    "contrast_accuracy", "gradient_ratio",
)}  # fmt: skip


def test_sums_are_of_what_was_added_since_the_last_log():
    sums = WindowSums()
    assert sums.settle() is None
    big = torch.full((12,), 2.0**24)
    sums.add(big)
    sums.add(torch.ones(12))
    assert sums.settle().tolist() == [2.0**24 + 1] * 12  # float32 would lose the one
    assert sums.settle() is None


def test_a_micro_batch_without_a_policy_gradient_does_not_swamp_the_ratio():
    """Squares: of the policy loss 4 and 1e-12, of λ · CPL 1 and 1."""
    sums = WindowSums()
    for policy, cpl in ((4.0, 1.0), (1e-12, 1.0)):
        sums.add(torch.tensor([0.5, 1.0, 1, 2, 8, 2, 0.1, 0.2, 0.3, 1, policy, cpl, cpl]))
    assert cpl_metrics(sums.settle(), "sequence")["cpl/gradient_ratio"] == pytest.approx(math.sqrt(2 / 4))


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_a_gated_row_without_a_perception_token_has_a_loss_of_zero(reduction):
    nothing_selected = torch.tensor([0.0, 0.0, 2, 8, 40, 0, -0.3, 0, 0, 0, 1.0, 0.0, 0.0])
    metrics = cpl_metrics(nothing_selected, reduction)
    assert metrics["cpl/loss"] == 0.0 and metrics["cpl/perception_ratio"] == 0.0 and metrics["cpl/gradient_ratio"] == 0
    assert math.isnan(metrics["cpl/contrast_accuracy"])
    nothing_gated = torch.tensor([0.0, 0.0, 0, 8, 0, 0, 0, 0, 0, 0, 1.0, 0.0, 0.0])
    assert math.isnan(cpl_metrics(nothing_gated, reduction)["cpl/loss"])
    assert metrics.keys() == NAMES


@pytest.mark.parametrize("settings", [{"cpl_reduction": "token", "min_entropy_shift": 50.0}, {}])
def test_the_same_names_are_logged_at_every_step_and_evaluation(tmp_path, settings):
    trainer = make_trainer(
        tmp_path, make_rows([1, 0]), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        logging_steps=2, eval_strategy="steps", eval_steps=1, eval_dataset=make_rows([1]), per_device_eval_batch_size=4,
        **settings,
    )  # fmt: skip
    trainer.train()
    training = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(training) == 2 and len(evaluations) == 4
    for entries, prefix in ((training, ""), (evaluations, "eval_")):
        assert all({f"{prefix}{name}" for name in NAMES} <= entry.keys() for entry in entries)
    assert not any(name in trainer.state.log_history[-1] for name in NAMES)  # the summary of the run
    if settings:
        assert logged(trainer, "cpl/loss") == [0.0, 0.0]


def test_an_evaluation_within_a_logging_step_is_kept_apart(tmp_path):
    """The gated share of both steps, whatever an evaluation in between has seen."""

    def reward(completions, **kwargs):
        return [float(place == 0) if len(completions) == 8 else 0.5 for place in range(len(completions))]

    trainer = make_trainer(
        tmp_path, max_steps=2, logging_steps=2, num_generations=8, reward_funcs=reward, eval_strategy="steps", eval_steps=1,
        eval_dataset=make_rows([1] * 4), per_device_eval_batch_size=4, num_generations_eval=2,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "cpl/gated_ratio") == [1 / 8] and logged(trainer, "eval_cpl/gated_ratio") == [0.0, 0.0]


def test_a_logged_metric_is_that_of_all_micro_batches_together(tmp_path):
    """Micro-batches of one and of several gated rows: each row counts once, not each micro-batch."""
    trainer = make_trainer(tmp_path, make_rows([1, 1]), num_generations=4, share_prefix=False)
    trainer.current_gradient_accumulation_steps = 1
    batch = generation_batch(trainer)
    whole = {**batch, "cpl_views": batch["cpl_views"]}
    trainer.compute_loss(trainer.model, whole)
    expected = cpl_logged(trainer)
    gated = [row for row, pair in enumerate(batch["cpl_views"]) if pair is not None]
    assert len(gated) >= 3
    for kept in (gated[:1], gated[1:]):
        views = [pair if row in kept else None for row, pair in enumerate(batch["cpl_views"])]
        trainer.compute_loss(trainer.model, {**batch, "cpl_views": views})
    metrics = cpl_logged(trainer)
    for name in ("cpl/loss", "cpl/entropy_shift", "cpl/divergence_removed", "cpl/contrast_accuracy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name


def test_evaluating_single_rollouts_is_said_to_show_nothing(tmp_path, caplog):
    for settings, says in (({}, True), ({"gate_by_advantage": False}, False), ({"cpl_coef": 0.0}, False)):
        with told(caplog):
            make_trainer(tmp_path, num_generations_eval=1, eval_dataset=make_rows([1]), **settings)
        assert ("num_generations_eval=1" in caplog.text) == says


def test_the_exact_kl_goes_where_the_head_is(tmp_path):
    """With `device_map="auto"` the head may be on another device than the batch. Fake tensors stand in for two GPUs."""
    from torch._subclasses import FakeTensorMode

    from trl_cppo.method.objective import Objective
    from trl_cppo.method.request import ScoringRequest
    from trl_cppo.scoring import head as module

    trainer = make_trainer(tmp_path, cpl_divergence="kl")
    seen = []

    def kl_to_views(arguments, places, selected):
        seen.extend([tensor.device for tensor in (*places, selected)])
        return torch.zeros(selected.shape, device=selected.device), torch.ones(selected.shape, device=selected.device)

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(module, "kl_to_views", kl_to_views)
        observers = []
        patch.setattr(module, "observed_head", observers.append)
        mask = torch.ones(2, 5, dtype=torch.bool, device="cuda:0")
        request = ScoringRequest(rows=[0, 3], pairs=[], mask=mask)
        scoring = {"attention_mask": torch.ones(8, 9, dtype=torch.long, device="cuda:0"), "logits_to_keep": 5}
        module.answering_exact_kl(request, scoring, Objective.of(trainer.args))
        hidden, results = torch.zeros(8 * 8, 16, device="cuda:1"), [torch.zeros(64, device="cuda:1") for _ in range(2)]
        observers[0]((hidden,), tuple(results))
    assert set(seen) == {torch.device("cuda:1")} and len(seen) == 4
    assert {tensor.device for tensor in (request.selected, *request.divergences)} == {torch.device("cuda:0")}

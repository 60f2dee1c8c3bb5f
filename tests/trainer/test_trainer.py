# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The invariants of the trainer, on tiny random models."""

import copy
import math

import pytest
import torch
from conftest import (
    MIXED,
    QWEN,
    cpl_logged,
    generation_batch,
    logged,
    make_rows,
    make_trainer,
    placeholder_ids,
    weights,
)
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.method.losses import at_least_float32


class ForwardCounter:
    """Counts the forwards of a model and the rows that each gets."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        if kwargs.get("fused_lm_head"):  # a scoring forward, not a generation step
            self.rows.append(kwargs["input_ids"].size(0))


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


# λ = 0 is GRPO ------------------------------------------------------------------------------------------------------


# Where one generation batch mixes text-only rows with images, GRPOTrainer itself fails (see trl_cppo/run/upstream.py), so
# here the text-only rows come in batches of their own.
@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        ([1] * 8, {}),
        ([3, 1, 2, 1] * 2, {}),
        ([3, 1, 2, 1] * 2, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}),
        (
            [0] * 4 + [2] * 4,
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "steps_per_generation": 1},
        ),
        ([1] * 8, {"num_iterations": 2, "steps_per_generation": 2, "beta": 0.1}),
    ],
)
def test_zero_coefficient_is_grpo_bit_for_bit(tmp_path, counts, settings):
    runs = []
    digits.build_model().save_pretrained(tmp_path / "model")  # beta loads its reference model from a path
    for trainer_class, config_class, extra in [
        (GRPOTrainer, GRPOConfig, {}),
        (CPPOTrainer, CPPOConfig, {"cpl_coef": 0.0, "suppress_vision_tokens": False}),
    ]:
        # ban the placeholders in both runs: a random model samples them, and GRPOTrainer itself then crashes
        banned = {"suppress_tokens": placeholder_ids()}
        trainer = make_trainer(
            tmp_path, make_rows(counts), trainer_class, config_class,
            model=str(tmp_path / "model"), max_steps=3,
            generation_kwargs=banned, **settings, **extra,
        )  # fmt: skip
        completions = []
        generate = trainer._generate
        trainer._generate = lambda prompts, g=generate, c=completions: (c.append(g(prompts)), c[-1])[1]
        trainer.train()
        runs.append((trainer, [ids for output in completions for ids in output[1]]))
    (grpo, grpo_completions), (cppo, cppo_completions) = runs
    assert grpo_completions == cppo_completions
    for name in ("loss", "grad_norm", "reward", "entropy"):
        assert logged(grpo, name) == logged(cppo, name)
    first, second = weights(grpo), weights(cppo)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in digits.build_model().named_parameters())
    assert not [key for entry in cppo.state.log_history for key in entry if key.startswith("cpl/")]


def test_cpl_changes_training_but_not_the_first_rollouts(tmp_path):
    with_cpl = make_trainer(tmp_path, cpl_coef=0.5)
    with_cpl.train()
    without = make_trainer(tmp_path, cpl_coef=0.0)
    without.train()
    assert logged(with_cpl, "reward")[0] == logged(without, "reward")[0]
    assert logged(with_cpl, "completions/mean_length")[0] == logged(without, "completions/mean_length")[0]
    first, second = weights(with_cpl), weights(without)
    assert any(not torch.equal(first[name], second[name]) for name in first)


# One forward, and only what the gate lets through --------------------------------------------------------------------


def test_one_forward_a_loss_with_the_gated_rows_only(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(MIXED), share_prefix=False)  # packed rows: test_shared_prefix.py
    batch = generation_batch(trainer)
    gated = sum(pair is not None for pair in batch["cpl_views"])
    with_image_and_advantage = [
        n > 0 and a > 0 for n, a in zip(batch["num_images"], batch["advantages"].tolist(), strict=True)
    ]
    assert gated == sum(with_image_and_advantage) and 0 < gated < len(batch["advantages"])
    assert batch["num_gated_rows"] == gated
    counter = ForwardCounter(trainer.model)
    loss_and_gradients(trainer, batch)
    assert counter.rows == [len(batch["advantages"]) + 2 * gated]


def test_without_the_gate_every_row_with_an_image_has_views(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(MIXED), gate_by_advantage=False)
    batch = generation_batch(trainer)
    assert [pair is not None for pair in batch["cpl_views"]] == [n > 0 for n in batch["num_images"]]


def test_a_batch_without_a_gated_row_costs_no_view_and_is_grpo(tmp_path):
    calls = []

    def spy(image, generator):
        calls.append(image)
        return image

    trainer = make_trainer(
        tmp_path, reward_funcs=lambda completions, **_: [1.0] * len(completions),
        information_preserving=spy, information_removing=spy, cpl_coef=10.0, share_prefix=False,
    )  # fmt: skip
    batch = generation_batch(trainer)
    assert calls == [] and batch["cpl_views"] == [None] * 8 and batch["num_gated_rows"] == 0
    counter = ForwardCounter(trainer.model)
    loss, gradients = loss_and_gradients(trainer, batch)
    assert counter.rows == [8]
    trainer.args.cpl_coef = 0.0
    plain_loss, plain_gradients = loss_and_gradients(trainer, batch)
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(gradients[name], plain_gradients[name]) for name in plain_gradients)


def test_rollouts_of_a_prompt_share_their_views(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1, 2]), gate_by_advantage=False)
    views = generation_batch(trainer)["cpl_views"]
    assert all(view is views[0] for view in views[:4]) and all(view is views[4] for view in views[4:])
    assert views[0] is not views[4]


# The value of the loss ------------------------------------------------------------------------------------------------


def oracle(trainer, batch):
    """CPL and metrics of the batch by scoring each gated row and each of its views alone, in loops over tokens."""
    row_losses, token_losses, shifts, close, far = [], [], [], [], []
    for row, pair in enumerate(batch["cpl_views"]):
        if pair is None:
            continue
        length = int(batch["completion_mask"][row].sum())
        images = trainer.cppo_test_images[row]
        scored = [score_alone(trainer, batch, row, x) for x in (images, pair.preserved, pair.removed)]
        (anchor, entropy, p), (preserved, _, q_preserved), (removed, removed_entropy, q_removed) = scored
        shift = {t: float(removed_entropy[t] - entropy[t]) for t in range(length)}
        shifts += shift.values()
        scores = {t: s / (float(removed_entropy[t]) + 1e-6) for t, s in shift.items() if s > 0}
        kept = sorted(scores, key=scores.get, reverse=True)[: max(1, math.floor(0.5 * len(scores)))] if scores else []
        losses = []
        for t in kept:
            distances = []
            for view, q in ((preserved, q_preserved), (removed, q_removed)):
                delta = view[t] - anchor[t]
                k3 = torch.exp(delta) - delta - 1
                kl = (p[t].exp() * (p[t] - q[t])).sum()
                distances.append(kl if trainer.args.cpl_divergence == "kl" else k3)
            losses.append(torch.nn.functional.softplus((distances[0] - distances[1]) / 0.1))
            close.append(distances[0].item())
            far.append(distances[1].item())
        row_losses.append(sum(losses) / len(losses) if losses else torch.tensor(0.0))
        token_losses += losses
    metrics = {
        "gated_ratio": len(row_losses) / len(batch["advantages"]),
        "perception_ratio": len(close) / len(shifts),
        "entropy_shift": sum(shifts) / len(shifts),
        "divergence_preserved": sum(close) / len(close),
        "divergence_removed": sum(far) / len(far),
        "contrast_accuracy": sum(c < f for c, f in zip(close, far, strict=True)) / len(close),
    }
    return sum(row_losses) / len(row_losses), sum(token_losses) / len(token_losses), metrics


def score_alone(trainer, batch, row, images):
    """Of one row's completion given some images, by the model's plain logits: log-probs, entropies, distributions."""
    keep = batch["prompt_mask"][row].bool()
    ids = torch.cat([batch["prompt_ids"][row][keep], batch["completion_ids"][row]]).unsqueeze(0)
    mask = torch.cat([batch["prompt_mask"][row][keep], batch["completion_mask"][row]]).unsqueeze(0)
    pixels = trainer.processing_class.image_processor(images=images, return_tensors="pt")
    is_image = (ids == trainer.model.config.image_token_id).int()
    is_image[:, -batch["completion_ids"].size(1) :] = 0
    logits = trainer.model(input_ids=ids, attention_mask=mask, mm_token_type_ids=is_image, **pixels).logits
    length = batch["completion_ids"].size(1)
    logp = torch.log_softmax(at_least_float32(logits[0, -length - 1 : -1]) / trainer.temperature, dim=-1)
    entropy = -(logp.exp() * logp).sum(-1).detach()
    return logp.gather(1, batch["completion_ids"][row].unsqueeze(1)).squeeze(1), entropy, logp


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize(("reduction", "divergence"), [("sequence", "k3"), ("token", "k3"), ("sequence", "kl")])
def test_loss_and_gradient_agree_with_scoring_each_view_alone(tmp_path, family, reduction, divergence):
    dataset = make_rows([1, 2], sizes=[(56, 56), (84, 42)])
    settings = {"temperature": 0.8, "cpl_reduction": reduction, "cpl_divergence": divergence}
    trainer = make_trainer(tmp_path, dataset, family=family, **settings)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.cppo_test_images = [example["images"] for example in inputs]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(inputs)

    trainer.args.cpl_coef = 0.0
    _, grpo = loss_and_gradients(trainer, batch)
    trainer.args.cpl_coef = 1.0
    trainer._cpl_sums["train"].settle()
    _, both = loss_and_gradients(trainer, batch)
    metrics_logged = cpl_logged(trainer)

    trainer.model.zero_grad()
    by_row, by_token, metrics = oracle(trainer, batch)
    expected = by_row if reduction == "sequence" else by_token
    expected.backward()
    metrics_logged.pop("cpl/gradient_ratio")  # tested in test_gradient_bound.py
    expected_metrics = {"cpl/loss": expected.item(), **{f"cpl/{name}": value for name, value in metrics.items()}}
    assert metrics_logged == pytest.approx(expected_metrics, rel=2e-3, abs=1e-7)
    assert len(set(expected_metrics.values())) == 7  # none could be taken for another
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert norm > 1e-3
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(both[name] - grpo[name], parameter.grad, rtol=1e-2, atol=float(norm) * 1e-4)


def test_shuffling_keeps_views_with_their_rows(tmp_path):
    dataset = make_rows([1, 2, 0, 1], sizes=[(56, 56), (84, 42), (42, 70)])
    trainer = make_trainer(tmp_path, dataset, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    trainer.args.gate_by_advantage = False
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    seen = 0
    for batch in trainer._buffered_inputs:
        grids = torch.split(batch["image_grid_thw"], batch["num_images"]) if "image_grid_thw" in batch else []
        for pair, count, grid in zip(batch["cpl_views"], batch["num_images"], grids, strict=True):
            assert (pair is None) == (count == 0)
            if pair is not None:
                seen += 1
                processed = trainer.processing_class.image_processor(images=pair.preserved, return_tensors="pt")
                assert torch.equal(processed["image_grid_thw"], grid)
    assert seen == 12


@pytest.mark.parametrize(("share_prefix", "rounding"), [(False, 1e-12), ("auto", 1e-6)])
def test_masked_places_ungated_rows_and_text_rows_do_not_reach_the_cpl(tmp_path, share_prefix, rounding):
    trainer = make_trainer(tmp_path, make_rows([1, 0]), cpl_coef=1.0, share_prefix=share_prefix)
    batch = generation_batch(trainer)

    def cpl_of(batch):
        loss_and_gradients(trainer, batch)
        metrics = cpl_logged(trainer)
        metrics.pop("cpl/gradient_ratio")  # the policy loss, which does see the ungated rows, is half of it
        return metrics

    plus, equals = trainer.processing_class.tokenizer.convert_tokens_to_ids(["+", "="])
    batch["completion_mask"][:, 4:] = 0  # as if every rollout had ended early
    reference = cpl_of(batch)
    changed = copy.copy(batch)
    changed["completion_ids"] = batch["completion_ids"].clone()
    changed["completion_ids"][:, 4:] = plus
    ungated = [row for row, pair in enumerate(batch["cpl_views"]) if pair is None]
    changed["completion_ids"][ungated] = equals
    changed["pixel_values"] = batch["pixel_values"].clone()
    patches = int(batch["image_grid_thw"][0].prod())
    for row in ungated:
        changed["pixel_values"][row * patches : (row + 1) * patches] = 0.0
    assert cpl_of(changed) == pytest.approx(reference, rel=1e-5, abs=rounding)
    gated = next(row for row, pair in enumerate(batch["cpl_views"]) if pair is not None)
    changed["completion_ids"] = batch["completion_ids"].clone()
    visible = batch["completion_ids"][gated, :4]
    changed["completion_ids"][gated, :4] = torch.where(visible == plus, equals, plus)
    assert cpl_of(changed)["cpl/loss"] != pytest.approx(reference["cpl/loss"], rel=1e-5)


def test_an_empty_selection_is_zero_and_connected(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, cpl_coef=1.0)
    batch = generation_batch(trainer)
    assert batch["num_gated_rows"] > 0
    monkeypatch.setattr(
        "trl_cppo.method.objective.perception_token_mask",
        lambda entropies, *args, **kwargs: torch.zeros_like(entropies).bool(),
    )
    parts = []
    cpl = trainer._cpl_share
    trainer._cpl_share = lambda *args: parts.append(cpl(*args)) or parts[-1]
    loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch)
    assert parts[-1].item() == 0.0 and parts[-1].requires_grad
    parts[-1].backward()  # alone, so that it is the CPL's own graph that reaches the weights
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and all((gradient == 0).all() for gradient in gradients)


# Batching -------------------------------------------------------------------------------------------------------------


def cpl_gradient(trainer, batch, micro_batch_size):
    """The summed CPL gradient of a generation batch cut into micro-batches."""
    from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

    chunks = len(batch["advantages"]) // micro_batch_size
    trainer.args.steps_per_generation = chunks
    trainer.current_gradient_accumulation_steps = chunks
    parts = [unsplit_pixel_values_by_grid(b) for b in split_tensor_dict(split_pixel_values_by_grid(batch), chunks)]
    gradients = []
    for coefficient in (1.0, 0.0):
        trainer.args.cpl_coef = coefficient
        trainer.model.zero_grad()
        for part in parts:
            part = dict(part)
            if coefficient == 0.0:
                del part["cpl_views"]
            trainer.compute_loss(trainer.model, part).backward()
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
    return {name: gradients[0][name] - gradients[1][name] for name in gradients[0]}


@pytest.mark.parametrize(("reduction", "same"), [("sequence", True), ("token", False)])
def test_micro_batching_leaves_the_sequence_gradient_alone(tmp_path, reduction, same):
    trainer = make_trainer(
        tmp_path, make_rows(MIXED), per_device_train_batch_size=16, num_generations=4, cpl_reduction=reduction
    )
    batch = generation_batch(trainer)
    whole = cpl_gradient(trainer, batch, 16)
    scale = max(float(g.abs().max()) for g in whole.values())
    differences = []
    for size in (8, 4, 2, 1):
        parts = cpl_gradient(trainer, batch, size)
        differences.append(max(float((parts[name] - whole[name]).abs().max()) for name in whole) / scale)
    assert (max(differences) < 2e-4) == same, differences


def test_inputs_are_not_mutated(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(MIXED))
    batch = generation_batch(trainer)
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else copy.copy(v) for k, v in batch.items()}
    first, _ = loss_and_gradients(trainer, batch)
    assert batch.keys() == kept.keys()
    for name, value in kept.items():
        assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value
    second, _ = loss_and_gradients(trainer, batch)
    assert torch.equal(first, second)


def test_without_a_cpl_no_scoring_argument_is_looked_at(tmp_path, monkeypatch):
    """A TRL whose scoring takes what is not known here trains with cpl_coef=0, as the error of the others says."""
    trainer = make_trainer(tmp_path, cpl_coef=0.0, beta=0.0, num_iterations=2)
    monkeypatch.setattr("trl_cppo.trainer.append_view_rows", lambda *args: pytest.fail("looked at"))
    trainer.train()
    assert len(logged(trainer, "loss")) == 2

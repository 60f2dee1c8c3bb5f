# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What GRPOConfig offers works with the CPL, and leaves the CPL alone."""

import math

import numpy as np
import pytest
import torch
from conftest import cpl_logged, hash_reward, logged, make_rows, make_trainer, weights
from peft import LoraConfig
from tiny_models import build
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer
from trl_cppo.scoring.families import placeholder_ids

ROWS = [1, 2, 0, 1]
# Each changes GRPO's part of the loss, or what is computed beside it, but not the rollouts of the first batch.
LOSS_SETTINGS = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "top entropy": {"top_entropy_quantile": 0.5},
    "entropy bonus": {"entropy_coef": 0.01},
    "kl": {"beta": 0.1},
    "off-policy mask": {"off_policy_mask_threshold": 0.5},
    "delta": {"delta": 2.0},
}


def cpl_gradient(trainer):
    """The gradient that the CPL adds on the first generation batch."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    gradients = []
    for coefficient in (1.0, 0.0):
        trainer.args.cpl_coef = coefficient
        trainer.model.zero_grad()
        inputs = batch if coefficient else {name: value for name, value in batch.items() if name != "cpl_views"}
        trainer.compute_loss(trainer.model, inputs).backward()
        gradients.append([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None])
    return torch.cat(gradients[0]) - torch.cat(gradients[1])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = build("qwen2_5_vl")
    model.save_pretrained(folder)  # beta loads its reference model from a path
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference_gradient(model_folder, tmp_path_factory):
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path_factory.mktemp("out"), make_rows(ROWS), model=model_folder, cpl_coef=1.0)
    return cpl_gradient(trainer)


@pytest.mark.parametrize("name", LOSS_SETTINGS)
def test_the_cpl_gradient_does_not_depend_on_grpos_part(tmp_path, model_folder, reference_gradient, name):
    trainer = make_trainer(tmp_path, make_rows(ROWS), model=model_folder, cpl_coef=1.0, **LOSS_SETTINGS[name])
    gradient = cpl_gradient(trainer)
    assert reference_gradient.norm() > 1e-3
    assert (gradient - reference_gradient).norm() < 1e-3 * reference_gradient.norm()


def partly_none(completions, **kwargs):
    return [None if i % 3 == 0 else float(i % 2) for i in range(len(completions))]


RUN_SETTINGS = {
    **LOSS_SETTINGS,
    "two iterations": {"num_iterations": 2},
    "old policy": {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "two generations a window": {
        "steps_per_generation": 2, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 4,
    },
    "truncated masked": {"mask_truncated_completions": True, "max_completion_length": 12},
    "no scaling": {"scale_rewards": "none"},
    "batch scaling": {"scale_rewards": "batch"},
    "rewards with weights and None": {"reward_funcs": [hash_reward, partly_none], "reward_weights": [0.7, 0.3]},
    "normalize then sum": {
        "reward_funcs": [hash_reward, partly_none], "multi_objective_aggregation": "normalize_then_sum",
    },
    "padding": {"pad_to_multiple_of": 16},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "re-entrant": {
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
}  # fmt: skip


def run(tmp_path, model_folder, trainer_class, config_class, **settings):
    banned = {"suppress_tokens": placeholder_ids(build("qwen2_5_vl")[0])}
    # no text-only rows: GRPOTrainer itself fails on them
    trainer = make_trainer(
        tmp_path, make_rows([1, 2, 1, 3]), trainer_class, config_class, model=model_folder, max_steps=3,
        generation_kwargs=banned, **settings,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", RUN_SETTINGS)
def test_every_setting_trains_and_lambda_zero_is_grpo(tmp_path, model_folder, name):
    settings = RUN_SETTINGS[name]
    grpo = run(tmp_path, model_folder, GRPOTrainer, GRPOConfig, **settings)
    zero = run(tmp_path, model_folder, CPPOTrainer, CPPOConfig, cpl_coef=0.0, suppress_vision_tokens=False, **settings)
    cppo = run(tmp_path, model_folder, CPPOTrainer, CPPOConfig, cpl_coef=1.0, **settings)
    first, second, third = weights(grpo), weights(zero), weights(cppo)
    assert logged(grpo, "loss") == logged(zero, "loss")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)
    assert all(torch.isfinite(value).all() for value in third.values())
    assert len(logged(cppo, "cpl/gated_ratio")) == 3 and max(logged(cppo, "cpl/gated_ratio")) > 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_adapters_train_alone(tmp_path, model_folder, beta):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
    before = weights(make_trainer(tmp_path, model=model_folder, peft_config=lora))
    trainer = run(tmp_path, model_folder, CPPOTrainer, CPPOConfig, cpl_coef=1.0, beta=beta, peft_config=lora)
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert max(logged(trainer, "cpl/perception_ratio")) > 0


def test_truncated_completions_have_no_views_where_they_are_masked(tmp_path, model_folder):
    trainer = make_trainer(
        tmp_path, make_rows([1] * 4), model=model_folder, gate_by_advantage=False, mask_truncated_completions=True,
        max_completion_length=12, per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    kept = batch["completion_mask"].any(dim=1).tolist()
    assert [pair is not None for pair in batch["cpl_views"]] == kept and 0 < sum(kept) < len(kept)


def test_bf16_and_float32_agree_on_the_loss(tmp_path, model_folder):
    losses = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, make_rows(ROWS), model=model_folder, bf16=bf16, gate_by_advantage=False)
        inputs = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            trainer.compute_loss(trainer.model, trainer._generate_and_score_completions(inputs))
        losses.append(cpl_logged(trainer)["cpl/loss"])
    assert math.isclose(*losses, rel_tol=0.05)


def test_evaluation_while_training_and_completions_with_images(tmp_path, model_folder):
    trainer = run(
        tmp_path, model_folder, CPPOTrainer, CPPOConfig, eval_dataset=make_rows([1, 2]), eval_strategy="steps",
        eval_steps=1, log_completions=True, log_multimodal=True, per_device_eval_batch_size=8,
    )  # fmt: skip
    evaluated = logged(trainer, "eval_cpl/loss")
    assert len(evaluated) == 3 and all(np.isfinite(value) for value in evaluated)
    assert len(list((tmp_path / "completions").glob("*.parquet"))) >= 3

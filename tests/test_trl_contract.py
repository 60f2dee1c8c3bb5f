# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Exactly what CPPOTrainer relies on in TRL's private parts. A TRL that breaks us fails here first, and readably."""

import inspect
import math

import pytest
import torch
import trl.trainer.utils
from conftest import make_rows, make_trainer, picture
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from trl_cppo.view_batch import _PASSED_ON, BY_ROW, COUNTS, PIXELS


def parameters(method):
    return [name for name in inspect.signature(method).parameters if name != "self"]


def test_the_overridden_methods_take_what_we_hand_on():
    assert parameters(GRPOTrainer._generate_and_score_completions) == ["inputs"]
    assert parameters(GRPOTrainer.compute_loss) == ["model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters(GRPOTrainer._generate) == ["prompts"]
    assert parameters(GRPOTrainer._tokenize_prompts) == ["prompts"]
    assert parameters(GRPOTrainer._load_from_checkpoint) == ["resume_from_checkpoint", "model"]


def test_every_argument_of_the_scoring_function_is_known():
    # an unknown one also raises at run time, see append_view_rows; here one sees it before a run
    assert set(parameters(GRPOTrainer._get_per_token_logps_and_entropies)) <= BY_ROW | PIXELS | COUNTS | _PASSED_ON


@pytest.fixture
def grpo(tmp_path):
    return make_trainer(tmp_path, make_rows([1] * 4), GRPOTrainer, GRPOConfig, per_device_train_batch_size=8)


def test_the_fused_head_calls_its_kernel_as_the_exact_kl_expects():
    names = [
        "hidden",
        "weight",
        "bias",
        "targets",
        "temperature",
        "chunk_size",
        "final_logit_softcapping",
        "logit_scale",
    ]
    assert parameters(trl.trainer.utils._ChunkedLogProbFunction.forward) == ["ctx", *names, "outputs"]
    assert list(inspect.signature(trl.trainer.utils.maybe_gather_lm_head_ctx).parameters) == ["params"]


def test_the_loss_scores_once_and_in_rows_of_the_batch(grpo):
    calls = []
    score = grpo._get_per_token_logps_and_entropies

    def spy(model, *args, **kwargs):
        result = score(model, *args, **kwargs)
        calls.append((inspect.signature(score).bind(model, *args, **kwargs).arguments, result))
        return result

    grpo._get_per_token_logps_and_entropies = spy
    grpo.model.train()
    grpo.current_gradient_accumulation_steps = 1
    batch = grpo._generate_and_score_completions(next(iter(grpo.get_train_dataloader())))
    assert calls == []  # on-policy: no old log-probs
    grpo.compute_loss(grpo.model, batch)
    [(arguments, result)] = calls
    assert arguments["compute_entropy"] is True and arguments["input_ids"].size(0) == len(batch["advantages"])
    logps, entropies, _ = result
    assert logps.shape == entropies.shape == batch["completion_ids"].shape
    assert batch["advantages"].shape == (8,) and batch["num_images"] == [1] * 8
    assert not {"cpl_views", "num_gated_rows"} & set(batch)  # the names are still free


def test_generation_returns_the_images_last_but_one(grpo):
    grpo.model.train()
    content = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "sum?"}]
    *_, images, tool_images = grpo._generate([[{"role": "user", "content": content}]] * 4)
    assert [image.tobytes() for [image] in images] == [picture(3).tobytes()] * 4 and tool_images == []
    assert grpo.tools == [] and grpo.environment_factories is None


def test_the_trainer_has_the_attributes_that_we_read(grpo):
    grpo.model.train()
    assert grpo._step == 0 and grpo._metrics["train"]["anything"] == []
    assert grpo.num_generations == 4 and grpo.num_generations_eval == 4
    assert grpo.use_vllm is False and isinstance(grpo.generation_kwargs, dict)
    assert grpo._tokenizer is grpo.processing_class.tokenizer and grpo.temperature == 1.0


def test_shuffling_and_splitting_keep_our_two_entries():
    rows = [f"row {i}" for i in range(6)]
    batch = {"index": torch.arange(6), "cpl_views": rows, "num_gated_rows": torch.tensor(4)}
    parts = split_tensor_dict(shuffle_sequence_dict(batch), 3)
    assert sorted(view for part in parts for view in part["cpl_views"]) == rows
    for part in parts:
        assert part["cpl_views"] == [f"row {i}" for i in part["index"].tolist()]
        assert part["num_gated_rows"].item() == 4


def test_nan_metrics_are_left_out_of_the_logged_mean(grpo):
    grpo.model.train()
    grpo._metrics["train"]["half"] += [1.0, math.nan, 2.0]
    grpo._metrics["train"]["none"] += [math.nan]
    grpo.log({})
    entry = grpo.state.log_history[-1]
    assert entry["half"] == 1.5 and entry["none"] is None

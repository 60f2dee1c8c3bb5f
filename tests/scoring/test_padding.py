# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A prompt is the same tokens whatever its neighbours in the batch, and padded on the left, in every family."""

import pytest
import torch
from conftest import generation_batch, hash_reward, make_config, make_rows, make_trainer
from tiny_models import FAMILIES, build

from trl_cppo import CPPOTrainer

SIZES = [(56, 56), (84, 56)]  # pixels
# PaliGemma's processor fails on prompts of different lengths ("inhomogeneous shape"), so that it never pads.
PADDED = [family for family in FAMILIES if family != "paligemma"]


def trainer_padding(side, tmp_path, family, rows):
    """Whose batches are scored by the old policy, too, where GRPOTrainer can (see test_families.py)."""
    model, processor = build(family)
    processor.tokenizer.padding_side = side
    steps = 1 if family == "llava_onevision" else 2
    args = make_config(tmp_path, num_generations=2, steps_per_generation=steps, per_device_train_batch_size=8 // steps)
    return CPPOTrainer(
        model=model, reward_funcs=hash_reward, args=args, train_dataset=rows, processing_class=processor
    )


@pytest.mark.parametrize("family", PADDED)
def test_a_processor_that_pads_on_the_right_scores_as_one_that_pads_on_the_left(family, tmp_path):
    rows = make_rows([1, 2, 2, 3], SIZES)
    batches = []
    for side in ("left", "right"):
        trainer = trainer_padding(side, tmp_path, family, rows)
        assert trainer.processing_class.tokenizer.padding_side == "left"
        torch.manual_seed(0)
        batches.append(generation_batch(trainer))
    left, right = batches
    assert len(set(left["prompt_mask"].sum(dim=1).tolist())) > 1  # there was something to pad
    compared = [name for name, value in left.items() if isinstance(value, torch.Tensor)]
    assert "pixel_values" in compared and ("old_per_token_logps" in compared or family == "llava_onevision")
    for name in compared:
        torch.testing.assert_close(right[name], left[name], msg=name)


@pytest.mark.parametrize("family", PADDED)
def test_the_tokens_of_a_prompt_do_not_depend_on_its_neighbours(family, tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1, 2, 3, 1], SIZES), family=family)
    prompts = []
    for row in trainer.train_dataset:
        (message,) = row["prompt"]
        content = [{"type": "image", "image": image} for image in row["images"]]
        prompts.append([{**message, "content": [*content, {"type": "text", "text": message["content"]}]}])
    together, _, fields = trainer._tokenize_prompts(prompts)
    alone = [trainer._tokenize_prompts([prompt]) for prompt in prompts]
    assert together == [ids for (ids,), _, _ in alone]
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in fields:
            assert fields[name] == [types for *_, one in alone for types in one[name]]
            assert [len(types) for types in fields[name]] == [len(ids) for ids in together]

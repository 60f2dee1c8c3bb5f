# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whole runs, sampling and the interface of the trainer, on tiny random models."""

import inspect

import pytest
import torch
from conftest import (
    MIXED,
    QWEN,
    generation_batch,
    hash_reward,
    logged,
    make_config,
    make_rows,
    make_trainer,
    picture,
    placeholder_ids,
    weights,
)
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOTrainer, digits

# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", QWEN)
def test_a_short_run_logs_every_metric_each_step(tmp_path, family):
    trainer = make_trainer(tmp_path, make_rows(MIXED), family=family, max_steps=3, eval_dataset=make_rows([1, 2]))
    trainer.train()
    trainer.evaluate()
    names = ["loss", "gated_ratio", "perception_ratio", "entropy_shift", "divergence_preserved"]
    names = [f"cpl/{name}" for name in [*names, "divergence_removed", "contrast_accuracy", "gradient_ratio"]]
    for name in names:
        assert len(logged(trainer, name)) == 3 and len(logged(trainer, f"eval_{name}")) == 1
    for name in ("cpl/gated_ratio", "cpl/perception_ratio", "cpl/contrast_accuracy"):
        assert all(value is None or 0 <= value <= 1 for value in logged(trainer, name))


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path):
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, cpl_coef=0.1)
    whole = make_trainer(tmp_path / "whole", make_rows(MIXED), **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", make_rows(MIXED), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert logged(whole, "cpl/loss")[2:] == logged(resumed, "cpl/loss")[2:]


def test_views_ignore_and_spare_the_global_generators(tmp_path):
    drawn = []
    for seed in (0, 1):
        trainer = make_trainer(tmp_path, make_rows([1, 2]), gate_by_advantage=False)
        inputs = next(iter(trainer.get_train_dataloader()))
        batch = {
            "advantages": torch.ones(8), "completion_mask": torch.ones(8, 3), "num_images": [1] * 4 + [2] * 4,
        }  # fmt: skip
        inputs = sorted(inputs, key=lambda example: len(example["images"]))
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        views = trainer._make_views(inputs, [0] * 4 + [1] * 4, batch, ("train", 0, 0), trainer._gated(batch))
        assert torch.equal(state, torch.get_rng_state())
        drawn.append([x.tobytes() for pair in views for x in pair.preserved + pair.removed])
    assert drawn[0] == drawn[1]


def test_generation_key_separates_generations_and_survives_a_resume(tmp_path):
    keys = []

    class Recorder(CPPOTrainer):
        def _generation_key(self):
            keys.append(super()._generation_key())
            return keys[-1]

    settings = dict(gradient_accumulation_steps=4, steps_per_generation=2, max_steps=2, per_device_train_batch_size=4)
    trainer = make_trainer(
        tmp_path, make_rows([1] * 8), Recorder, eval_dataset=make_rows([1] * 4), eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=8, **settings,
    )  # fmt: skip
    trainer.train()
    train = [key for key in keys if key[0] == "train"]
    assert train == [("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("train", 1, 1)]
    assert [key for key in keys if key[0] == "eval"] == [("eval", 0, 0), ("eval", 0, 1)] * 2


# Sampling -------------------------------------------------------------------------------------------------------------


def biased_model(token_id):
    """A model that puts nearly all probability on one token."""
    model = digits.build_model()
    model.lm_head.register_forward_hook(
        lambda module, args, logits: logits + 50.0 * (torch.arange(logits.size(-1)) == token_id)
    )
    return model


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_are_never_sampled(tmp_path, kind):
    token = placeholder_ids()[["image", "video"].index(kind)]
    trainer = make_trainer(tmp_path, model=biased_model(token), generation_kwargs={"suppress_tokens": [3]})
    batch = generation_batch(trainer)
    assert not torch.isin(batch["completion_ids"], torch.tensor([*placeholder_ids(), 3])).any()
    assert set(trainer.generation_config.suppress_tokens) == {*placeholder_ids(), 3}


def test_suppression_can_be_turned_off(tmp_path):
    cppo = make_trainer(tmp_path, suppress_vision_tokens=False)
    grpo = make_trainer(tmp_path, trainer_class=GRPOTrainer, config_class=GRPOConfig)
    assert cppo.generation_config.to_dict() == grpo.generation_config.to_dict()
    assert cppo.generation_kwargs == grpo.generation_kwargs


def test_without_vllm_the_error_names_the_installation_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_cppo.run.upstream.is_vllm_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "trl-cppo\[vllm\]", or set use_vllm=False'):
        make_trainer(tmp_path, use_vllm=True)


# Interface ------------------------------------------------------------------------------------------------------------


def test_arguments_are_those_of_grpo_trainer_and_two_more():
    ours = list(inspect.signature(CPPOTrainer.__init__).parameters)
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert ours == [*theirs, "information_preserving", "information_removing"]


def test_card_attributes(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_model_card(dataset_name="digits")
    card = (tmp_path / "README.md").read_text()
    assert "- cppo" in card and "Trained with CPPO" in card and "huggingface.co/papers/2601.00501" in card
    assert "{CPPO: Contrastive Perception for Vision Language Policy Optimization}" in card


def test_callables_win_over_names(tmp_path):
    trainer = make_trainer(
        tmp_path, gate_by_advantage=False,
        information_preserving=lambda image, generator: picture(1, *image.size),
        information_removing=lambda image, generator: picture(2, *image.size),
    )  # fmt: skip
    pair = generation_batch(trainer)["cpl_views"][0]
    assert pair.preserved[0].tobytes() == picture(1).tobytes() and pair.removed[0].tobytes() == picture(2).tobytes()


def test_images_inside_the_prompts(tmp_path):
    rows = [
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": picture(i)}, {"type": "text", "text": "sum?"}],
                }
            ],
            "solution": "1",
        }
        for i in range(4)
    ]
    dataset = Dataset.from_dict({"index": list(range(4))})
    dataset.set_transform(lambda batch: {k: [rows[i][k] for i in batch["index"]] for k in ("prompt", "solution")})
    trainer = make_trainer(tmp_path, make_rows([1] * 4), gate_by_advantage=False, remove_unused_columns=False)
    trainer.train_dataset = dataset
    views = generation_batch(trainer)["cpl_views"]
    assert all(pair is not None and len(pair.preserved) == 1 for pair in views)


def test_refusals(tmp_path):
    model, processor = digits.build_model(), digits.build_processor()
    arguments = dict(
        model=model, reward_funcs=hash_reward, args=make_config(tmp_path), train_dataset=make_rows([1] * 4),
        processing_class=processor,
    )  # fmt: skip

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            CPPOTrainer(**{**arguments, **changes})

    refused(TypeError, "must be a CPPOConfig, got GRPOConfig", args=make_config(tmp_path, GRPOConfig))
    refused(ValueError, "GRPOTrainer", processing_class=processor.tokenizer)
    no_prompt = make_rows([1]).rename_column("prompt", "question")
    refused(ValueError, "no column 'prompt'; its columns are .*question", train_dataset=no_prompt)
    refused(ValueError, "train_dataset has no rows", train_dataset=make_rows([1]).select([]))
    no_image = make_rows([1]).remove_columns("images")
    refused(ValueError, "no column 'image' or 'images'", train_dataset=no_image)
    refused(ValueError, r"eval_dataset\['b'\] has no rows", eval_dataset={"b": make_rows([1]).select([])})


def test_a_bad_image_is_named_by_row_and_column(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1, 2]), gate_by_advantage=False)
    batch = {"advantages": torch.ones(2), "completion_mask": torch.ones(2, 3), "num_images": [1, 2]}
    rows = [{"prompt": "one", "images": [picture(0)]}, {"prompt": "two", "images": [picture(0), 3]}]
    trainer.num_generations = 1
    with pytest.raises(ValueError, match=r"Row 1 .*\(prompt two\), column 'images', image 1: expected a PIL image"):
        trainer._make_views(rows, [0, 1], batch, ("train", 0, 0), trainer._gated(batch))
    rows[1]["images"] = [picture(0)]
    with pytest.raises(ValueError, match=r"Row 1 .* has 1 image\(s\) in column 'images', but .* with 2"):
        trainer._make_views(rows, [0, 1], batch, ("train", 0, 0), trainer._gated(batch))


def test_a_reward_of_the_wrong_length_is_named(tmp_path):
    def three_rewards(completions, **kwargs):
        return [0.0, 1.0, 2.0]

    with pytest.raises(ValueError, match="'three_rewards' returned 3 rewards, but 8 were expected"):
        make_trainer(tmp_path, reward_funcs=three_rewards).train()

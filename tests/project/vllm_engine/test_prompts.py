# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What reaches vLLM is what the trainer scores, and what is pushed to it is what is trained."""

import pytest
import torch
from conftest import make_rows
from engine import MIXED, SIZES, change_weights, differences, generate, make_vllm_trainer
from safetensors.torch import load_file
from tiny_models import FAMILIES, build

from trl_cppo.scoring import families

pytestmark = pytest.mark.vllm

AGREE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm"]
BOTH_WAYS = ["gemma3", "gemma4"]  # their image tokens attend to each other, but not in vLLM on a CPU
PACKED_EXPERTS = ["qwen3_vl_moe"]  # vLLM packs them for the CPU, so that none can be pushed
HYBRID = ["qwen3_5", "qwen3_5_moe", "lfm2_vl"]  # on a CPU vLLM's log-probabilities are others, of text alone too
REFUSED = [name for name, family in families.FAMILIES.items() if family.no_vllm]
COUNTS = {"one": [1] * 4, "several": [2, 3, 2, 2], "mixed": MIXED, "none": [0] * 4}


@pytest.fixture
def unrefused(monkeypatch):
    monkeypatch.setattr("trl_cppo.run.upstream_vllm.vllm_obstacle", lambda *args: None)


def prompts_seen(trainer, monkeypatch):
    """A list that fills with the prompts behind which the engine sampled."""
    seen = []
    sample = trainer.vllm_generation.llm.generate

    def generate_and_note(prompts, **kwargs):
        outputs = sample(prompts, **kwargs)
        seen.extend(list(output.prompt_token_ids) for output in outputs)
        return outputs

    monkeypatch.setattr(trainer.vllm_generation.llm, "generate", generate_and_note)
    return seen


def scored_prompts(batch):
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]


def causal_images(model):
    """The model with image tokens that attend to what is before them only."""
    if model.config.model_type == "gemma4":
        model.config.text_config.use_bidirectional_attention = None
        return
    forward = model.model.forward

    def without_types(*args, token_type_ids=None, **kwargs):
        types = None if token_type_ids is None else torch.zeros_like(token_type_ids)
        return forward(*args, token_type_ids=types, **kwargs)

    model.model.forward = without_types


def test_each_family_is_in_one_list():
    assert sorted(AGREE + BOTH_WAYS + PACKED_EXPERTS + HYBRID + REFUSED) == sorted(FAMILIES)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("family", AGREE + BOTH_WAYS)
def test_vllm_samples_behind_the_prompt_that_is_scored(family, counts, tmp_path, vllm_models, monkeypatch, unrefused):
    model, _ = build(family)
    model = type(model).from_pretrained(vllm_models(family))
    if family in BOTH_WAYS:
        causal_images(model)
    trainer = make_vllm_trainer(tmp_path, vllm_models(family), family, make_rows(COUNTS[counts], SIZES), model=model)
    seen = prompts_seen(trainer, monkeypatch)
    for _ in range(2):  # the same images come back after an update
        batch = generate(trainer)
        assert seen == scored_prompts(batch)
        assert differences(batch).max() < 1e-3
        seen.clear()
        change_weights(trainer)


@pytest.mark.parametrize("family", PACKED_EXPERTS)
def test_where_nothing_can_be_pushed_the_saved_weights_agree(family, tmp_path, vllm_models, monkeypatch):
    trainer = make_vllm_trainer(tmp_path, vllm_models(family), family)
    trainer._last_loaded_step = 0
    seen = prompts_seen(trainer, monkeypatch)
    batch = generate(trainer)
    assert seen == scored_prompts(batch) and differences(batch).max() < 1e-3


@pytest.mark.parametrize("family", HYBRID)
def test_hybrids_sample_behind_the_prompt_that_is_scored(family, tmp_path, vllm_models, monkeypatch, unrefused):
    trainer = make_vllm_trainer(tmp_path, vllm_models(family), family, engine={"dtype": "bfloat16"})
    seen = prompts_seen(trainer, monkeypatch)
    assert seen == scored_prompts(generate(trainer))


@pytest.mark.parametrize("family", PACKED_EXPERTS)
def test_experts_are_pushed_in_the_layout_of_the_checkpoint(family, tmp_path, vllm_models):
    trainer = make_vllm_trainer(tmp_path, vllm_models(family), family)
    pushed = dict(trainer.vllm_generation._iter_named_params())
    saved = load_file(vllm_models(family) / "model.safetensors")
    experts = [name for name in saved if "experts." in name]
    assert experts
    for name in experts:
        torch.testing.assert_close(pushed[name].detach(), saved[name], msg=name)


@pytest.mark.parametrize("family", REFUSED + BOTH_WAYS + HYBRID + ["mllama"])
def test_a_family_that_was_not_found_right_is_refused_before_the_engine_starts(family, tmp_path, monkeypatch):
    def start(**kwargs):
        raise AssertionError("the engine starts")

    monkeypatch.setattr("trl.generation.vllm_generation.LLM", start)
    like = family if family in FAMILIES else "qwen2_5_vl"
    model, _ = build(like)
    model.config.model_type = family
    with pytest.raises(ValueError, match=rf"not supported for {family}: .* \(use_vllm=False\)"):
        make_vllm_trainer(tmp_path, None, like, model=model)


@pytest.mark.parametrize("family", BOTH_WAYS)
def test_on_other_devices_it_is_said_that_a_family_was_not_checked(
    family, tmp_path, vllm_models, monkeypatch, unrefused
):
    said = []
    monkeypatch.setattr("trl_cppo.run.upstream_vllm.logger.warning", said.append)
    make_vllm_trainer(tmp_path, vllm_models(family), family)
    assert (
        f"vLLM was not checked on GPUs for {family}, and on CPUs it is not right: {families.FAMILIES[family].no_vllm_on_cpus}."
        in said[0]
    )

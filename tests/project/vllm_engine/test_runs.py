# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Training with an engine beside it: the settings that people combine, what is sampled, and what stops a run."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import noise
import pytest
import torch
from agent_model import CALL, agent_model_and_processor
from combinations import cover, row_id
from conftest import logged, make_rows, picture, placeholder_ids
from engine import MIXED, SIZES, change_weights, differences, generate, make_vllm_trainer, modes
from peft import LoraConfig
from tiny_models import build
from trl.generation.vllm_generation import VLLMGeneration

from trl_cppo.run.sampler_check import DIFFERENCE, SamplerMismatchError
from trl_cppo.run.upstream_vllm import RepairedVLLMGeneration

pytestmark = pytest.mark.vllm

FACTORS = {
    "cpl_coef": [0.01, 0.0],
    "vllm_importance_sampling_correction": [True, False],
    "lora": [False, True],
    "beta": [0.0, 0.04],
    "share_prefix": [True, False],
    "gradient_checkpointing": [False, True],
    "num_iterations": [1, 2],
    "steps_per_generation": [1, 2],
    "eval_strategy": ["no", "steps"],
    "bf16": [False, True],
}


@pytest.mark.parametrize("row", cover(FACTORS), ids=row_id)
def test_settings_meet(tmp_path, vllm_models, row):
    row = dict(row)
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")} if row.pop("lora") else {}
    rows = make_rows(2 * MIXED, SIZES)
    trainer = make_vllm_trainer(
        tmp_path, vllm_models("qwen2_5_vl"), dataset=rows, max_steps=3, eval_dataset=rows, eval_steps=2, learning_rate=1e-2,
        per_device_eval_batch_size=8, **row, **lora,
    )  # fmt: skip
    trainer.train()
    apart = logged(trainer, DIFFERENCE)
    assert len(apart) >= 2 and max(apart) < (0.05 if row["bf16"] else 1e-4)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_after_training_the_engine_says_what_the_trained_model_says(tmp_path, vllm_models):
    settings = dict(max_steps=4, learning_rate=3e-2, max_completion_length=12)
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"), **settings)

    def greedy():
        trainer.vllm_generation.temperature = 0.0
        try:
            return generate(trainer)["completion_ids"].tolist()
        finally:
            trainer.vllm_generation.temperature = 1.0

    before = greedy()
    trainer.train()
    after = greedy()
    greedily = {"do_sample": False, "temperature": None}
    trained = make_vllm_trainer(
        tmp_path, None, model=trainer.model, use_vllm=False, max_completion_length=12, generation_kwargs=greedily
    )
    assert after == generate(trained)["completion_ids"].tolist() != before


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_log_probabilities_are_those_at_the_temperature(tmp_path, vllm_models, temperature):
    engine = {"logprobs_mode": "processed_logprobs"}  # TRL's
    trainer = make_vllm_trainer(
        tmp_path, vllm_models("qwen2_5_vl"), dataset=make_rows([0] * 4), engine=engine, temperature=temperature,
        suppress_vision_tokens=False,
    )  # fmt: skip
    assert differences(generate(trainer)).max() < 1e-3


def favour(model, tokens):
    """Make these two tokens the likeliest at every place: one of them is, whichever way the hidden state points."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.arange(5, 25)[None]).last_hidden_state.mean(dim=(0, 1))
        for sign, token in zip((1, -1), tokens, strict=True):
            model.lm_head.weight[token] = sign * 50 * hidden


@pytest.mark.parametrize("suppress", [True, False])
def test_placeholders_are_never_sampled(tmp_path, vllm_models, suppress):
    model = type(build("qwen2_5_vl")[0]).from_pretrained(vllm_models("qwen2_5_vl"))
    favour(model, placeholder_ids())
    trainer = make_vllm_trainer(
        tmp_path, vllm_models("qwen2_5_vl"), model=model, dataset=make_rows([0] * 4), suppress_vision_tokens=suppress,
        generation_kwargs={"bad_words": ["see"], "seed": 1},
    )  # fmt: skip
    assert trainer.vllm_generation.generation_kwargs["bad_words"][0] == "see"
    trainer.vllm_generation.sync_weights()
    _, completions, *_ = trainer.vllm_generation.generate([[5, 6, 7]] * 8, None, 1)
    sampled = {token for ids in completions for token in ids}
    assert (sampled & set(placeholder_ids()) == set()) == suppress
    assert trainer.processing_class.tokenizer.convert_tokens_to_ids("see") not in sampled


def test_images_of_a_tool_reach_vllm_as_they_are_scored(tmp_path, vllm_models):
    def zoom(side: int):
        """
        Zoom in.

        Args:
            side: The side.
        """
        return [{"type": "image", "image": picture(99, 84, 56)}, {"type": "text", "text": "here"}]

    model, processor = agent_model_and_processor()
    folder = tmp_path / "agent"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    trainer = make_vllm_trainer(
        tmp_path, folder, model=type(model).from_pretrained(folder), processing_class=processor, tools=[zoom],
        dataset=make_rows([1, 2, 0, 1], SIZES), max_completion_length=400, vllm_max_model_length=1024,
    )  # fmt: skip
    sample, turns = trainer.vllm_generation.generate, []

    def first_turn_calls_the_tool(prompts, images, *args, **kwargs):
        prompt_ids, completions, logps, tokens = sample(prompts, images, *args, **kwargs)
        turns.append(len(prompts))
        if len(turns) == 1:
            call = processor.tokenizer(CALL + "<|im_end|>")["input_ids"]
            return prompt_ids, [call] * len(prompts), [[[0.0]] * len(call)] * len(prompts), tokens
        return prompt_ids, [ids[:30] for ids in completions], [row[:30] for row in logps], tokens

    trainer.vllm_generation.generate = first_turn_calls_the_tool
    batch = generate(trainer)
    assert turns == [8, 8]
    assert batch["num_images"] == [2, 2, 3, 3, 1, 1, 2, 2]
    tool_tokens = batch["tool_mask"] == 0
    last_tool_token = tool_tokens.size(1) - 1 - tool_tokens.flip(1).int().argmax(dim=1)
    second_turn = torch.arange(tool_tokens.size(1)) > last_tool_token[:, None]
    compared = second_turn & batch["completion_mask"].bool()
    apart = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()[compared]
    assert compared.any(dim=1).all() and apart.max() < 1e-3


@pytest.mark.parametrize("mode", modes())
def test_an_image_of_any_mode_is_the_one_that_is_scored(tmp_path, vllm_models, mode):
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"))
    image = modes()[mode]
    prompt = [{"role": "user", "content": "sum?"}]
    rows = [{"prompt": prompt, "images": [image], "solution": "1"} for _ in range(8)]
    assert differences(generate(trainer, rows)).max() < 1e-3


def test_the_figures_of_the_documentation_can_be_made(capfd):
    means = noise.main(steps=2, canvases=2)
    assert len(means) == 8 and "image tokens expanded twice" in capfd.readouterr().out
    assert max(means[0], means[4]) < 1e-5 < max(means[1:4]) < 0.01 < min(means[5:])


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path):
    """The address of `tmp_path`'s files."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_images_of_paths_urls_and_in_a_prompt_reach_vllm(tmp_path, vllm_models, web):
    rows = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        picture(number, 84, 56).save(path)
        text = {"type": "text", "text": "sum?"}
        if number < 4:
            image = f"{web}/{path.name}" if number % 2 else str(path)
            rows.append({"prompt": [{"role": "user", "content": "sum?"}], "image": image})
        else:
            content = [{"type": "image", "image": str(path)}, text, {"type": "image", "image": picture(9)}]
            rows.append({"prompt": [{"role": "user", "content": content}]})
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"))
    for batch in (generate(trainer, rows[:4]), generate(trainer, rows[4:])):
        assert differences(batch).max() < 1e-3
    assert batch["num_images"] == [2] * 4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "idefics3"])
def test_a_photo_under_the_limit_makes_the_same_tokens_in_vllm(tmp_path, vllm_models, family):
    rows = [
        {"prompt": [{"role": "user", "content": "sum?"}], "images": [picture(number, *size)]}
        for number, size in enumerate([(400, 300), (56, 56), (300, 40), (84, 56)] * 2)
    ]
    trainer = make_vllm_trainer(tmp_path, vllm_models(family), family, max_pixels=84 * 56, min_pixels=56 * 56)
    batch = generate(trainer, rows)
    assert differences(batch).max() < 1e-3
    assert batch["prompt_mask"].sum(dim=1).max() < 100  # tokens


# What stops a run -----------------------------------------------------------------------------------------------------


def test_prompts_that_vllm_would_expand_again_stop_at_once(tmp_path, vllm_models, monkeypatch):
    monkeypatch.setattr("trl_cppo.run.upstream_vllm.keep_expanded_prompts", lambda mm_processor: None)
    for correction in (True, False):
        trainer = make_vllm_trainer(
            tmp_path, vllm_models("qwen2_5_vl"), vllm_importance_sampling_correction=correction,
            vllm_max_model_length=513 + correction, cpl_coef=0.0,
        )  # fmt: skip
        with pytest.raises(SamplerMismatchError, match="behind other prompts or images"):
            trainer.train()
        assert trainer.state.global_step == 0


def test_a_few_wrong_prompts_among_many_right_ones_stop_at_once(tmp_path, vllm_models, monkeypatch):
    monkeypatch.setattr("trl_cppo.run.upstream_vllm.keep_expanded_prompts", lambda mm_processor: None)
    trainer = make_vllm_trainer(
        tmp_path, vllm_models("qwen2_5_vl"), dataset=make_rows([1] + [0] * 15, SIZES), vllm_max_model_length=517,
        per_device_train_batch_size=32, generation_kwargs={"seed": 1},
    )  # fmt: skip
    with pytest.raises(SamplerMismatchError, match=r"of \d+ sampled tokens .* behind other prompts"):
        trainer.train()


def test_the_old_tower_s_features_stop_when_it_logs(tmp_path, vllm_models, monkeypatch):
    monkeypatch.setattr(RepairedVLLMGeneration, "sync_weights", VLLMGeneration.sync_weights)
    trainer = make_vllm_trainer(
        tmp_path, vllm_models("qwen2_5_vl"), learning_rate=0.1, max_steps=9, vllm_max_model_length=515
    )
    with pytest.raises(SamplerMismatchError, match="by other weights"):
        trainer.train()
    assert trainer.state.global_step > 0


def test_a_processor_that_vllm_does_not_load_is_refused_where_it_makes_other_tokens(tmp_path, vllm_models):
    _, processor = build("qwen2_5_vl")
    processor.image_processor.size = {"shortest_edge": 112 * 112, "longest_edge": 224 * 224}  # larger pictures
    trainer = make_vllm_trainer(  # with an engine of its own: vLLM's caches of images do not survive an error
        tmp_path, vllm_models("qwen2_5_vl"), processing_class=processor, vllm_max_model_length=516
    )
    with pytest.raises(ValueError, match=r"vLLM makes \[16\] tokens .* set max_pixels of CPPOConfig"):
        generate(trainer)


def test_the_best_checkpoint_s_weights_are_pushed(tmp_path, vllm_models, monkeypatch):
    def load(model, folder):  # at the last step, for which vLLM has weights already
        change_weights(trainer)
        trainer.state.global_step -= 1

    monkeypatch.setattr("trl_cppo.run.upstream.restore", load)
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"))
    generate(trainer)
    trainer._load_best_model()
    assert differences(generate(trainer)).max() < 1e-3


def test_a_second_call_of_train_samples_from_the_trained_weights(tmp_path, vllm_models):
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"), max_steps=1, learning_rate=3e-2)
    for _ in range(2):
        trainer.train()
        assert logged(trainer, DIFFERENCE)[-1] < 1e-4


def test_a_resumed_run_samples_from_its_checkpoint(tmp_path, vllm_models):
    settings = dict(learning_rate=3e-2, save_strategy="steps", save_steps=2, max_steps=4)
    trainer = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"), **settings)
    trainer.train()
    resumed = make_vllm_trainer(tmp_path, vllm_models("qwen2_5_vl"), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    apart = [entry[DIFFERENCE] for entry in resumed.state.log_history if entry["step"] > 2 and DIFFERENCE in entry]
    assert len(apart) == 2 and max(apart) < 1e-4

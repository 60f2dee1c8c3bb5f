# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""trl_cppo.commands.evaluate: sampling, prompts, scores."""

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_rows, make_trainer, picture
from family_cases import pads_unasked
from tiny_models import FAMILIES, build
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_cppo import digits
from trl_cppo.commands.evaluate import (
    CompletionGenerator,
    evaluate_rows,
    summarize,
)  # fmt: skip
from trl_cppo.commands.evaluate.errors import EvaluationError
from trl_cppo.commands.evaluate.generation import Completion
from trl_cppo.commands.evaluate.runner import score
from trl_cppo.commands.evaluate.sampling import SeededSampler, draw_uniforms, sampling_processors
from trl_cppo.run.rows.checks import LocatedRows

# Sampling -------------------------------------------------------------------------------------------------------------


def drawn(scores, uniforms, **kwargs):
    ids = torch.zeros(len(scores), 3, dtype=torch.long)
    for processor in sampling_processors(uniforms=uniforms[:, None].double(), prompt_length=3, **kwargs):
        scores = processor(ids, scores)
    assert (scores == 0).sum(dim=1).eq(1).all() and scores.isinf().sum() == scores.numel() - len(scores)
    return scores.argmax(dim=1)


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.randn(1, 12)
    tokens = drawn(logits.expand(20_000, -1), draw_uniforms(0, [0], 0, 20_000)[0], temperature=0.7, top_p=1.0)
    expected = torch.softmax(logits[0].double() / 0.7, dim=0).numpy() * 20_000
    observed = np.bincount(tokens.numpy(), minlength=12)
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001


def test_the_nucleus_is_that_of_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    tokens = drawn(logits.expand(2000, -1), torch.linspace(0, 0.9999, 2000), temperature=1.0, top_p=0.7)
    assert torch.bincount(tokens).tolist() == [1250, 750]  # 0.5 and 0.3 of 0.8


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-24])
    assert drawn(logits, uniforms, temperature=1.0, top_p=1.0).tolist() == [1, 1, 3, 3]


def test_draws_belong_to_seed_row_and_sample():
    both = draw_uniforms(0, [3, 8], 1, 5)
    assert torch.equal(both[1:], draw_uniforms(0, [8], 1, 5)) and both.max() < 1 and both.min() >= 0
    keys = [(0, 3, 1), (0, 8, 1), (1, 3, 1), (0, 3, 0)]
    assert len({draw_uniforms(seed, [row], sample, 5)[0, 0].item() for seed, row, sample in keys}) == 4
    assert torch.equal(draw_uniforms(0, [3], 1, 9)[:, :5], both[:1])  # a longer limit changes no token before it


def test_a_sampler_keeps_to_its_own_step():
    uniforms = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    sampler = SeededSampler(uniforms, prompt_length=2)
    scores = torch.zeros(1, 2)
    tokens = [sampler(torch.zeros(1, 2 + step, dtype=torch.long), scores).argmax().item() for step in (0, 1)]
    assert tokens == [0, 1]


# Completions ----------------------------------------------------------------------------------------------------------


class Captured(Exception):
    pass


def trl_inputs(dataset, family, tmp_path, monkeypatch):
    """What GRPOTrainer hands to `generate` for these rows."""
    trainer = make_trainer(tmp_path, dataset, family=family)
    seen = {}

    def capture(**kwargs):
        seen.update(kwargs)
        raise Captured

    monkeypatch.setattr(trainer.model, "generate", capture)
    with pytest.raises(Captured):
        trainer._generate_and_score_completions([dataset[i] for i in range(len(dataset))])
    del seen["generation_config"]
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_grpo_trainer(family, tmp_path, monkeypatch):
    # TRL cannot batch unequal numbers of images for PaliGemma
    counts = [1, 1, 1] if family == "paligemma" else [2, 0, 1]
    dataset = make_rows(counts, sizes=[(56, 56), (84, 56)])
    theirs = trl_inputs(dataset, family, tmp_path, monkeypatch)
    model, processor = build(family)
    ours = CompletionGenerator(model, processor, 4).encode(list(dataset))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if name == "attention_mask" and pads_unasked(processor):
            assert torch.equal(ours[name], (theirs["input_ids"] != processor.tokenizer.pad_token_id).long())
        else:
            assert torch.equal(ours[name], tensor), name


def test_the_prompt_asks_for_the_assistants_turn():
    model, processor = build("qwen2_5_vl")  # its own template has no turn to open
    processor.chat_template += "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    inputs = CompletionGenerator(model, processor, 4).encode(list(make_rows([1, 2])))
    assert (inputs["input_ids"][:, -1] == processor.tokenizer.convert_tokens_to_ids("<|im_start|>")).all()


def test_images_inside_the_prompts():
    content = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "sum?"}]
    inside = {"prompt": [{"role": "user", "content": content}]}
    beside = {"prompt": [{"role": "user", "content": "sum?"}], "images": [picture(1)]}
    generator = CompletionGenerator(*build("qwen2_5_vl"), 4)
    first, second = generator.encode([inside]), generator.encode([beside])
    assert all(torch.equal(first[name], second[name]) for name in (*first, *second))


def all_completions(generator, dataset, batch_size, num_samples=2):
    batches = evaluate_rows(
        LocatedRows(dataset, "rows"), list(range(len(dataset))), generator, constant_reward,
        num_samples=num_samples, batch_size=batch_size,
    )  # fmt: skip
    return [record for batch in batches for record in batch]


def constant_reward(completions, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])
def test_neither_greedy_nor_sampled_completions_depend_on_the_batch(family):
    dataset = make_rows([1, 2, 0, 1, 3], sizes=[(56, 56), (84, 56)])
    generator = CompletionGenerator(*build(family), 8)
    alone, pairs, together = (all_completions(generator, dataset, size) for size in (1, 2, 5))
    assert alone == pairs == together
    texts = [entry["text"] for record in alone for entry in record["samples"]]
    assert len(set(texts)) == len(texts)  # no two draws are the same


def test_a_sample_is_what_a_loop_over_whole_forwards_draws():
    model, processor = build("qwen2_5_vl")
    row = make_rows([1])[0]
    generator = CompletionGenerator(model, processor, 5, temperature=1.5, seed=4)
    inputs = generator.encode([row])
    [completion] = generator.generate(inputs, [17], sample=3)
    ids, uniforms = inputs["input_ids"], draw_uniforms(4, [17], 3, 5)[0]
    banned = [model.config.image_token_id, model.config.video_token_id]
    for uniform in uniforms:
        pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        types = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=types, **pixels).logits[0, -1].double() / 1.5
        logits[banned] = -torch.inf
        token = int((logits.softmax(0).cumsum(0) <= uniform).sum())
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert completion.ids == ids[0, inputs["input_ids"].size(1) :].tolist() and completion.clipped


def test_placeholders_are_never_written_and_the_models_own_settings_do_not_count():
    dataset = make_rows([1, 1, 1])

    def completions(prepare):
        model, processor = build("qwen2_5_vl")
        prepare(model)
        return all_completions(CompletionGenerator(model, processor, 8), dataset, 3)

    def want_placeholders(model):
        ids = [model.config.image_token_id, model.config.video_token_id]
        bias = torch.zeros(model.config.text_config.vocab_size).index_fill(0, torch.tensor(ids), 1e4)
        model.register_forward_hook(lambda *args: setattr(args[-1], "logits", args[-1].logits + bias))

    def repeat_less(model):
        model.generation_config.update(repetition_penalty=5.0, temperature=0.1, top_k=1, do_sample=True)

    plain = completions(lambda model: None)
    assert completions(want_placeholders) == plain == completions(repeat_less)


def test_a_completion_ends_at_any_of_the_models_end_tokens():
    model, processor = build("qwen2_5_vl")
    row = make_rows([1])[0]
    generator = CompletionGenerator(model, processor, 8)
    [whole] = generator.generate(generator.encode([row]), [0], sample=0)
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, whole.ids[3]]
    generator = CompletionGenerator(model, processor, 8)
    [cut] = generator.generate(generator.encode([row]), [0], sample=0)
    assert cut.ids == whole.ids[: whole.ids.index(whole.ids[3]) + 1]
    assert whole.clipped and not cut.clipped


def test_greedy_accuracy_is_that_of_the_digits_callback(warm_model):
    model = AutoModelForImageTextToText.from_pretrained(warm_model)
    processor = AutoProcessor.from_pretrained(warm_model)
    dataset = digits.make_dataset("held_out", 40, seed=3)
    expected = digits.accuracy(model, processor, dataset)
    generator = CompletionGenerator(model, processor, 20)
    rows = LocatedRows(dataset, "digits")
    batches = evaluate_rows(rows, list(range(40)), generator, digits.sum_reward, batch_size=9)
    settings = dict(
        model="m", dataset="d", split="test", reward="sum_reward", seed=0, temperature=1.0, top_p=1.0, num_samples=0
    )
    result = summarize([record for batch in batches for record in batch], settings)
    assert result["greedy"]["accuracy"] == expected and result["greedy"]["clipped"] == 0
    assert result["sampled"] is None and 0.1 < expected < 0.6


def test_bad_rows_are_named():
    generator = CompletionGenerator(*build("qwen2_5_vl"), 4)

    def error(*rows):
        with pytest.raises(ValueError) as caught:
            generator.encode([{**row, "_trl_cppo_row": f"Row {i} of x (test)"} for i, row in enumerate(rows)])
        return str(caught.value)

    good = make_rows([1])[0]
    assert "Row 1 of x (test), column 'prompt': expected a list of messages" in error(good, {**good, "prompt": "sum?"})
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sum?"}]}]
    assert "Row 1 of x (test), column 'images'" in error(good, {**good, "prompt": two, "images": []})
    assert "Row 0 of x (test), column 'images'" in error({**good, "images": [picture(0, 1, 900)]}, good)


# Scores ---------------------------------------------------------------------------------------------------------------


def completion(text):
    return Completion(text, [1, 2], clipped=False)


def test_a_reward_gets_what_grpo_trainer_passes():
    seen = {}

    async def reward(**kwargs):
        seen.update(kwargs)
        return [1, None, float("nan")]

    rows = [{"prompt": [{"role": "user", "content": "?"}], "solution": s, "level": 3} for s in "abc"]
    assert score(reward, rows, [completion(text) for text in "xyz"]) == [1.0, None, None]
    assert (
        seen["completions"][1] == [{"role": "assistant", "content": "y"}] and seen["prompts"][0] == rows[0]["prompt"]
    )
    assert (
        seen["solution"] == ["a", "b", "c"] and seen["level"] == [3, 3, 3] and seen["completion_ids"] == [[1, 2]] * 3
    )


def test_the_row_that_a_reward_fails_on_is_named():
    def strict(solution, **kwargs):
        return [float(int(answer)) for answer in solution]

    dataset = make_rows([1, 1, 1]).map(lambda row, i: {"solution": None if i == 1 else "1"}, with_indices=True)
    generator = CompletionGenerator(*build("qwen2_5_vl"), 2)
    with pytest.raises(EvaluationError, match=r"Row 1 of x \(test\): the reward strict fails with TypeError"):
        list(evaluate_rows(LocatedRows(dataset, "x (test)"), [0, 1, 2], generator, strict))

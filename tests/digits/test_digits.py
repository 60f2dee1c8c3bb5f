# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The embedded task, its model, the cached warm start, and that learning works."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import logged, make_config
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_cppo import CPPOTrainer, digits, register_view, score_views
from trl_cppo.digits import perception, pretraining, task
from trl_cppo.rewards import think_boxed_format_reward


def test_the_splits_share_no_handwriting():
    pools = [task.handwriting(split)[0] for split in ("warm_start", "rl", "held_out")]
    assert [len(pool) for pool in pools] == [600, 700, 497]
    # one image of scikit-learn's set may equal another by chance, but not many
    parts = [task.handwriting(split)[0] for split in ("validation", "test")]
    assert np.array_equal(np.concatenate(parts), pools[2])
    seen = [{image.tobytes() for image in pool} for pool in pools]
    assert max(len(seen[0] & seen[1]), len(seen[0] & seen[2]), len(seen[1] & seen[2])) <= 3


def test_a_canvas_shows_its_digits_in_reading_order():
    images, labels = task.handwriting("held_out")
    generator = np.random.default_rng(5)
    for _ in range(5):
        image, digits_shown = task.draw_canvas("held_out", generator)
        pixels = np.asarray(image, dtype=np.float32)[..., 0]
        assert pixels.shape == (28, 56) and len(digits_shown) == 2
        for cell, digit in enumerate(digits_shown):
            distances = [
                np.square(pixels[top : top + 24, left : left + 24] - images).mean(axis=(1, 2))
                for top in range(5)
                for left in range(28 * cell, 28 * cell + 5)
            ]
            assert labels[np.stack(distances).min(axis=0).argmin()] == digit


def test_rows_depend_on_the_seed_alone():
    first, again, other = (digits.make_dataset("rl", 6, seed) for seed in (1, 1, 2))
    assert [image.tobytes() for image in first["image"]] == [image.tobytes() for image in again["image"]]
    assert first["digits"] == again["digits"] != other["digits"]
    assert [int(total) for total in first["solution"]] == [sum(shown) for shown in first["digits"]]


def test_a_caption_is_right_as_often_as_it_should_be_and_changes_no_canvas():
    generator = np.random.default_rng(0)
    named = [task.caption([3, 5], 0.7, generator) for _ in range(4000)]
    for place, digit in ((0, 3), (1, 5)):
        counts = np.bincount([pair[place] for pair in named], minlength=10)
        assert abs(counts[digit] / 4000 - 0.7) < 0.03
        others = np.delete(counts, digit)
        assert others.sum() + counts[digit] == 4000 and others.min() > 90 and others.max() < 180  # 133 of each
    assert all(x != 3 and y != 5 for x, y in (task.caption([3, 5], 0.0, generator) for _ in range(300)))
    plain, right, wrong = (digits.make_dataset("rl", 20, 1, captions) for captions in (None, 1.0, 0.0))
    for row, told, misled in zip(plain, right, wrong, strict=True):
        assert row["image"].tobytes() == told["image"].tobytes() == misled["image"].tobytes()
        assert row["solution"] == told["solution"] == misled["solution"] and row["digits"] == misled["digits"]
        question = [x["prompt"][0]["content"] for x in (row, told, misled)]
        assert question[:2] == ["sum?", f"{row['digits'][0]},{row['digits'][1]}.sum?"]
        named = [int(number) for number in re.fullmatch(r"(\d),(\d)\.sum\?", question[2]).groups()]
        assert all(x != y for x, y in zip(named, row["digits"], strict=True))


def test_every_right_response_has_17_tokens_and_both_rewards():
    tokenizer = digits.build_tokenizer()
    for shown in [(a, b) for a in range(10) for b in range(10)]:
        text = task.response(list(shown))
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 16 and tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
        completions = [[{"role": "assistant", "content": text}]]
        assert digits.sum_reward(completions, [str(sum(shown))]) == think_boxed_format_reward(completions) == [1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{17}", 1.0),
        (r"\boxed{3}\boxed{17}", 1.0),
        (r"\boxed{17}\boxed{3}", 0.0),
        (r"\boxed{1}", 0.0),
        (r"\boxed{017}", 0.0),
        (r"\boxed{}", 0.0),
        ("17", 0.0),
        ("", 0.0),
    ],
)
def test_sum_reward(text, expected):
    assert digits.sum_reward([[{"role": "assistant", "content": text}]], ["17"]) == [expected]


def test_a_prompt_has_13_tokens_of_which_8_are_the_image():
    row = digits.make_dataset("rl", 1, 0)[0]
    processor = digits.build_processor()
    content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": "sum?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    image_token = digits.build_model().config.image_token_id
    assert (np.array(inputs["input_ids"][0]) == image_token).sum() == 8 and len(inputs["input_ids"][0]) == 13
    assert processor.decode(inputs["input_ids"][0]).endswith(
        digits.model.chat(processor, "sum?")[-len("sum?<|im_end|>") :]
    )


def test_the_supervised_labels_are_the_response():
    processor = digits.build_processor()
    image, shown = task.draw_canvas("warm_start", np.random.default_rng(0))
    for prompts in (["sum?", "sum?"], ["3,5.sum?", "9,9.sum?"]):
        inputs = pretraining.encode([image, image], prompts, [shown, [9, 9]], processor)
        kept = [row[row != -100] for row in inputs["labels"]]
        texts = [task.response(shown) + "<|endoftext|>", task.response([9, 9]) + "<|endoftext|>"]
        assert [processor.tokenizer.decode(ids) for ids in kept] == texts
        before = [
            processor.tokenizer.decode(row[labels == -100])
            for row, labels in zip(inputs["input_ids"], inputs["labels"], strict=True)
        ]
        assert [text.split("<|vision_end|>")[1] for text in before] == [f"{prompt}<|im_end|>" for prompt in prompts]


def test_the_labels_confuse_pairs_of_digits_and_stay_consistent():
    generator = np.random.default_rng(0)
    labels = np.array([pretraining.mislabel([digit] * 2, generator) for digit in range(10) for _ in range(1000)])
    labels = labels.reshape(10, 2000)
    for digit, other in {3: 8, 8: 3, 4: 9, 9: 4, 1: 7, 7: 1}.items():
        assert {*labels[digit]} == {digit, other} and abs((labels[digit] == other).mean() - 0.55) < 0.04
    for digit in (0, 2, 5, 6):
        assert {*labels[digit]} == {digit}
    batch = pretraining._draw_batch(np.random.default_rng(1), torch.Generator().manual_seed(1), captions_right=0.5)
    assert len(batch.images) == 64 and batch.digits != batch.labels
    for shown, labelled in zip(batch.digits, batch.labels, strict=True):
        assert all(y in (x, pretraining.CONFUSED.get(x)) for x, y in zip(shown, labelled, strict=True))
    # A caption is of the canvas, not of the labels.
    named = [[int(prompt[0]), int(prompt[2])] for prompt in batch.prompts]
    assert 0.35 < np.mean(np.array(named) == batch.digits) < 0.65
    plain = pretraining._draw_batch(np.random.default_rng(1), torch.Generator().manual_seed(1), captions_right=None)
    assert {*plain.prompts} == {"sum?"}


def test_the_response_is_supervised_by_the_labels_and_every_fourth_batch_has_no_caption(tmp_path, monkeypatch):
    supervised, encode = [], pretraining.encode

    def noted(images, prompts, labels, processor):
        supervised.append((prompts, labels))
        return encode(images, prompts, labels, processor)

    monkeypatch.setattr(pretraining, "encode", noted)
    digits.warm_start(seed=3, steps=4, cache_dir=tmp_path, progress=False, captions_right=1.0)
    generators = np.random.default_rng(3), torch.Generator().manual_seed(3)
    for step, (prompts, labels) in enumerate(supervised):
        drawn = pretraining._draw_batch(*generators, None if step == 3 else 1.0)
        assert labels == drawn.labels != drawn.digits
        assert prompts == (["sum?"] * 64 if step == 3 else [task.prompt(shown) for shown in drawn.digits])


def test_cell_features_average_the_tokens_of_a_cell():
    tokens = torch.arange(64 * 8, dtype=torch.float32).reshape(64 * 8, 1)
    features = pretraining._cell_features(tokens)
    # the grid of image tokens 0 … 7 in two lines: the cells hold {0, 1, 4, 5} and {2, 3, 6, 7}
    assert features.shape == (64, 2, 1) and features[0, :, 0].tolist() == [2.5, 4.5]


def test_no_accelerators_generator_is_seeded(tmp_path, monkeypatch):
    """`torch.manual_seed` seeds those of all devices, and `fork_rng(devices=[])` restores none of them."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    short_warm_start(tmp_path, seed=5)
    with digits.model.seeded_cpu(3):
        drawn = torch.rand(4)
    assert seeded == []
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
    assert seeded == [0]  # so it would have been seen


def test_no_source_seeds_every_device():
    root = Path(__file__).parents[2]
    sources = [path for folder in ("trl_cppo", "examples", "benchmarks") for path in (root / folder).rglob("*.py")]
    called = re.compile(
        r"(?:torch|random|cuda)\.(?:manual_seed|seed|manual_seed_all)\(|\bset_seed\(|np\.random\.seed\("
    )
    assert [path for path in sources if called.search(path.read_text())] == [] and len(sources) > 50


# The warm start's cache -----------------------------------------------------------------------------------------------


def short_warm_start(cache_dir, seed=0, steps=4):
    return digits.warm_start(seed=seed, steps=steps, cache_dir=cache_dir, progress=False)


def refuse(*args):
    raise AssertionError("trained although the cache holds the model")


def test_the_second_call_starts_at_once_and_loads(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    folder = short_warm_start(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(pretraining, "_train", refuse)
    assert short_warm_start(tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(AutoProcessor.from_pretrained(folder), type(digits.build_processor()))
    assert any(
        not torch.equal(p, q) for p, q in zip(model.parameters(), digits.build_model().parameters(), strict=True)
    )


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "empty"])
def test_a_broken_cache_is_made_again_with_the_same_weights(tmp_path, damage):
    folder = short_warm_start(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes(weights[:1000])
    elif damage == "no manifest":
        (folder / "warm_start.json").unlink()
    else:
        for path in [folder / "config.json"] if damage == "missing" else list(folder.iterdir()):
            path.unlink()
    assert short_warm_start(tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == weights


def test_the_number_of_threads_does_not_change_the_weights(tmp_path):
    threads, weights = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            weights.append((short_warm_start(tmp_path / str(number)) / "model.safetensors").read_bytes())
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert weights[0] == weights[1]


def test_an_interrupted_warm_start_leaves_nothing_behind(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_hashes", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            short_warm_start(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert short_warm_start(tmp_path).is_dir()


def test_the_cache_key_covers_arguments_code_and_versions(monkeypatch):
    given = [(0, 4), (1, 4), (0, 5), (0, 4, 0.5), (0, 4, 1.0)]
    keys = {pretraining._cache_key(*arguments) for arguments in given}
    monkeypatch.setattr(pretraining, "version", lambda name: "another")
    keys.add(pretraining._cache_key(0, 4))
    monkeypatch.setattr(pretraining, "_CODE", pretraining._CODE[:-1])
    keys.add(pretraining._cache_key(0, 4))
    assert len(keys) == 7


# Accuracy and learning ------------------------------------------------------------------------------------------------


@register_view("test_grey")
def grey(image, generator):
    return image.point(lambda value: 128)


def test_the_marks_are_the_perception_tokens_that_score_views_selects(random_model, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(random_model).train()
    processor = AutoProcessor.from_pretrained(random_model)
    dataset = digits.make_dataset("held_out", 3, seed=1)
    texts = ["<think>see1,2.1+2=3.</think>\\boxed{3}", "17", "see" * task.MAX_RESPONSE_TOKENS]
    settings = dict(information_removing=["test_grey"], perception_token_ratio=0.7, min_entropy_shift=0.001)
    args = make_config(tmp_path, temperature=0.5, **settings)
    state = torch.get_rng_state()
    marks = perception.perception_marks(model, processor, dataset, texts, args)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    end = processor.tokenizer.eos_token_id
    ids = [processor.tokenizer(text)["input_ids"] for text in texts]
    scored = score_views(
        model, processor, dataset, [[*ids[0], end], [*ids[1], end], ids[2]], temperature=0.5, **settings
    )
    for text, found, rollout in zip(texts, marks, scored, strict=True):
        expected = []
        for token, chosen, shift in zip(rollout.tokens, rollout.scores.selected, rollout.scores.shifts, strict=True):
            if chosen and token.text != "<|endoftext|>":
                expected.append((token.text, pytest.approx(shift, abs=2e-4)))
        assert [(text[start:end], shift) for start, end, shift in found] == expected
    assert len(marks[0]) > 1


def test_accuracy_agrees_with_one_row_at_a_time(warm_model):
    model = AutoModelForImageTextToText.from_pretrained(warm_model).train()
    processor = AutoProcessor.from_pretrained(warm_model)
    dataset = digits.make_dataset("held_out", 24, seed=3)
    state = torch.get_rng_state()
    value = digits.accuracy(model, processor, dataset, batch_size=10)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    right = 0
    for row in dataset:
        content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": "sum?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        inputs = {name: torch.as_tensor(tensor) for name, tensor in inputs.items()}
        ids, cache = inputs["input_ids"], {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
        for _ in range(20):  # greedy decoding without a cache
            types = (ids == model.config.image_token_id).int()
            with torch.no_grad():
                logits = model(input_ids=ids, mm_token_type_ids=types, **cache).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        text = processor.tokenizer.decode(ids[0, 13:]).split("<|endoftext|>")[0]
        right += digits.sum_reward([[{"role": "assistant", "content": text}]], [row["solution"]])[0]
    assert value == right / 24 and 0.1 < value < 0.6


def test_cppo_learns_the_canvases_that_it_trains_on(warm_model, tmp_path):
    trainer = CPPOTrainer(
        model=str(warm_model),
        reward_funcs=digits.sum_reward,
        args=make_config(
            tmp_path, per_device_train_batch_size=128, num_generations=8, max_completion_length=20, max_steps=25,
            learning_rate=6e-4, lr_scheduler_type="constant",
        ),
        train_dataset=digits.make_dataset("rl", 16, seed=7),
    )  # fmt: skip
    trainer.train()
    reward = logged(trainer, "reward")
    # measured with seeds 0 to 4: the mean over five steps rose by 0.444, 0.491, 0.469, 0.513, 0.514, from 0.38 to 0.40
    assert np.mean(reward[-5:]) - np.mean(reward[:5]) > 0.25
    assert min(logged(trainer, "cpl/gated_ratio")) > 0

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Placeholders typed in prompts and prompts of None are named by row and column, and nothing else is refused."""

import re

import pytest
import torch
from conftest import logged, make_rows, make_trainer, picture
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from datasets.features import Json
from tiny_models import FAMILIES, build

from trl_cppo.commands.evaluate.generation import CompletionGenerator
from trl_cppo.run.rows.checks import LocatedRows, check_dataset, find_row_fault
from trl_cppo.run.rows.prompts import check_prompts, has_image_in_a_prompt, prompt_fault
from trl_cppo.scoring.families import placeholder_texts

BAD = 5  # the row at fault
MESSAGE = {"role": Value("string"), "content": Value("string")}
PART = {"type": Value("string"), "text": Value("string")}
WITH_IMAGE = Features({"prompt": List({"role": Value("string"), "content": List({**PART, "image": Image()})})})
FEATURES = {
    "strings": {"prompt": List(MESSAGE)},
    "parts": {"prompt": List({"role": Value("string"), "content": List(PART)})},
    "json": {"prompt": List({"role": Value("string"), "content": Json()})},
}


def prompt_of(kind, text):
    content = [{"type": "image"}, {"type": "text", "text": text}] if kind == "parts" and text is not None else text
    return [{"role": "user", "content": content}]


def dataset_of(kind, bad, count=8):
    """Rows with an image each; row `BAD` has the prompt `bad`."""
    prompts = [bad if place == BAD else prompt_of(kind, "sum?") for place in range(count)]
    rows = [{"prompt": prompt, "image": picture(place)} for place, prompt in enumerate(prompts)]
    return Dataset.from_list(rows, features=Features({**FEATURES[kind], "image": Image()}))


FAULTS = {
    "typed": ("holds '<|image_pad|>' as text", lambda kind: prompt_of(kind, "what is <|image_pad|>?")),
    "video": ("holds '<|video_pad|>' as text", lambda kind: prompt_of(kind, "<|video_pad|>")),
    "second message": (
        "message 1 holds '<|image_pad|>'",
        lambda kind: [*prompt_of(kind, "sum?"), *prompt_of(kind, "a<|image_pad|>")],
    ),
    "no prompt": ("column 'prompt': is None", lambda kind: None),
    "no content": ("message 0 has no content (None)", lambda kind: prompt_of(kind, None)),
    "no text": (
        "message 0 has a part of type 'text' without text (None)",
        lambda kind: [{"role": "user", "content": [{"type": "text", "text": None}]}] if kind != "strings" else None,
    ),
}
OF_STRINGS = [(kind, fault) for kind in FEATURES for fault in FAULTS if (kind, fault) != ("strings", "no text")]


@pytest.mark.parametrize(("kind", "fault"), OF_STRINGS)
def test_a_prompt_at_fault_is_named_before_the_first_step(tmp_path, monkeypatch, kind, fault):
    says, make = FAULTS[fault]
    monkeypatch.setattr(Image, "decode_example", lambda *args, **kwargs: pytest.fail("an image was decoded"))
    trainer = make_trainer(tmp_path, dataset_of(kind, make(kind)))
    with pytest.raises(ValueError) as error:
        trainer.train()
    assert f"Row {BAD} of the training data set, column 'prompt': " in str(error.value) and says in str(error.value)
    assert "\n" not in str(error.value) and trainer.state.global_step == 0


@pytest.mark.parametrize("eval_sets", ["one", "several"])
def test_evaluation_data_are_looked_into_before_training(tmp_path, eval_sets):
    bad = dataset_of("strings", None)
    trainer = make_trainer(
        tmp_path, eval_dataset={"good": make_rows([1]), "bad": bad} if eval_sets == "several" else bad
    )
    name = "the evaluation data set 'bad'" if eval_sets == "several" else "the evaluation data set"
    with pytest.raises(ValueError, match=f"^Row {BAD} of {name}, column 'prompt': is None"):
        trainer.train()


def generate(trainer, rows):
    trainer.model.eval()
    return trainer._generate_and_score_completions(rows)


# A template writes "None" for a text of None, and GRPOTrainer trains on it.
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "no text"])
@pytest.mark.parametrize("how", ["stream", "transform", "evaluate", "batch"])
def test_what_cannot_be_looked_into_is_named_where_it_is_generated_from(tmp_path, how, fault):
    says, make = FAULTS[fault]
    bad = dataset_of("parts", make("parts"))
    given = {"stream": bad.to_iterable_dataset(), "transform": bad.with_transform(lambda rows: rows)}.get(how)
    settings = dict(max_steps=4, per_device_eval_batch_size=32, num_generations_eval=4, eval_dataset=bad)
    trainer = make_trainer(tmp_path, given, **(settings if how == "evaluate" else {"max_steps": 4}))
    with pytest.raises(ValueError) as error:
        if how == "batch":
            generate(trainer, [bad[place] for place in range(8)])
        elif how == "evaluate":
            trainer.evaluate()
        else:
            trainer.train()
    rows = {
        "transform": f"Row {BAD} of the training data set", "evaluate": f"Row {BAD} of the evaluation data set",
        "batch": f"Row {BAD} of the generation batch", "stream": r"Row \d+ of the generation batch",
    }  # fmt: skip
    assert re.match(f"{rows[how]}, column 'prompt': ", str(error.value)) and says in str(error.value)


def test_the_evaluation_names_it_too(tmp_path):
    model, processor = build("qwen2_5_vl")
    generator = CompletionGenerator(model, processor, 4)
    with pytest.raises(
        ValueError, match=r"^Row 1 of the generation batch, column 'prompt': message 0 holds '<\|image_pad"
    ):
        generator.encode(
            [{"prompt": prompt_of("strings", text), "image": picture(0)} for text in ("a", "<|image_pad|>")]
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_texts_that_break_a_batch_are_placeholders(tmp_path, family):
    """Each of the tokenizer's special tokens, typed in a question, against what the processor and the model say to it."""
    trainer = make_trainer(tmp_path, family=family, max_completion_length=2)
    processor = trainer.processing_class
    placeholders = placeholder_texts(trainer.model, processor)
    known = {*processor.tokenizer.all_special_tokens, *processor.tokenizer.get_added_vocab(), *placeholders}
    numbered = re.compile(r"<(loc|seg|row_[^1]|row_1_col_[^1])")
    words = sorted(word for word in known if word.strip() and not numbered.match(word) and word != "<bos>")
    broken = []
    for word in words:
        prompt = [
            {"role": "user", "content": f"3{word}5"}
        ]  # all of a batch, for PaliGemma takes equally long ones alone
        try:
            generate(trainer, [{"prompt": prompt, "image": picture(0)}] * 4)
        except ValueError as error:
            assert f"Row 0 of the generation batch, column 'prompt': message 0 holds {word!r}" in str(error)
            broken.append(word)
    assert broken == sorted(placeholders) and len(words) > len(broken) > 0


# What is right -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "sum?"}],
        [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "sum?"}]}],
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": "<|image_pad|>.png"}, {"type": "text", "text": "a"}],
            }
        ],
        [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "user", "content": "sum?"}],
        "a string",
        [{"role": "user", "content": "<|image_pad"}, {"role": "assistant", "content": "|>"}],
        [],
    ],
)
def test_nothing_else_is_a_fault(prompt):
    assert prompt_fault(prompt, ["<|image_pad|>"]) is None


def test_other_columns_and_roles_may_hold_placeholders():
    rows = {"prompt": [prompt_of("strings", "sum?")] * 3, "solution": ["<image>"] * 3, "note": [None] * 3}
    check_prompts(Dataset.from_dict(rows), "mine", ["<image>"])
    check_prompts(Dataset.from_dict({"solution": ["<image>"]}), "mine", ["<image>"])  # with environments
    check_prompts(None, "mine", ["<image>"])


@pytest.mark.parametrize("place", [0, 999, 1000, 2047])
@pytest.mark.parametrize("arranged", [False, True])
def test_the_row_is_counted_over_batches_chunks_and_a_new_order(place, arranged):
    prompts = [prompt_of("strings", "<image>" if row == place else "sum?") for row in range(2048)]
    dataset = Dataset.from_dict({"prompt": prompts}, features=Features(FEATURES["strings"]))
    if arranged:
        dataset = concatenate_datasets([dataset.select(range(1500)), dataset.select(range(1500, 2048))])
        dataset = dataset.select(range(2047, -1, -1))
    with pytest.raises(ValueError, match=f"^Row {2047 - place if arranged else place} of mine, "):
        check_prompts(dataset, "mine", ["<image>"])


# Images inside the prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 1500])
def test_images_inside_prompts_are_found_behind_rows_without(first, monkeypatch):
    monkeypatch.setattr(Image, "decode_example", lambda *args, **kwargs: pytest.fail("an image was decoded"))
    content = [[{"type": "text", "text": "sum?"}]] * first + [[{"type": "image", "image": picture(0)}]]
    prompts = [{"prompt": [{"role": "user", "content": parts}]} for parts in content]
    dataset = Dataset.from_list(prompts, features=WITH_IMAGE)
    check_dataset(dataset, "mine")
    assert has_image_in_a_prompt(dataset)
    if first:
        with pytest.raises(ValueError, match="^mine has no column 'image' or 'images', and no prompt holds an image"):
            check_dataset(dataset.select(range(first)), "mine")


def test_a_first_prompt_of_none_does_not_hide_the_images_behind_it():
    rows = [{"prompt": None}, {"prompt": [{"role": "user", "content": [{"type": "image", "image": picture(0)}]}]}]
    check_dataset(Dataset.from_list(rows, features=WITH_IMAGE), "mine")


def test_text_only_rows_may_come_first(tmp_path):
    content = [
        [{"type": "image", "image": picture(row)}][: row > 1] + [{"type": "text", "text": "sum?"}] for row in range(4)
    ]
    rows = [{"prompt": [{"role": "user", "content": parts}]} for parts in content]
    dataset = Dataset.from_list(rows, features=WITH_IMAGE)
    trainer = make_trainer(tmp_path, dataset, max_steps=1, per_device_train_batch_size=16)
    trainer.train()
    alone = make_trainer(tmp_path, dataset.select([2, 3, 0, 1]), max_steps=1, per_device_train_batch_size=16)
    alone.train()
    assert logged(trainer, "cpl/gated_ratio")[0] > 0 and logged(alone, "cpl/gated_ratio")[0] > 0


# Errors that are nobody's row's ---------------------------------------------------------------------------------------


def no_look(*args):
    pytest.fail("the images were decoded again")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), torch.AcceleratorError("device-side assert")],
)
def test_memory_and_device_errors_decode_no_image_again(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    trainer = make_trainer(tmp_path)
    monkeypatch.setattr("trl_cppo.run.upstream.find_row_fault", no_look)
    monkeypatch.setattr(trainer, "_generate_single_turn", fail)
    with pytest.raises(type(error)) as raised:
        trainer.train()
    assert raised.value is error and "While generating and scoring: Row " in error.__notes__[0]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), KeyboardInterrupt()])
def test_a_rewards_error_decodes_no_image_again(tmp_path, monkeypatch, error):
    def reward(**kwargs):
        raise error

    monkeypatch.setattr("trl_cppo.run.upstream.find_row_fault", no_look)
    with pytest.raises(type(error)) as raised:
        make_trainer(tmp_path, reward_funcs=reward).train()
    assert raised.value is error


def test_the_rollouts_of_a_prompt_are_looked_at_once(monkeypatch):
    processed = []
    dataset = LocatedRows(make_rows([1, 1]), "mine")
    rows = dataset.__getitems__([0] * 4 + [1] * 4)
    assert find_row_fault(rows, lambda images, return_tensors: processed.append(images)) is None
    assert len(processed) == 2

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rollouts of a prompt share its tokens and pixels, and they are what the processor makes of each rollout alone."""

import numpy as np
import pytest
import torch
from conftest import generation_batch, make_rows, make_trainer, picture
from family_cases import UPSTREAM
from tiny_models import FAMILIES, build
from trl import prepare_multimodal_messages

from trl_cppo.run.rows.checks import LocatedRows
from trl_cppo.run.rows.once import OncePerPrompt
from trl_cppo.scoring.families import family_named

ORDER = [0, 0, 1, 1, 1, 2, 0]  # which prompt each row is of
WHOLE = ("paligemma", "llava_onevision", "internvl")  # of these it is not known what belongs to which row


def assert_equal(ours, expected, name):
    if isinstance(expected, torch.Tensor):
        assert ours.dtype == expected.dtype and torch.equal(ours, expected), name
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected), name
        for one, other in zip(ours, expected, strict=True):
            assert_equal(one, other, name)
    else:
        assert np.array_equal(ours, expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_out_is_what_the_processor_makes_of_every_row(family):
    model, processor = build(family)
    counts = [1, 1, 1] if (family, "several") in UPSTREAM else [1, 2, 1]
    images = [[picture(10 * i + j) for j in range(count)] for i, count in enumerate(counts)]
    questions = ["sum?", "sum?" if len(set(counts)) == 1 else "sum? sum?", "sum?"]  # some take equal lengths alone
    prompts = [
        prepare_multimodal_messages([{"role": "user", "content": text}], images=of_prompt)
        for text, of_prompt in zip(questions, images, strict=True)
    ]
    seen, preprocess = [], type(processor.image_processor).preprocess

    def noting(self, images, *args, **kwargs):
        seen.append(images)
        return preprocess(self, images, *args, **kwargs)

    once = OncePerPrompt(processor, family_named(model.config.model_type).pixels_by_row)
    template = dict(add_generation_prompt=True, tokenize=True, return_dict=True)
    rows = [prompts[number] for number in ORDER]
    expected = processor.apply_chat_template(rows, **template)
    texts = [processor.apply_chat_template(prompt, add_generation_prompt=True) for prompt in rows]
    batch = dict(images=[images[number] for number in ORDER], text=texts, padding=True, return_tensors="pt")
    expected_batch = processor(**batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(processor.image_processor), "preprocess", noting)
        for ours, theirs in ((once.apply_chat_template(rows, **template), expected), (once(**batch), expected_batch)):
            assert ours.keys() == theirs.keys()
            for name, values in theirs.items():
                assert_equal(ours[name], values, name)
    processed = [sum(len(entry) if isinstance(entry, list) else 1 for entry in images) for images in seen]
    of_all = sum(counts[number] for number in ORDER)
    assert processed == ([sum(counts), of_all, of_all] if family in WHOLE else 2 * [sum(counts)])


def test_a_step_decodes_and_processes_each_image_once(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=2)
    processor, calls = type(trainer.processing_class.image_processor), []
    preprocess = processor.preprocess

    def noting(self, images, *args, **kwargs):
        calls.append(sum(len(of_row) if isinstance(of_row, list) else 1 for of_row in images))
        return preprocess(self, images, *args, **kwargs)

    monkeypatch.setattr(processor, "preprocess", noting)
    inputs = next(iter(trainer.get_train_dataloader()))
    assert [len({id(row["images"][0]) for row in inputs[start : start + 4]}) for start in (0, 4)] == [1, 1]
    assert len({id(row["images"]) for row in inputs}) == 8  # the lists are each rollout's own
    generation_batch(trainer)
    assert calls == [2, 2]  # two prompts of four rollouts: for sampling, and for scoring
    assert trainer.processing_class.image_processor.__class__ is processor  # the trainer has its own again


def test_rows_of_a_transform_are_asked_for_each_time():
    rows, asked = make_rows([1, 1]), []

    def transform(batch):
        asked.append(len(batch["prompt"]))
        return batch

    LocatedRows(rows.with_transform(transform), "rows", decode_once=True).__getitems__([0, 0, 1])
    assert asked == [3]

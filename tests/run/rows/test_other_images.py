# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Views that take the image of another prompt."""

import re

import numpy as np
import pytest
import torch
from conftest import MIXED, generation_batch, make_rows, make_trainer, picture
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from trl_cppo import register_view, score_views
from trl_cppo.method.view_maker import ViewMaker
from trl_cppo.method.views import apply_view, get_view

ANOTHER = {"information_removing": get_view("another_image"), "gate_by_advantage": False}


def pixels(image):
    return np.array(image)


def test_another_image_is_the_other_at_this_ones_size():
    image, other, view = picture(0), picture(1, 112, 84), get_view("another_image")
    shown = apply_view(view, image, torch.Generator(), other)
    assert shown.size == image.size and np.array_equal(pixels(shown), pixels(other.resize(image.size, 2)))
    alone = pixels(apply_view(view, image, torch.Generator()))
    assert (alone == pixels(image).mean(axis=(0, 1)).round()).all()


def test_what_shows_the_same_is_no_other():
    maker = ViewMaker([get_view("gaussian_blur")], [get_view("another_image")], seed=0)
    image, other = picture(0), picture(1)
    for key in range(8):
        [shown] = maker([image], key, others=[image.copy(), other, image]).removed
        assert np.array_equal(pixels(shown), pixels(other))
    [alone] = maker([image], 0, others=[image.copy()]).removed
    assert len(np.unique(pixels(alone).reshape(-1, 3), axis=0)) == 1


def test_the_other_is_drawn_uniformly_and_by_the_key_alone():
    maker = ViewMaker([get_view("gaussian_blur")], [get_view("another_image")], seed=0)
    image, others = picture(0), [picture(1), picture(2), picture(3)]
    drawn = [pixels(maker([image], key, others=others).removed[0]).tobytes() for key in range(300)]
    assert all(70 < drawn.count(pixels(other).tobytes()) < 130 for other in others)
    assert drawn == [pixels(maker([image], key, others=others).removed[0]).tobytes() for key in range(300)]


@pytest.mark.parametrize("counts", [[1] * 8, MIXED], ids=["one image", "mixed"])
def test_in_training_the_removed_view_is_an_image_of_another_prompt(tmp_path, counts):
    dataset = make_rows(counts)
    trainer = make_trainer(tmp_path, dataset, per_device_train_batch_size=16, num_generations=4, **ANOTHER)
    inputs = next(iter(trainer.get_train_dataloader()))
    batch = trainer._generate_and_score_completions(inputs)
    shown = [{pixels(image).tobytes() for image in row["images"]} for row in inputs]
    viewed = 0
    for place, pair in enumerate(batch["cpl_views"]):
        first = place // 4 * 4
        others = set().union(*(shown[row] for row in range(16) if not first <= row < first + 4))
        for removed in pair.removed if pair else []:
            viewed += 1
            assert pixels(removed).tobytes() in others - shown[place]
    assert viewed == 4 * sum(len(shown[row]) for row in range(0, 16, 4)) > 0


def test_one_prompt_a_process_has_no_other(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=4, num_generations=4, **ANOTHER)
    with pytest.raises(ValueError, match=re.escape("set steps_per_generation (or gradient_accumulation_steps)")):
        trainer.train()
    spread = make_trainer(
        tmp_path, per_device_train_batch_size=4, num_generations=4, gradient_accumulation_steps=2, **ANOTHER
    )
    spread.check_data()


def test_a_run_with_it_trains_and_a_view_of_ones_own_may_take_others(tmp_path):
    seen = []

    @register_view("a_blend_with_another", takes_other=True)
    def blend(image, generator, other):
        seen.append(other)
        return image if other is None else Image.blend(image, other.resize(image.size), 0.5)

    trainer = make_trainer(tmp_path, information_removing=blend, gate_by_advantage=False)
    trainer.train()
    assert seen and all(other is not None for other in seen)
    assert all(entry["cpl/gated_ratio"] == 1.0 for entry in trainer.state.log_history if "cpl/gated_ratio" in entry)


class Blend:
    """A view whose class says that it takes another image."""

    takes_other = True

    def __call__(self, image, generator, other):
        return other.resize(image.size)


@pytest.mark.parametrize("view", ["another_image", Blend()], ids=["by name", "of a class"])
def test_score_views_shows_the_next_rows_image_whatever_the_batch(folders, view):
    folder, rows = folders("qwen2_5_vl"), make_rows([1, 0, 1, 1])
    model, processor = (kind.from_pretrained(folder) for kind in (AutoModelForImageTextToText, AutoProcessor))
    settings = {"max_completion_length": 4, "information_removing": view}
    by_batch = [score_views(model, processor, rows, batch_size=size, **settings) for size in (1, 3)]
    images = [pixels(row["images"][0]) if row["images"] else None for row in rows]
    for scored in by_batch:
        shown = [pixels(one.views.pair.removed[0]) if one.views else None for one in scored]
        assert shown[1] is None
        assert all(np.array_equal(shown[place], images[other]) for place, other in [(0, 2), (2, 3), (3, 0)])
    shifts = [[one.scores.shifts for one in scored if one.views] for scored in by_batch]
    assert np.allclose(*shifts, atol=1e-4)


def test_one_prompt_of_an_evaluation_has_no_other(tmp_path):
    dataset = make_rows([1] * 8)
    trainer = make_trainer(
        tmp_path, dataset, eval_dataset=dataset, eval_strategy="steps", per_device_eval_batch_size=4, **ANOTHER
    )
    with pytest.raises(ValueError, match="num_generations_eval=4: set per_device_eval_batch_size higher"):
        trainer.check_data()


def test_a_generation_batch_keeps_its_own_others(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=16, num_generations=4, **ANOTHER)
    generation_batch(trainer)
    assert sorted(map(len, trainer.other_images.values())) == [3, 3, 3, 3]

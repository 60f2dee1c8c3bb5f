# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""max_pixels and min_pixels in training: sampling, scoring, views, rewards and logging see the same, limited images."""

import copy

import pytest
import torch
from agent_model import CALL, make_agent, score, scripted
from conftest import hash_reward, logged, make_rows, make_trainer, picture, told
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tiny_models import FAMILIES, build

from trl_cppo import limit_pixels
from trl_cppo.digits.model import MERGE, PATCH
from trl_cppo.run.rows.images import RowImages

LIMIT = 56 * 56
SIDE = PATCH * MERGE  # pixels of a token of the tiny Qwen
SIZES = [(112, 84), (56, 56), (300, 70), (40, 30)]
MESSAGE = {"role": Value("string"), "content": Value("string")}


def tokens_of(pixels_size):
    """Image tokens that the tiny Qwen's processor makes of a picture of this size."""
    _, processor = build("qwen2_5_vl")
    grid = processor.image_processor(images=[PILImage.new("RGB", pixels_size)], return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) // 4


def image_tokens(trainer, batch):
    return (batch["prompt_ids"] == trainer.model.config.image_token_id).sum(dim=1).tolist()


def first_batch(trainer):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def photo_rows(count=2, size=(4000, 3000)):
    photo = picture(0, 40, 30).resize(size)
    features = Features({"prompt": List(MESSAGE), "image": Image(), "solution": Value("string")})
    rows = [
        {"prompt": [{"role": "user", "content": "sum?"}], "image": photo, "solution": str(i)} for i in range(count)
    ]
    return Dataset.from_list(rows, features=features)


def test_a_photo_trains_and_makes_the_tokens_of_its_small_copy(tmp_path):
    limit = 256 * SIDE * SIDE
    trainer = make_trainer(
        tmp_path, photo_rows(), max_pixels=limit, num_generations=2, per_device_train_batch_size=2, max_steps=1
    )
    batch = first_batch(trainer)
    small = limit_pixels(PILImage.new("RGB", (4000, 3000)), max_pixels=limit)
    assert small.size == (258, 193)
    assert image_tokens(trainer, batch) == [18 * 14] * 2  # 252 x 196 pixels, of 14 x 14 a token
    assert batch["image_grid_thw"].tolist() == [[1, 28, 36]] * 2 and len(batch["pixel_values"]) == 2 * 28 * 36
    assert all(image.size == small.size for pair in batch["cpl_views"] if pair for image in pair.removed)
    trainer.train()
    assert trainer.state.global_step == 1 and logged(trainer, "train_loss")


@pytest.mark.parametrize("column", ["images", "image", "prompt"])
def test_sampling_scoring_views_and_rewards_see_the_same_images(tmp_path, column):
    pictures = [picture(i, *SIZES[i]) for i in range(4)]
    if column == "prompt":
        part = {"type": Value("string"), "text": Value("string"), "image": Image()}
        contents = [
            [{"type": "image", "text": None, "image": image}, {"type": "text", "text": "sum?", "image": None}]
            for image in pictures
        ]
        features = Features({"prompt": List({"role": Value("string"), "content": List(part)})})
        dataset = Dataset.from_list(
            [{"prompt": [{"role": "user", "content": content}]} for content in contents], features=features
        )
    else:
        features = Features({"prompt": List(MESSAGE), column: List(Image()) if column == "images" else Image()})
        dataset = Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": "sum?"}], column: [image] if column == "images" else image}
                for image in pictures
            ],
            features=features,
        )
    seen = []

    def reward(completion_ids, **columns):
        seen.append(columns)
        return hash_reward(None, completion_ids)

    trainer = make_trainer(
        tmp_path, dataset, max_pixels=LIMIT, min_pixels=2000, gate_by_advantage=False, num_generations=2,
        reward_funcs=reward, log_completions=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer.log_multimodal = True
    sampled = []
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, images, *rest: (sampled.extend(images), generate(ids, images, *rest))[
        1
    ]
    batch = first_batch(trainer)
    limited = [limit_pixels(image, LIMIT, 2000) for image in pictures]
    assert [image.size for image in limited] == [(64, 48), (56, 56), (115, 27), (52, 39)]
    shown = [next(i for i, image in enumerate(limited) if image.tobytes() == one.tobytes()) for [one] in sampled]
    assert sorted(shown) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert image_tokens(trainer, batch) == [tokens_of(limited[i].size) for i in shown]
    assert [pair.removed[0].size for pair in batch["cpl_views"]] == [limited[i].size for i in shown]
    assert [image.tobytes() for [image] in trainer._logs["images"]] == [limited[i].tobytes() for i in shown]
    [columns] = seen
    if column != "prompt":
        images = [value[0] if column == "images" else value for value in columns[column]]
        assert [image.size for image in images] == [limited[i].size for i in shown]
    asked = [prompt[-1]["content"][0]["image"] for prompt in columns["prompts"]]
    assert [image.size for image in asked] == [limited[i].size for i in shown]
    process = trainer.view_processor([[limited[i]] for i in shown])  # what is scored is what was sampled from
    assert torch.equal(process["pixel_values"], batch["pixel_values"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_mixed_sizes_under_a_limit(tmp_path, family):
    trainer = make_trainer(
        tmp_path, make_rows([1] * 4, sizes=SIZES), family=family, max_pixels=LIMIT, max_steps=1, gate_by_advantage=False,
        information_preserving=lambda image, generator: (seen.append(image.size), image)[1],
    )  # fmt: skip
    seen = []
    trainer.train()
    expected = {limit_pixels(PILImage.new("RGB", size), LIMIT).size for size in SIZES}
    assert seen and set(seen) <= expected and trainer.state.global_step == 1
    assert torch.isfinite(torch.tensor(logged(trainer, "cpl/loss"))).all()


def test_a_limit_that_no_image_exceeds_changes_nothing(tmp_path):
    def run(**limits):
        trainer = make_trainer(tmp_path, make_rows([1, 2, 0, 1], sizes=SIZES), **limits)
        trainer.train()
        return [{key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key and "time" not in key}
                for entry in trainer.state.log_history]  # fmt: skip

    assert run() == run(max_pixels=300 * 70, min_pixels=40 * 30) != run(max_pixels=LIMIT)


# What brings images of its own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_images_of_tools_are_limited(tmp_path, model_and_processor, kind):
    def zoom(side: int):
        """
        Zoom in.

        Args:
            side: The side.
        """
        return [{"type": "image", "image": picture(99, 112, 84)}, {"type": "text", "text": "here"}]

    async def zoom_later(side: int):
        """
        Zoom in.

        Args:
            side: The side.
        """
        return zoom(side)

    zoom_later.__name__ = "zoom"
    trainer = make_agent(
        tmp_path, model_and_processor, make_rows([1, 1], sizes=[(84, 84)]), max_pixels=LIMIT,
        tools=[zoom if kind == "sync" else zoom_later],
    )  # fmt: skip
    scripted(trainer, [[CALL, "no"] * 4, [f"yes{row}" for row in range(4)]])
    batch, request, _ = score(trainer)
    assert batch["num_images"] == [1 + (row % 2 == 0) for row in range(8)]
    images = [[image.size for image in row] for row in trainer.rollout_images]
    assert images == [[(56, 56), (64, 48)] if row % 2 == 0 else [(56, 56)] for row in range(8)]
    small = limit_pixels(picture(99, 112, 84), LIMIT)
    assert trainer.rollout_images[0][1].tobytes() == small.tobytes()
    assert [[image.size for image in pair.removed] for pair in request.pairs] == images
    places = batch["completion_ids"] == trainer.model.config.image_token_id
    assert places.sum(dim=1).tolist() == [tokens_of((64, 48)) if row % 2 == 0 else 0 for row in range(8)]


def test_images_of_environments_are_limited_and_rewards_see_them_so(tmp_path, model_and_processor):
    given, seen = [], []

    class Room:
        def reset(self, **row):
            given.append(picture(int(row["solution"]) + 50, 112, 84))
            return [{"type": "image", "image": given[-1]}]

        def look(self) -> str:
            """Look around."""
            return "nothing"

    rows = make_rows([0, 0]).remove_columns("images")
    trainer = make_agent(tmp_path, model_and_processor, rows, environment_factory=Room, max_pixels=LIMIT)
    rewards = trainer._calculate_rewards
    trainer._calculate_rewards = lambda inputs, prompts, *rest: (
        seen.extend(prompts),
        rewards(inputs, prompts, *rest),
    )[1]
    scripted(trainer, [[f"a{row}" for row in range(8)]])
    batch, request, _ = score(trainer)
    assert [image.size for image in given] == [(112, 84)] * 8  # an environment keeps its own
    assert image_tokens(trainer, batch) == [tokens_of((64, 48))] * 8
    assert {pair.removed[0].size for pair in request.pairs} == {(64, 48)}
    assert {part["image"].size for prompt in seen for part in prompt[-1]["content"] if part["type"] == "image"} == {
        (64, 48)
    }


def test_a_rollout_function_gets_limited_images(tmp_path, model_and_processor):
    seen = []

    def rollout(prompts, trainer):
        seen.extend(
            part["image"].size for [message] in prompts for part in message["content"] if part["type"] == "image"
        )
        ids = [trainer.processing_class.tokenizer(f"answer {i}<|im_end|>")["input_ids"] for i in range(len(prompts))]
        return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}

    trainer = make_agent(
        tmp_path, model_and_processor, make_rows([1, 1], sizes=[(112, 84)]), rollout_func=rollout, max_pixels=LIMIT
    )
    batch, request, _ = score(trainer)
    assert seen == [(64, 48)] * 8 and {pair.removed[0].size for pair in request.pairs} == {(64, 48)}
    assert image_tokens(trainer, batch) == [tokens_of((64, 48))] * 8


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_copied_and_an_object_is_scaled_once():
    image, other = picture(1, 112, 84), picture(2, 30, 30)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "?", "image": None}]
    rows = [
        {"prompt": [{"role": "user", "content": parts}], "images": [image, other, None], "solution": "1"},
        {"prompt": [{"role": "assistant", "content": None}], "images": [], "image": image},
        {"prompt": "text alone", "images": None, "image": None},
    ]
    kept = copy.copy(rows), [copy.copy(row) for row in rows], copy.copy(rows[0]["images"]), copy.copy(parts[0])
    limited = RowImages(LIMIT).rows(rows)
    assert (rows, rows, rows[0]["images"], parts[0]) == kept and parts[0]["image"] is image is rows[0]["images"][0]
    small = limited[0]["images"][0]
    assert small.size == (64, 48) and limited[0]["images"][1] is other and limited[0]["images"][2] is None
    assert limited[0]["prompt"][0]["content"][0]["image"] is small is limited[1]["image"]
    assert limited[0]["prompt"][0]["content"][1] == parts[1] and limited[2] == rows[2]
    assert RowImages().rows(rows) is rows


@pytest.fixture
def files(tmp_path):
    picture(1, 112, 84).save(tmp_path / "large.png")
    turned = PILImage.Exif()
    turned[274] = 6
    picture(2, 112, 84).save(tmp_path / "turned.jpg", exif=turned)
    return tmp_path


@pytest.mark.parametrize("settings", [{"max_pixels": LIMIT}, {"load_paths": True}])
def test_paths_are_read_upright_where_they_must_be(files, settings):
    paths = [str(files / name) for name in ("large.png", "turned.jpg")]
    [row] = RowImages(**settings).rows([{"prompt": "?", "images": paths}])
    sizes = [(64, 48), (48, 64)] if "max_pixels" in settings else [(112, 84), (84, 112)]
    assert [image.size for image in row["images"]] == sizes
    assert RowImages().rows([{"images": paths}]) == [{"images": paths}]


def test_paths_train_as_the_images_that_they_name(tmp_path, files):
    def run(images, **settings):
        dataset = Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": "sum?"}], "images": [image], "solution": "1"}
                for image in images
            ],
            features=Features({"prompt": List(MESSAGE), "images": images_type, "solution": Value("string")}),
        )
        batch = first_batch(make_trainer(tmp_path, dataset, **settings))
        return batch["pixel_values"], batch["completion_ids"]

    paths = [str(files / name) for name in ("large.png", "turned.jpg")]
    images_type = List(Value("string"))
    by_path = run(paths, max_pixels=LIMIT)
    images_type = List(Image())
    by_image = run([PILImage.open(path) for path in paths], max_pixels=LIMIT)
    whole = run([PILImage.open(path) for path in paths])
    assert all(torch.equal(one, other) for one, other in zip(by_path, by_image, strict=True))
    assert len(by_path[0]) < len(whole[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": ["/nowhere/x.png"]}, r"Row 0 of the generation batch, column 'images', image 0 \('/nowhere/x.png'\): "),
        ({"image": "/nowhere/x.png", "_trl_cppo_row": "Row 7 of it"}, r"Row 7 of it, column 'image', image 0 \('/nowhere"),
        ({"images": [picture(0), {"bytes": b"", "path": None}]}, r"'images', image 1 \(dict\): max_pixels and min_pixels take PIL"),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "image": "/nowhere/x.png"}]}]}, "column 'prompt', image 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_row_and_column(row, message):
    with pytest.raises(ValueError, match=message):
        RowImages(LIMIT).rows([row])


def test_a_path_that_leads_nowhere_stops_the_run_as_without_a_limit(tmp_path, caplog):
    dataset = make_rows([1] * 4).remove_columns("images").add_column("image", ["/nowhere/x.png"] * 4)
    for settings in ({}, {"max_pixels": LIMIT}):
        with pytest.raises(
            ValueError, match=r"Row \d of the training data set, column 'image', image 0 \('/nowhere/x.png'\)"
        ):
            make_trainer(tmp_path, dataset, **settings).train()
    for limit in (LIMIT, LIMIT - 1):
        with told(caplog):
            make_trainer(tmp_path, dataset, max_pixels=limit)
        assert ("of at most 3135 pixels" in caplog.text) == (limit < LIMIT)

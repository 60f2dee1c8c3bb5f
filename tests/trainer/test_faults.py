# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Bad input either trains on as it should or stops with an error that names row and column. See docs/faults.md."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import hash_reward, logged, make_rows, make_trainer, picture, weights
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from PIL import Image as PILImage
from tiny_models import build
from trl import GRPOConfig, GRPOTrainer

from trl_cppo.run.rows.checks import ROW_PLACE, LocatedRows, RowPlace, find_row_fault, row_names

BAD = 5  # the row at fault
STRING = [{"role": "user", "content": "sum?"}]


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows_of(images, feature, column="image"):
    """Eight rows or so with what `images` holds in `column`."""
    features = {"prompt": List({"role": Value("string"), "content": Value("string")}), column: feature}
    return Dataset.from_dict({"prompt": [STRING] * len(images), column: images}, features=Features(features))


def with_bad_row(bad, feature=None, column="image"):
    good = [encoded(picture(10 * i)) for i in range(8)]
    if column == "images":
        return rows_of([bad if i == BAD else [image] for i, image in enumerate(good)], List(Image()), column)
    return rows_of([bad if i == BAD else image for i, image in enumerate(good)], feature or Image(), column)


def trained(folder, dataset, **kwargs):
    trainer = make_trainer(folder, dataset, **{"max_steps": 4, **kwargs})
    trainer.train()
    return trainer


def scored(trainer):
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def assert_same_weights(first, second):
    for name, value in weights(first).items():
        assert torch.equal(value, dict(second.model.named_parameters())[name]), name


def assert_learned(trainer):
    initial = dict(build("qwen2_5_vl")[0].named_parameters())
    now = weights(trainer)
    assert all(value.isfinite().all() for value in now.values())
    assert any(not torch.equal(value, initial[name]) for name, value in now.items())


# Images that cannot be read -------------------------------------------------------------------------------------------

UNREADABLE = {
    "junk": ({"bytes": b"no image at all", "path": None}, "UnidentifiedImageError"),
    "truncated": ({"bytes": encoded(picture(0))["bytes"][:300], "path": None}, "image file is truncated"),
    "missing": ({"bytes": None, "path": "/nowhere/x.png"}, "FileNotFoundError.*'/nowhere/x.png'"),
}


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("fault", UNREADABLE)
def test_unreadable_image_is_named_by_row_and_column(tmp_path, fault, column):
    bad, says = UNREADABLE[fault]
    dataset = with_bad_row([bad] if column == "images" else bad, column=column)
    trainer = make_trainer(tmp_path, dataset, max_steps=4)
    with pytest.raises(ValueError, match=f"^Row {BAD} of the training data set, column '{column}' cannot.*{says}"):
        trainer.train()
    assert trainer.state.global_step > 0  # the fault lies in the middle of the epoch


def test_unreadable_image_is_named_by_a_worker_process_too(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_row(UNREADABLE["junk"][0]), max_steps=4, dataloader_num_workers=1)
    with pytest.raises(ValueError, match=f"Row {BAD} of the training data set, column 'image' cannot be read"):
        trainer.train()


def test_unreadable_image_for_evaluation_is_named(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=with_bad_row(UNREADABLE["junk"][0]), per_device_eval_batch_size=8)
    with pytest.raises(ValueError, match=f"^Row {BAD} of the evaluation data set, column 'image' cannot be read"):
        trainer.evaluate()


def test_a_transform_that_fails_is_named_by_row():
    def transform(batch):
        return {"x": [1 // value for value in batch["x"]], "y": batch["y"]}

    dataset = Dataset.from_dict({"x": [1, 1, 0], "y": [0, 0, 0]}).with_transform(transform)
    with pytest.raises(
        ValueError, match=r"^Row 2 of it, one of the columns \['x', 'y'\] cannot be read: ZeroDivision"
    ):
        LocatedRows(dataset, "it").__getitems__([0, 0, 2, 2])


def paths(tmp_path, bad=None):
    names = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, name in enumerate(names):
        picture(10 * i).save(name)
    return rows_of([bad if bad and i == BAD else name for i, name in enumerate(names)], Value("string"))


def test_paths_as_strings_train_as_decoded_images_do(tmp_path):
    decoded = rows_of([encoded(picture(10 * i)) for i in range(8)], Image())
    assert_same_weights(trained(tmp_path, paths(tmp_path)), trained(tmp_path, decoded))


@pytest.mark.parametrize("stream", [False, True])
def test_missing_path_as_a_string_is_named_by_row_and_column(tmp_path, stream):
    dataset = paths(tmp_path, bad="/nowhere/x.png")
    trainer = make_trainer(tmp_path, dataset.to_iterable_dataset() if stream else dataset, max_steps=4)
    row = r"Row \d+ of the generation batch" if stream else f"Row {BAD} of the training data set"
    with pytest.raises(ValueError, match=f"^{row}, column 'image', image 0 \\('/nowhere/x.png'\\): "):
        trainer.train()


# Too few and too many images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image", "images"])
def test_none_trains_as_a_text_only_row(tmp_path, column):
    with_none = trained(tmp_path, with_bad_row(None, column=column))
    assert_learned(with_none)
    assert_same_weights(with_none, trained(tmp_path, with_bad_row([], column="images")))


@pytest.mark.parametrize("column, feature", [("image", Image()), ("images", List(Image()))])
def test_a_batch_of_none_alone_trains_and_rewards_see_the_none(tmp_path, column, feature):
    seen = []

    def reward(completion_ids, **kwargs):
        seen.append({name: kwargs[name] for name in kwargs if name in ("image", "images")})
        return hash_reward(None, completion_ids)

    with_none = trained(tmp_path, rows_of([None] * 8, feature, column), reward_funcs=reward)
    assert seen == [{column: [None] * 8}] * 4
    assert_learned(with_none)
    assert_same_weights(with_none, trained(tmp_path, rows_of([[]] * 8, List(Image()), "images")))


def test_rewards_get_what_grpo_gives_them(tmp_path):
    seen = []

    def reward(completion_ids, **kwargs):
        seen.append({name: value for name, value in kwargs.items() if name not in ("trainer_state", "log_extra")})
        return hash_reward(None, completion_ids)

    for classes in ({}, dict(trainer_class=GRPOTrainer, config_class=GRPOConfig)):
        trained(tmp_path, make_rows([1] * 8), reward_funcs=reward, max_steps=1, **classes)
    assert seen[0].keys() == seen[1].keys() and seen[0]["prompts"] == seen[1]["prompts"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "gemma4", "internvl", "lfm2_vl", "llava_next"])
def test_micro_batches_without_an_image_add_up_to_the_whole_batch(tmp_path, family):
    # Two prompts a step, of which one has no image: some of the micro-batches of two rows are text only.
    settings = dict(family=family, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, max_steps=2, cpl_coef=0.5)
    dataset = make_rows([1, 0] * 4, sizes=[(28, 28)])
    whole = trained(tmp_path, dataset, **settings)
    parts = trained(tmp_path, dataset, per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    assert logged(whole, "reward") == logged(parts, "reward")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["old_per_token_logps", "ref_per_token_logps"])
def test_text_only_chunks_are_scored_without_gradient_too(tmp_path, name):
    settings = {
        "old_per_token_logps": dict(num_iterations=2),
        "ref_per_token_logps": dict(beta=0.1, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"])),
    }
    common = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)  # one prompt's four rollouts a chunk
    trainer = make_trainer(tmp_path, make_rows([1, 0]), **common, **settings[name])
    batch = scored(trainer)
    assert sorted(batch["num_images"]) == [0] * 4 + [1] * 4
    in_one, *_ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].size(1),
        **{key: batch[key] for key in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
    )
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(batch[name][mask], in_one[mask].detach(), rtol=1e-4, atol=1e-5)


def placeholders(counts):
    """Rows whose prompts show as many images as `counts` says; each row brings one."""
    part = {"type": Value("string"), "text": Value("string")}
    content = [[{"type": "image", "text": None}] * count + [{"type": "text", "text": "sum?"}] for count in counts]
    features = {"prompt": List({"role": Value("string"), "content": List(part)}), "images": List(Image())}
    data = {
        "prompt": [[{"role": "user", "content": parts}] for parts in content],
        "images": [[encoded(picture(10 * i))] for i in range(len(counts))],
    }
    return Dataset.from_dict(data, features=Features(features))


@pytest.mark.parametrize("count", [0, 2])
def test_image_list_of_the_wrong_length_is_named(tmp_path, count):
    trainer = make_trainer(tmp_path, placeholders([1] * BAD + [count] + [1] * 2), max_steps=4)
    says = rf"column 'images': .*images provided \(1\) does not match number of image placeholders \({count}\)"
    with pytest.raises(ValueError, match=f"^Row {BAD} of the training data set, {says}"):
        trainer.train()


def test_image_list_of_the_right_length_is_not_blamed(tmp_path):
    assert_learned(trained(tmp_path, placeholders([1] * 8)))


def test_none_in_an_image_list_is_named(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_row([encoded(picture(0)), None], column="images"), max_steps=4)
    with pytest.raises(
        ValueError, match=f"^Row {BAD} of the training data set, column 'images', image 1 \\(None\\): "
    ):
        trainer.train()


def test_images_that_are_no_list_are_named(tmp_path):
    dataset = with_bad_row(encoded(picture(0))).rename_column("image", "images")
    with pytest.raises(
        ValueError, match="^Row . of the training data set, column 'images': expected a list of images"
    ):
        trained(tmp_path, dataset)


# Odd sizes ------------------------------------------------------------------------------------------------------------


def test_one_pixel_trains_as_the_same_colour_at_the_size_it_is_scaled_to(tmp_path):
    # 1x1 in RGB is the size at which a height or width is easily taken for the channels.
    colour = (200, 30, 90)
    grid = build("qwen2_5_vl")[1].image_processor(images=[PILImage.new("RGB", (1, 1))])["image_grid_thw"][0]
    side = int(grid[1]) * build("qwen2_5_vl")[1].image_processor.patch_size
    views = dict(
        information_preserving=lambda image, generator: image,
        information_removing=lambda image, generator: PILImage.new("RGB", image.size),
    )
    pixel, scaled = (
        trained(tmp_path, rows_of([encoded(PILImage.new("RGB", (n, n), colour))] * 8, Image()), **views)
        for n in (1, side)
    )
    assert side > 1 and any(value > 0 for value in logged(pixel, "cpl/gated_ratio"))
    assert_learned(pixel)
    assert_same_weights(pixel, scaled)


def test_one_pixel_goes_through_every_view(tmp_path):
    trainer = trained(tmp_path, rows_of([encoded(picture(i, 1, 1)) for i in range(8)], Image()), max_steps=8)
    assert_learned(trainer)
    assert sum(logged(trainer, "cpl/gated_ratio")) > 0


def test_extreme_aspect_ratio_is_named_where_the_processor_refuses_it(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_row(encoded(picture(0, 12_000, 40))), max_steps=4)
    says = r"column 'image', image 0 \(12000x40\): absolute aspect ratio must be smaller than 200"
    with pytest.raises(ValueError, match=f"^Row {BAD} of the training data set, {says}"):
        trainer.train()


def test_extreme_aspect_ratio_trains_where_the_processor_takes_it(tmp_path):
    sizes = set()

    def keep(image, generator):
        sizes.add(image.size)
        return image

    wide = [encoded(picture(i, 12_000, 40)) for i in range(8)]
    trainer = trained(tmp_path, rows_of(wide, Image()), family="gemma3", information_preserving=keep)
    assert sizes == {(12_000, 40)} and sum(logged(trainer, "cpl/gated_ratio")) > 0
    assert all(value.isfinite().all() for value in weights(trainer).values())


def test_a_photo_trains_under_a_limit_and_is_warned_of_without(tmp_path, caplog):
    photos = rows_of([encoded(picture(i, 4, 3).resize((4000, 3000))) for i in range(2)], Image())

    def warned(**limits):
        trainer = make_trainer(
            tmp_path, photos, max_steps=1, num_generations=2, per_device_train_batch_size=2, **limits
        )
        trainer.model.config.text_config.max_position_embeddings = 100
        caplog.clear()
        trainer.log_prompt_lengths()
        if limits:
            trainer.train()
            assert_learned(trainer)
        return [
            record.getMessage() for record in caplog.records if "training data set makes a prompt" in record.message
        ]

    [warning] = warned()
    assert "more than the 100 of the model's max_position_embeddings. Set max_pixels (now None)" in warning
    assert warned(max_pixels=56 * 56) == []


# Rewards --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscored", [float("nan"), None])
def test_nan_reward_takes_its_row_out_and_no_other(tmp_path, unscored):
    rewards = [1.0, unscored, 3.0, 8.0, *[unscored] * 4]
    trainer = make_trainer(tmp_path, reward_funcs=lambda **kwargs: list(rewards))
    batch = scored(trainer)
    group = np.array([1.0, 3.0, 8.0])
    expected = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
    torch.testing.assert_close(batch["advantages"][[0, 2, 3]], torch.tensor(expected, dtype=torch.float32))
    assert (batch["advantages"][[1, 4, 5, 6, 7]] == 0).all()
    assert [row for row, pair in enumerate(batch["cpl_views"]) if pair is not None] == [3]
    trainer.train()
    assert_learned(trainer)


def test_all_nan_and_all_equal_rewards_change_no_weight(tmp_path):
    initial = dict(build("qwen2_5_vl")[0].named_parameters())
    for reward in (float("nan"), 0.25):
        trainer = trained(tmp_path, make_rows([1] * 8), reward_funcs=lambda ids=reward, **kwargs: [ids] * 8)
        assert trainer.state.global_step == 4
        assert logged(trainer, "loss") == [0.0] * 4 and logged(trainer, "cpl/gated_ratio") == [0.0] * 4
        assert all(torch.equal(value, initial[name]) for name, value in weights(trainer).items())


def test_reward_that_raises_names_the_rows_and_leaves_the_checkpoint(tmp_path):
    def reward(completion_ids, trainer_state, **kwargs):
        if fail and trainer_state.global_step == 3:
            raise ZeroDivisionError("a reward of mine")
        return hash_reward(None, completion_ids)

    settings = dict(reward_funcs=reward, save_strategy="steps", save_steps=2)
    fail = True
    trainer = make_trainer(tmp_path / "out", max_steps=4, **settings)
    with pytest.raises(ZeroDivisionError, match="a reward of mine") as caught:  # the user's own error, to the letter
        trainer.train()
    fail = False
    order = [
        str(row[ROW_PLACE]) for batch in trainer.get_train_dataloader() for row in batch[::4]
    ]  # two prompts a step
    named = f"{order[6]}; {order[7]}."
    assert named.count("of the training data set") == 2
    assert caught.value.__notes__ == [f"While generating and scoring: {named} Columns: prompt, images, solution."]

    resumed = make_trainer(tmp_path / "out", max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed, trained(tmp_path / "whole", None, **settings))


def test_view_that_raises_names_column_and_image(tmp_path):
    def view(image, generator):
        return 1 // 0

    with pytest.raises(ValueError, match="^Row .*, column 'images', image 0: integer division") as caught:
        trained(tmp_path, None, information_removing=view)
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


def test_rows_without_a_prompt_are_not_blamed_for_it():
    image_processor = build("qwen2_5_vl")[1].image_processor
    assert find_row_fault([{"environment": "a game"}], image_processor) is None


def test_a_row_of_a_data_set_carries_its_number_and_is_called_by_it():
    [first, second] = LocatedRows(Dataset.from_dict({"x": range(9)}), "Row 3 of mine").__getitems__([7, 0])
    assert (first[ROW_PLACE].row, second[ROW_PLACE].row) == (7, 0)
    assert (
        row_names([first, second, {}])
        == "Row 7 of Row 3 of mine; Row 0 of Row 3 of mine; Row 2 of the generation batch"
    )


def test_names_of_a_large_batch_are_cut_short():
    names = row_names([{ROW_PLACE: RowPlace(i // 2, "mine")} for i in range(40)], limit=3)
    assert names == "Row 0 of mine; Row 1 of mine; Row 2 of mine; and 17 more"


# Empty completions ----------------------------------------------------------------------------------------------------


def cut_short(trainer_class, lengths):
    """A trainer whose completions end after `lengths` tokens, by rows, with the last of these an end of sequence."""

    class CutShort(trainer_class):
        def _generate_single_turn(self, *args, **kwargs):
            completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
            eos = self.processing_class.tokenizer.eos_token_id
            cut = [
                ids if length is None else [*ids, *ids][: length - 1] + [eos]
                for ids, length in zip(completion_ids, lengths, strict=True)
            ]
            return cut, logprobs

    return CutShort


EMPTY = {"some": [1, None] * 4, "all": [1] * 8}


def rank_reward(completion_ids, **kwargs):
    return [float(i) for i in range(len(completion_ids))]


@pytest.mark.parametrize("lengths", EMPTY.values(), ids=EMPTY)
def test_empty_completions_train(tmp_path, lengths):
    from trl_cppo import CPPOTrainer

    settings = dict(reward_funcs=rank_reward, beta=0.0)
    batch = scored(make_trainer(tmp_path, trainer_class=cut_short(CPPOTrainer, lengths), **settings))
    counts = batch["completion_mask"].sum(dim=1).tolist()
    assert [count for count, length in zip(counts, lengths, strict=True) if length] == [1] * lengths.count(1)
    assert batch["num_gated_rows"] == 4  # the better half of each group; the end of sequence counts as a token

    trainer = trained(tmp_path, None, trainer_class=cut_short(CPPOTrainer, lengths), **settings)
    assert_learned(trainer)
    assert all(np.isfinite(value) for value in logged(trainer, "cpl/loss"))
    plain = dict(cpl_coef=0.0, suppress_vision_tokens=False)
    ours = trained(tmp_path, None, trainer_class=cut_short(CPPOTrainer, lengths), **settings, **plain)
    theirs = dict(trainer_class=cut_short(GRPOTrainer, lengths), config_class=GRPOConfig)
    assert_same_weights(ours, trained(tmp_path, None, **theirs, **settings))


def test_completions_that_are_masked_out_whole_train_nothing(tmp_path):
    # Nothing ends within the limit, so `mask_truncated_completions` leaves not one token of any row.
    trainer = trained(
        tmp_path, None, reward_funcs=rank_reward, mask_truncated_completions=True, max_completion_length=2,
        generation_kwargs={"suppress_tokens": [build("qwen2_5_vl")[1].tokenizer.eos_token_id]},
    )  # fmt: skip
    assert logged(trainer, "completions/clipped_ratio") == [1.0] * 4
    initial = dict(build("qwen2_5_vl")[0].named_parameters())
    assert all(torch.equal(value, initial[name]) for name, value in weights(trainer).items())


def test_every_row_of_the_documentation_names_a_test_that_exists():
    tests = Path(__file__).parents[1]
    sources = "".join(path.read_text() for path in tests.rglob("test_*.py"))
    lines = (tests.parent / "docs" / "faults.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith(("| Fault", "| ---"))]
    assert len(table) > 20
    for line in table:
        names = re.findall(r"`(test_\w+)`", line.split("|")[4])
        assert names and all(f"def {name}(" in sources for name in names), line

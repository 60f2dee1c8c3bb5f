# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One limit: preparation, training, evaluation and report make the same image tokens of the same data set."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import generation_batch, load_script, make_rows, make_trainer, picture
from dataset_folders import geometry3k, virl39k
from datasets import DatasetDict
from huggingface_hub import ModelCard
from PIL import Image as PILImage

from trl_cppo import limit_pixels
from trl_cppo.commands.evaluate import CompletionGenerator, evaluate_rows
from trl_cppo.commands.evaluate.results.identity import question_hash
from trl_cppo.commands.prepare import prepare
from trl_cppo.commands.prepare.images import MIN_SIDE, usable_bytes
from trl_cppo.commands.view_scoring import ViewScorer
from trl_cppo.run.card import CardExample
from trl_cppo.run.rows.checks import LocatedRows
from trl_cppo.run.rows.images import RowImages

LIMIT = 56 * 56
SIZES = [(112, 84), (56, 56), (300, 70), (40, 30)]
LIMITED = [limit_pixels(PILImage.new("RGB", size), LIMIT).size for size in SIZES]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def grids_of(trainer, images):
    return trainer.processing_class.image_processor(images=images, return_tensors="pt")["image_grid_thw"].tolist()


def test_the_same_tokens_everywhere(tmp_path, random_model):
    dataset = make_rows([1] * 4, sizes=SIZES)
    trainer = make_trainer(tmp_path, dataset, max_pixels=LIMIT, num_generations=2)
    batch = generation_batch(trainer)
    by_pixels = sorted(batch["image_grid_thw"].tolist())[::2]
    assert by_pixels == sorted(grids_of(trainer, [PILImage.new("RGB", size) for size in LIMITED]))
    assert by_pixels != sorted(grids_of(trainer, [PILImage.new("RGB", size) for size in SIZES]))

    seen = []
    generator = CompletionGenerator(trainer.model, trainer.processing_class, 4)
    encode = generator.encode
    generator.encode = lambda examples: seen.append(encode(examples)) or encode(examples)
    list(evaluate_rows(LocatedRows(dataset, "it"), range(4), generator, lambda completions, images, **rest: (
        seen.append([image.size for [image] in images]), [1.0] * len(completions))[1], batch_size=4,
        row_images=RowImages(LIMIT)))  # fmt: skip
    inputs, rewarded = seen
    assert sorted(inputs["image_grid_thw"].tolist()) == by_pixels and rewarded == LIMITED

    scorer = ViewScorer(str(random_model), dataset, max_pixels=LIMIT, max_completion_length=4)
    scored, score = [], scorer._trainer.score_views
    scorer._trainer.score_views = lambda *rows: scored.append(score(*rows)) or scored[-1]
    rollouts = scorer(list(dataset), list(range(4)))
    assert [rollout.views.images[0].size for rollout in rollouts] == LIMITED
    assert sorted(scored[0][0]["image_grid_thw"].tolist()) == by_pixels


# Preparation ----------------------------------------------------------------------------------------------------------


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_prepared_rows_hold_the_scaled_images_and_their_tokens(tmp_path, random_model):
    questions = [("<image>\nFind x.", 1)] * 4
    source = str(virl39k(tmp_path / "source", questions, sizes=SIZES))
    whole, _ = prepare(source, model=str(random_model), max_prompt_length=10_000)
    limited, _ = prepare(source, model=str(random_model), max_prompt_length=10_000, max_pixels=LIMIT)
    images = [row["images"][0] for row in limited["train"]]
    assert [image.size for image in images] == LIMITED
    expected = [limit_pixels(row["images"][0], LIMIT) for row in whole["train"]]
    assert [image.tobytes() for image in images] == [image.convert("RGB").tobytes() for image in expected]
    trainer = make_trainer(tmp_path, limited["train"], max_pixels=LIMIT, num_generations=2)
    counted = {
        len(ids) for ids in trainer._tokenize_prompts([row["prompt"] for row in _with_images(limited["train"])])[0]
    }
    assert set(limited["train"]["num_tokens"]) == counted
    assert sum(whole["train"]["num_tokens"]) > sum(limited["train"]["num_tokens"])
    few = min(whole["train"]["num_tokens"])
    dropped, counts = prepare(source, model=str(random_model), max_prompt_length=few)
    kept, _ = prepare(source, model=str(random_model), max_prompt_length=few, max_pixels=30 * 28)
    assert len(dropped["train"]) < len(kept["train"]) == 4  # a limit rescues rows that would be too long


def _with_images(rows):
    for row in rows:
        images = iter(row["images"])
        content = [{**part, "image": next(images)} if part["type"] == "image" else part for part in row["prompt"][0]["content"]]  # fmt: skip
        yield {"prompt": [{"role": "user", "content": content}]}


def test_bytes_within_the_limits_are_untouched():
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encoded(picture(1), kind)
        assert usable_bytes({"bytes": data, "path": None}, "/nowhere", LIMIT, LIMIT) is data
        assert usable_bytes({"bytes": data, "path": None}, "/nowhere", LIMIT - 1) != data


@pytest.mark.parametrize(
    ("kind", "stored"), [("JPEG", "JPEG"), ("MPO", "JPEG"), ("PNG", "PNG"), ("WEBP", "PNG"), ("GIF", "PNG")]
)
def test_larger_ones_are_encoded_by_their_kind(kind, stored):
    image = picture(1, 30, 20).resize((300, 200))
    data = encoded(image, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {}))
    scaled = usable_bytes({"bytes": data, "path": None}, "/nowhere", LIMIT)
    with PILImage.open(io.BytesIO(scaled)) as found:
        assert (found.format, found.mode) == (stored, "RGB")
        expected = limit_pixels(PILImage.open(io.BytesIO(data)), LIMIT)
        options = {"quality": 95, "subsampling": 0} if stored == "JPEG" else {}
        assert found.tobytes() == PILImage.open(io.BytesIO(encoded(expected, stored, **options))).tobytes()
    assert usable_bytes({"bytes": scaled, "path": None}, "/nowhere", LIMIT) is scaled


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_that_lies_on_its_side_is_stored_upright(kind):
    exif = PILImage.Exif()
    exif[274] = 6
    data = encoded(picture(1, 6, 4).resize((120, 80)), kind, exif=exif)
    with PILImage.open(io.BytesIO(usable_bytes({"bytes": data, "path": None}, "/nowhere", LIMIT))) as found:
        assert found.size == (45, 68) and found.getexif().get(274) is None
        upright = np.asarray(
            limit_pixels(PILImage.open(io.BytesIO(data)), LIMIT).transpose(PILImage.Transpose.ROTATE_270)
        )
        assert np.abs(np.asarray(found, dtype=float) - upright).mean() < 2


def test_a_short_side_is_enlarged_as_far_as_the_limit_lets_it():
    data = encoded(picture(1, 100, 14), "PNG")
    sizes = {}
    for limit in (None, 200 * 28, 100 * 14):
        with PILImage.open(io.BytesIO(usable_bytes({"bytes": data, "path": None}, "/nowhere", limit))) as found:
            sizes[limit] = found.size
    assert sizes == {None: (200, MIN_SIDE), 200 * 28: (200, MIN_SIDE), 100 * 14: (100, 14)}


def test_the_limit_is_part_of_the_folders_record_and_older_records_stay_valid(tmp_path, monkeypatch, capsys):
    script, source = load_script("prepare_dataset"), str(geometry3k(tmp_path / "source", [("<image>Find x.", "1")]))
    output = tmp_path / "prepared"
    call = ["--dataset", source, "--output", str(output)]
    script.main(call)
    assert not {"max_pixels", "min_pixels"} & json.loads((output / ".prepared.json").read_text()).keys()
    script.main(call)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was not made by this very command"):
        script.main([*call, "--max_pixels", "1000"])
    script.main([*call, "--max_pixels", "1000", "--overwrite"])
    assert json.loads((output / ".prepared.json").read_text())["max_pixels"] == 1000
    script.main([*call, "--max_pixels", "1000"])
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="min_pixels must not be above max_pixels; got 2000 and 1000"):
        script.main([*call, "--max_pixels", "1000", "--min_pixels", "2000", "--overwrite"])


# Evaluation -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluate(tmp_path, monkeypatch, random_model):
    monkeypatch.chdir(tmp_path)
    Path("my_limits.py").write_text(
        "def even(completion_ids, **kwargs):\n    return [sum(ids) % 2 for ids in completion_ids]\n"
    )
    DatasetDict({"test": make_rows([1, 2, 0, 1], sizes=SIZES)}).save_to_disk(tmp_path / "data")
    script = load_script("evaluate")
    own = ["--model", str(random_model), "--dataset", "data", "--num_samples", "1", "--max_completion_length", "4"]
    own += ["--reward", "my_limits.even", "--output", "out.json"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *own, *arguments])
        script.main()
        return json.loads(Path("out.json").read_text())

    return run


def test_results_of_another_limit_are_not_mixed(evaluate):
    limited = evaluate("--max_pixels", str(LIMIT))
    assert limited["settings"]["max_pixels"] == LIMIT and limited["settings"]["min_pixels"] is None
    with pytest.raises(SystemExit, match=f"max_pixels: {LIMIT} -> none"):
        evaluate()
    whole = evaluate("--overwrite")
    assert [question["question"] for question in whole["questions"]] == [q["question"] for q in limited["questions"]]
    for change in ("--max_pixels", "0"), ("--max_pixels", "5", "--min_pixels", "6"):
        with pytest.raises((SystemExit, ValueError), match="max_pixels"):
            evaluate(*change, "--overwrite")


def test_results_from_before_there_was_a_limit_go_on(evaluate):
    result = evaluate()
    records = Path("_out.records.jsonl")
    header, *lines = records.read_text().splitlines()
    older = {
        name: value
        for name, value in json.loads(header)["settings"].items()
        if name not in ("max_pixels", "min_pixels")
    }
    records.write_text("\n".join([json.dumps({"settings": older}), *lines[:-1]]) + "\n")
    Path("out.json").write_text(json.dumps({**result, "settings": older}))
    again = evaluate()
    assert again["questions"] == result["questions"] and again["settings"]["max_pixels"] is None


def test_a_question_is_the_same_under_any_limit():
    [row] = make_rows([1], sizes=[(112, 84)])
    assert question_hash(row) != question_hash(RowImages(LIMIT).rows([row])[0])  # so it is taken of the whole image


# Card -----------------------------------------------------------------------------------------------------------------


def test_the_card_tells_the_limit(tmp_path):
    trainer = make_trainer(tmp_path, max_pixels=1_000_000, min_pixels=100)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md").text
    assert "| Images | scaled to at most 1,000,000 pixels and at least 100 pixels |" in card
    make_trainer(tmp_path).create_model_card()
    assert "scaled to" not in ModelCard.load(tmp_path / "README.md").text


def test_the_card_s_image_is_the_one_that_the_model_would_see(tmp_path):
    trainer = make_trainer(tmp_path, max_pixels=LIMIT)
    trainer.card_example = CardExample(picture(1, 400, 300), "sum?")
    trainer.create_model_card()
    with PILImage.open(tmp_path / "example.png") as image:
        assert image.width * image.height <= LIMIT

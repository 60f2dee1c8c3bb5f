# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A held-out part of data of one's own, and what the command says of it."""

import logging
import re
import shlex
from pathlib import Path

import pytest
from conftest import load_script
from dataset_folders import OWN_ROWS, jsonl, photos
from PIL import Image

from trl_cppo import digits
from trl_cppo.commands.loading import load_split, load_splits
from trl_cppo.commands.prepare import prepare

COLUMNS = dict(question="q", answer="a", image=["path"])
FLAGS = ["--question", "q", "--answer", "a", "--image", "path"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def shown(rows):
    return [image.tobytes() for row in rows for image in row["images"]]


def questions(count, each=2):
    """Each photo is asked about several times."""
    return [{"q": f"{j}?", "a": f"{i}-{j}", "path": f"photos/{i}.png"} for j in range(each) for i in range(count)]


def test_a_part_is_held_out_by_photo_whatever_the_order(tmp_path):
    photos(tmp_path / "photos", 20)
    sides = []
    for rows in (questions(20), questions(20)[::-1]):
        path = jsonl(tmp_path / "mine.jsonl", rows)
        prepared, counts = prepare(str(path), **COLUMNS, split_test=0.2)
        assert counts == {"train": {"kept": 32}, "test": {"kept": 8}} and list(prepared) == ["train", "test"]
        assert not set(shown(prepared["train"])) & set(shown(prepared["test"]))
        sides.append(set(prepared["test"]["solution"][:]))
    assert sides[0] == sides[1] and len(sides[0]) == 8
    path = jsonl(tmp_path / "more.jsonl", [*questions(20), {"q": "?", "a": "new", "path": "photos/0.png"}])
    moved = set(prepare(str(path), **COLUMNS, split_test=0.2)[0]["test"]["solution"][:]) - {"\\boxed{new}"}
    assert len(moved - sides[0]) <= 2


def test_rows_that_are_linked_by_photos_stay_together(tmp_path):
    photos(tmp_path / "photos", 12)
    chain = [[f"photos/{i}.png", f"photos/{i + 1}.png"] for i in range(5)]
    others = [[f"photos/{i}.png"] for i in range(6, 12)]
    rows = [{"question": "?", "answer": str(i), "images": images} for i, images in enumerate([*chain, *others, []])]
    prepared, _ = prepare(str(jsonl(tmp_path / "mine.jsonl", rows)), split_test=0.5)
    linked = {f"\\boxed{{{i}}}" for i in range(5)}
    assert linked & set(prepared["test"]["solution"][:]) in (set(), linked)
    assert 1 <= len(prepared["test"]) <= 6


def test_what_cannot_be_held_out_is_an_error(tmp_path):
    photos(tmp_path / "mine" / "photos")
    path = jsonl(tmp_path / "mine" / "rows.jsonl", [{**row, "path": "photos/0.png"} for row in OWN_ROWS])
    for share in (0, 1, 5, -0.1):
        with pytest.raises(ValueError, match=f"--split_test is the share of rows .* got {share}"):
            prepare(str(path), **COLUMNS, split_test=share)
    with pytest.raises(ValueError, match="all 3 rows are of one image, so that none can be held out"):
        prepare(str(path), **COLUMNS, split_test=0.3)
    path.rename(path.with_name("train.jsonl"))
    jsonl(path.with_name("test.jsonl"))
    with pytest.raises(ValueError, match=r"makes a 'test' of the split 'train', but .* has \['test', 'train'\]"):
        prepare(str(path.parent), **COLUMNS, split_test=0.3)


def run(*arguments):
    load_script("prepare_dataset").main([str(argument) for argument in arguments])


def test_the_command_says_what_became_of_the_rows_and_training_repeats_it(tmp_path, capsys, caplog):
    photos(tmp_path / "photos", 10)
    rows = [*questions(10), {"q": "?", "a": "", "path": "photos/0.png"}, {"q": "?", "a": "1", "path": "gone.png"}]
    path, out = jsonl(tmp_path / "mine.jsonl", rows), tmp_path / "out"
    call = [path, *FLAGS, "--output", out, "--split_test", 0.1, "--suffix", "Box it.", "--skip_broken"]
    run(*call)
    left_out = "1 left out (a: no answer; row 20), 1 left out (path: image missing; row 21)"
    told = capsys.readouterr().out
    assert f"train: 18 rows, {left_out}, images a row: 1\ntest: 2 rows, images a row: 1\n" in told
    assert told.endswith(f"Written to {out}. Train on it: --dataset_name {out}\n")
    with caplog.at_level(logging.INFO, "trl_cppo"):
        train = load_split(str(out), "train", ("prompt", "solution"))
        load_split(str(out), "test")
    assert [record.getMessage() for record in caplog.records] == [
        f"When {out} was prepared, of train were {left_out}."
    ]
    assert train[0]["prompt"][0]["content"][1]["text"].endswith("? Box it.")
    run(*call)
    assert "nothing to do" in capsys.readouterr().out
    jsonl(path, questions(10))
    with pytest.raises(SystemExit, match="exists, and was not made by this very command"):  # the file is another one
        run(*call)


def test_a_folder_whose_questions_have_changed_is_not_taken_for_prepared(tmp_path, capsys):
    photos(tmp_path / "mine" / "photos")
    path, call = jsonl(tmp_path / "mine" / "x.jsonl"), [tmp_path / "mine", *FLAGS, "--output", tmp_path / "out"]
    run(*call)
    run(*call)
    assert "nothing to do" in capsys.readouterr().out
    jsonl(path, OWN_ROWS[:2])
    with pytest.raises(SystemExit, match="made otherwise: the data's files have changed. Choose"):
        run(*call)


def test_of_conversations_no_command_is_said_that_would_not_work(tmp_path):
    row = {"messages": [{"role": "user", "content": "<image>?"}], "images": ["photos/0.png"], "solution": "1"}
    path, told = (
        jsonl(tmp_path / "mine.jsonl", [row]),
        "The conversations of 'messages' are not read: write each row's question",
    )
    with pytest.raises(SystemExit, match=told):
        run(path, "--output", tmp_path / "out")
    with pytest.raises(ValueError, match=told):
        load_split(str(path), "train")


def test_the_command_without_a_row_left_says_why_and_a_limit_that_works(tmp_path, capsys):
    photos(tmp_path / "photos")
    for place, size in enumerate([(400, 300), (500, 130), (224, 224)]):
        Image.new("RGB", size).save(tmp_path / "photos" / f"{place}.png")
    digits.build_processor().save_pretrained(tmp_path / "model")
    path, out = jsonl(tmp_path / "mine.jsonl"), tmp_path / "out"
    call = [path, *FLAGS, "--output", out, "--model", tmp_path / "model", "--suffix", "x", "--max_prompt_length"]
    told = r"error: no row of .* is left: 3 left out \(prompt of more than {} tokens; rows 0, 1, 2\)\. The long prompts have \d+ to \d+ tokens: (\d+)(?: to (\d+))? of text and \d+ to \d+ of images\. {}"
    with pytest.raises(
        SystemExit, match=told.format(5, "The text of 3 is too long without an image: no --max_pixels")
    ) as error:
        run(*call, 5)
    text = int(re.search(r": (?:\d+ to )?(\d+) of text", str(error.value))[1])
    with pytest.raises(SystemExit, match=told.format(text + 2, "Images of 3136 pixels would be too long still")):
        run(*call, text + 2)
    with pytest.raises(
        SystemExit, match=told.format(text + 60, r"Scale the images down, --max_pixels \d+ \(")
    ) as error:
        run(*call, text + 60)
    assert not out.exists()
    pixels = int(re.search(r"--max_pixels (\d+)", str(error.value))[1])
    run(*call, text + 60, "--max_pixels", pixels)
    assert "train: 3 rows, images" in capsys.readouterr().out
    run(*call, text + 60, "--max_pixels", pixels + 28 * 28, "--overwrite")  # it is the most
    assert "left out (prompt of more than" in capsys.readouterr().out


def test_long_prompts_are_left_out_with_what_to_do(tmp_path, capsys):
    photos(tmp_path / "photos")
    digits.build_processor().save_pretrained(tmp_path / "model")
    path = jsonl(tmp_path / "mine.jsonl", [*OWN_ROWS, {**OWN_ROWS[0], "q": "long " * 100}])
    call = [path, *FLAGS, "--output", tmp_path / "out", "--model", tmp_path / "model", "--suffix", "x"]
    run(*call, "--max_prompt_length", 100)
    told = capsys.readouterr().out
    [length] = re.findall(
        r"The long prompts have (\d+) tokens: \d+ of text and \d+ of images. The text of 1 is too long", told
    )
    assert "train: 3 rows, 1 left out (prompt of more than 100 tokens; row 3), images a row: 1, prompts of " in told
    run(*call, "--max_prompt_length", length, "--overwrite")
    told = capsys.readouterr().out
    assert "train: 4 rows, images" in told and "long prompts" not in told


def test_the_command_takes_one_name(tmp_path):
    with pytest.raises(SystemExit, match="the data set is missing: name one Hub id, folder or file"):
        run("--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="the data set is given twice, a and b"):
        run("a", "--dataset", "b", "--output", tmp_path / "out")
    (tmp_path / "mine.csv").write_text("q,a,path\n?,1,x.png\n")
    told = r"has the columns \['q', 'a', 'path'\]. Needed are .*: name yours, --question COLUMN --answer COLUMN --image COLUMN"
    with pytest.raises(SystemExit, match=told):
        run(tmp_path / "mine.csv", "--output", tmp_path / "out")


def filled(command, names):
    """The command of an error as a user runs it, with the columns' names in it."""
    for flag, column in [("--question", "q"), ("--answer", "a"), ("--image", "path")]:
        assert (f"{flag} COLUMN" in command) == (column not in names)
        command = command.replace(f"{flag} COLUMN", f"{flag} {column}")
    return shlex.split(command)[2:]


@pytest.mark.parametrize("names", [{}, {"q": "question"}, {"q": "problem", "a": "answer", "path": "image"}])
@pytest.mark.parametrize("folder", [False, True])
def test_training_on_own_data_says_the_command_and_the_command_works(tmp_path, monkeypatch, names, folder):
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    photos(Path("mine photos", "photos"))
    jsonl(
        Path("mine photos", "mine.jsonl"),
        [{names.get(key, key): value for key, value in row.items()} for row in OWN_ROWS],
    )
    with pytest.raises(ValueError, match=r"^mine.* its columns are \[.*Prepare it: trl-cppo prepare ") as error:
        load_split("mine photos" if folder else "mine photos/mine.jsonl", "train")
    command = re.search(r"Prepare it: (trl-cppo .*?), and ", str(error.value))[1]
    run(*filled(command, names))
    assert len(load_split("data/prepared", "train", ("prompt", "solution"))) == 3
    assert set(load_splits("data/prepared")) == {"train"}
    with pytest.raises(ValueError, match="^data is no prepared folder, but .*: name one, data/prepared.$"):
        load_splits("data")
    with pytest.raises(
        ValueError, match=r"^there is no .* data/perpared here \(did you mean data/prepared\?\), and .* Hub: "
    ):
        load_splits("data/perpared")

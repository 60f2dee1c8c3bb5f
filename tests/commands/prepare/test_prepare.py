# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The builders of ViRL39K and geometry3k, on small folders of their true layouts and columns."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import generation_batch, load_script, logged, make_trainer, picture
from dataset_folders import VIRL39K, geometry3k, virl39k
from datasets import Dataset, DatasetDict, Image, List, load_dataset
from PIL import Image as PILImage
from trl import prepare_multimodal_messages

from trl_cppo import digits
from trl_cppo.commands.loading import load_split
from trl_cppo.commands.prepare import PROMPT_SUFFIX, build, prepare, sources, write

SCRIPT = Path(__file__).parents[3] / "examples" / "prepare_dataset.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    digits.build_processor().save_pretrained(folder)
    return str(folder)


def contents(row):
    """A prompt's parts in short: `None` is an image."""
    [message] = row["prompt"]
    assert message["role"] == "user"
    return [None if part["type"] == "image" else part["text"] for part in message["content"]]


QUESTIONS = [
    ("<image>\nFind x.", 1),
    ("Compare <image> with <image>.", 2),
    ("The mark is lost", 1),
    ("Two lost marks", 2),
    ("Text alone: 1 + 1?", 0),
]


@pytest.mark.parametrize("zipped", [False, True])
def test_virl39k_images_stand_where_the_question_has_them(tmp_path, zipped):
    prepared, counts = prepare(str(virl39k(tmp_path / "source", QUESTIONS, zipped=zipped)))
    rows = prepared["train"]
    assert counts == {"train": Counter(kept=5)} and list(prepared) == ["train"]
    assert [contents(row) for row in rows] == [
        [None, f"\nFind x. {PROMPT_SUFFIX}"],
        ["Compare ", None, " with ", None, f". {PROMPT_SUFFIX}"],
        [None, f"The mark is lost {PROMPT_SUFFIX}"],
        [None, None, f"Two lost marks {PROMPT_SUFFIX}"],
        [f"Text alone: 1 + 1? {PROMPT_SUFFIX}"],
    ]
    for i, (row, (_, count)) in enumerate(zip(rows, QUESTIONS, strict=True)):
        assert [image.tobytes() for image in row["images"]] == [picture(10 * i + j).tobytes() for j in range(count)]
        assert (row["solution"], row["qid"], row["PassRate_7BBase"]) == (f"\\boxed{{{i}}}", f"Processed-q{i}", -1.0)
    assert set(rows.column_names) == {"prompt", "images", "solution", *VIRL39K} - {"question", "answer", "image"}


def test_geometry3k_has_three_splits_and_boxed_solutions(tmp_path):
    problems = [("<image>Find x.", "\\frac{1}{2}"), ("<image>Find $m\\angle A$.", "45")]
    source = geometry3k(tmp_path / "source", problems)
    prepared, _ = prepare(str(source))
    assert {split: len(rows) for split, rows in prepared.items()} == {"train": 2, "validation": 2, "test": 2}
    assert prepared["test"]["solution"][:] == ["\\boxed{\\frac{1}{2}}", "\\boxed{45}"]
    assert prepared["test"][1]["images"][0].tobytes() == picture(3).tobytes()
    assert contents(prepared["train"][0]) == [None, f"Find x. {PROMPT_SUFFIX}"]
    assert list(prepare(str(source), ["test"], prompt_suffix="")[0]) == ["test"]
    assert contents(prepare(str(source), ["test"], prompt_suffix="")[0]["test"][0]) == [None, "Find x."]


def test_small_images_get_a_short_side_of_28_and_others_keep_their_bytes(tmp_path):
    sizes = [(20, 10), (3, 3), (28, 90), (10, 300)]
    source = virl39k(tmp_path / "source", [("<image>?", 1)] * 4, sizes)
    rows = prepare(str(source))[0]["train"]
    assert [row["images"][0].size for row in rows] == [(56, 28), (28, 28), (28, 90), (28, 840)]
    raw = rows.cast_column("images", List(Image(decode=False)))
    assert raw[2]["images"][0]["bytes"] == (source / "images" / "q2-0.png").read_bytes()


def test_prompt_length_is_the_processors_own_count(tmp_path, model):
    """The digits' processor: a canvas of 56x56 is 16 tokens of 14x14 pixels, one word is one token."""
    source = virl39k(tmp_path / "source", [("sum?", 1), ("sum?sum?", 1), ("sum?", 0), ("sum?", 2)], [(56, 56)])
    settings = dict(model=model, prompt_suffix="")
    rows = prepare(str(source), max_prompt_length=99, **settings)[0]["train"]
    frame = 2  # <|im_start|> and <|im_end|>
    assert rows["num_tokens"][:] == [16 + 2 + 1 + frame, 16 + 2 + 2 + frame, 1 + frame, 2 * 18 + 1 + frame]
    rows, counts = prepare(str(source), max_prompt_length=21, **settings)
    assert rows["train"]["qid"][:] == ["Processed-q0", "Processed-q2"]
    assert counts["train"] == {"kept": 2, "prompt of more than 21 tokens": 2}
    assert rows["train"][1]["images"] == [] and rows["train"].num_rows == 2


FAULTS = {
    "missing": ("column 'image': image missing: image 0, no such file images/q1-0.png in", "image: image missing"),
    "text": (
        "column 'image': image cannot be read: image 0 (images/q1-0.png), UnidentifiedImageError",
        "image: image cannot be read",
    ),
    "truncated": (
        "column 'image': image cannot be read: image 0 (images/q1-0.png), OSError: image file is",
        "image: image cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_images_are_named_or_skipped(tmp_path, fault):
    source = virl39k(tmp_path / "source", [("<image>?", 1)] * 3)
    path = source / "images" / "q1-0.png"
    whole = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no image" if fault == "text" else whole[: len(whole) // 2])
    message, kind = FAULTS[fault]
    for num_proc in (None, 2):
        with pytest.raises(ValueError, match=r"^Row 1 of .*source \(train\), ") as error:
            prepare(str(source), num_proc=num_proc)
        assert message in str(error.value) and "--skip_broken" in str(error.value)
    prepared, counts = prepare(str(source), skip_broken=True)
    assert prepared["train"]["qid"][:] == ["Processed-q0", "Processed-q2"]
    assert counts["train"] == {"kept": 2, kind: 1}
    path.write_bytes(whole)  # mended: the cache must not hide it
    assert prepare(str(source), skip_broken=True)[1]["train"] == {"kept": 3}


def test_other_faults_name_row_and_column(tmp_path, model):
    def error(question, count, answer="1", path=None, sizes=((56, 56),), **settings):
        source = virl39k(tmp_path / f"source{len(list(tmp_path.iterdir()))}", [(question, count)], sizes)
        [row] = Dataset.from_parquet(str(source / "39Krelease.parquet"), cache_dir=tmp_path / "cache")
        row |= {"answer": answer} | ({"image": [path]} if path else {})
        Dataset.from_list([row], features=VIRL39K).to_parquet(source / "39Krelease.parquet")
        with pytest.raises(ValueError) as raised:
            prepare(str(source), **settings)
        assert "Row 0 of" in str(raised.value)
        return str(raised.value)

    assert "'question': other number of <image> marks than of images: 2 and 1." in error("<image> <image>?", 1)
    assert "'question': other number of <image> marks than of images: 1 and 0." in error("<image>?", 0)
    assert "'question': no question: '<image>'." in error("<image>", 1)
    for answer in (" ", "\\boxed{}", "\\boxed{ }"):  # no completion could be right
        assert "'answer': no answer: " in error("<image>?", 1, answer=answer)
    assert "is no path inside the data set's folder" in error("<image>?", 1, path="../secret.png")
    assert "is no path inside the data set's folder" in error("<image>?", 1, path="/etc/secret.png")
    assert "'image': refused by the processor: absolute aspect" in error(
        "<image>?", 1, sizes=[(9000, 30)], model=model
    )


def test_a_second_call_does_no_work(tmp_path, model, monkeypatch):
    source = virl39k(tmp_path / "source", QUESTIONS)
    opened = []
    original = PILImage.open
    monkeypatch.setattr(PILImage, "open", lambda *args: (opened.append(1), original(*args))[1])
    first, _ = prepare(str(source), model=model, max_prompt_length=9999)
    assert len(opened) == 2 * 6  # six images, checked and counted
    second, counts = prepare(str(source), model=model, max_prompt_length=9999)
    assert len(opened) == 2 * 6 and counts["train"] == {"kept": 5}
    assert first["train"]._fingerprint == second["train"]._fingerprint
    monkeypatch.setattr(build, "advice", lambda *args: "")  # which looks at the long rows' images
    _, counts = prepare(str(source), model=model, max_prompt_length=230)  # another limit needs no other count
    assert len(opened) == 2 * 6 and counts["train"]["kept"] < 5


def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path, monkeypatch):
    """Its files are links into another folder there; the parquet file and the archive are all that is asked for."""
    blobs = virl39k(tmp_path / "blobs", QUESTIONS, zipped=True)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    asked = []

    def snapshot_download(name, repo_type, allow_patterns):
        asked.append((name, repo_type, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    prepared, counts = prepare("TIGER-Lab/ViRL39K", num_proc=2)
    assert counts["train"] == {"kept": 5} and prepared["train"][3]["images"][1].tobytes() == picture(31).tobytes()
    assert asked == [("TIGER-Lab/ViRL39K", "dataset", ["*.parquet", "images.zip"])]


def test_wrong_names_and_columns_say_what_there_is(tmp_path):
    source = geometry3k(tmp_path / "source", [("<image>?", "1")], ["train", "test"])
    with pytest.raises(ValueError, match=r"has no split 'dev', only \['test', 'train'\]"):
        prepare(str(source), ["dev"])
    with pytest.raises(FileNotFoundError, match="there is no file or folder ./nowhere here"):
        prepare("./nowhere")
    with pytest.raises(
        FileNotFoundError, match="there is no file or folder nobody/nothing here, and it cannot be had from the Hub"
    ):
        prepare("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no parquet file"):
        prepare(str(tmp_path / "empty"))
    Dataset.from_dict({"text": ["x"]}).to_parquet(tmp_path / "empty" / "train.parquet")
    with pytest.raises(ValueError, match=r"has the columns \['text'\]. Needed are question or problem; answer or"):
        prepare(str(tmp_path / "empty"))
    one = Dataset.from_dict({"question": ["?"], "answer": ["1"], "image": [5]})
    one.to_parquet(tmp_path / "empty" / "train.parquet")
    with pytest.raises(
        ValueError, match=r"\(train\), column 'image': expected an image or a list of images, .*got Value"
    ):
        prepare(str(tmp_path / "empty"))


def run(*arguments):
    load_script("prepare_dataset").main([str(argument) for argument in arguments])


def test_the_command_end_to_end_into_training(tmp_path, model, capsys):
    """Several images a row, one and none, through parquet into two steps; the images are those of the source."""
    source = virl39k(tmp_path / "source", [*QUESTIONS, ("sum? " * 400, 1)], [(56, 56), (20, 10)])
    run(
        "--dataset",
        source,
        "--output",
        tmp_path / "out",
        "--model",
        model,
        "--max_prompt_length",
        700,
        "--num_proc",
        2,
    )
    shown = capsys.readouterr().out
    assert (
        "train: 5 rows, 1 left out (prompt of more than 700 tokens; row 5), images a row: 0 to 2 (rows without one: 1), prompts of "
        in shown
    )
    rows = load_split(str(tmp_path / "out"), "train", ("prompt", "solution"))  # as the script does
    assert [len(row["images"]) for row in rows] == [1, 2, 1, 2, 0]
    [message] = prepare_multimodal_messages(rows[1]["prompt"], rows[1]["images"])  # as TRL fills the places
    shown = [part["image"].tobytes() for part in message["content"] if part["type"] == "image"]
    assert shown == [image.tobytes() for image in rows[1]["images"]] and rows[1]["images"][0].size == (56, 28)
    seen = []

    def reward(completions, solution, qid, **kwargs):
        seen.extend(zip(qid, solution, strict=True))
        return [float(len(seen) % 3 == i % 3) for i, _ in enumerate(completions)]

    trainer = make_trainer(tmp_path / "run", rows, reward_funcs=reward, per_device_train_batch_size=20, max_steps=2)
    lengths = generation_batch(trainer)["prompt_mask"].sum(1).tolist()
    assert set(lengths) == set(rows["num_tokens"])  # the trainer's prompts are as long as was counted
    seen.clear()
    trainer.train()
    assert set(seen) == {(f"Processed-q{i}", f"\\boxed{{{i}}}") for i in range(5)}
    assert len(logged(trainer, "cpl/loss")) == 2 and max(logged(trainer, "cpl/gated_ratio")) > 0


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    source = geometry3k(tmp_path / "source", [("<image>?", "1")], ["train"])
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="^prepare_dataset.py: error: .*out exists, and was not made by this"):
        run("--dataset", source, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="is inside of .*source, which would then hold both"):
        run("--dataset", source, "--output", source / "data" / "out")
    run("--dataset", source, "--output", tmp_path / "out", "--overwrite")
    assert "none was measured: give --model" in capsys.readouterr().out
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 1
    (source / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(SystemExit, match="^prepare_dataset.py: error: [^\n]*$"):
        run("--dataset", source, "--output", tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out", "cache"}  # no scratch folder is left


def test_the_same_command_again_does_nothing_and_another_is_refused(tmp_path, model, capsys):
    source = geometry3k(tmp_path / "source", [("<image>?", "1")] * 3, ["train", "test"])
    out = tmp_path / "out"
    command = ["--dataset", source, "--output", out, "--split", "train", "--model", model]
    run(*command, "--num_proc", 2)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert {path.name for path in out.iterdir()} == {"data", ".prepared.json", ".left_out.json"}
    for streaming in (False, True):  # `datasets` passes over the record
        splits = load_dataset(str(out), streaming=streaming)
        assert list(splits) == ["train"] and len(list(splits["train"])) == 3
    for again in ([], ["--num_proc", 3], ["--max_prompt_length", 512]):  # the last is the default
        capsys.readouterr()
        run(*command, *again)
        assert capsys.readouterr().out.startswith(f"{out} is there already, made by this command: nothing to do (")
    others = [
        ["--max_prompt_length", 400],
        ["--prompt_suffix", "x"],
        ["--skip_broken"],
        ["--split", "test"],
        ["--model", source],
    ]
    for other in [*others, ["--dataset", tmp_path]]:
        with pytest.raises(SystemExit, match="^prepare_dataset.py: error: .*out exists, .* or --overwrite"):
            run(*command, *other)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written
    run(*command, "--overwrite", "--prompt_suffix", "x")
    run(*command, "--prompt_suffix", "x")
    assert "nothing to do (" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="made otherwise: prompt_suffix: x -> y; skip_broken: False -> True. Choose"):
        run(*command, "--prompt_suffix", "y", "--skip_broken")
    (out / ".prepared.json").write_bytes(b"\xff")  # not ours
    with pytest.raises(SystemExit, match="It was not made by prepare. Choose .* --overwrite"):
        run(*command, "--prompt_suffix", "x")


def test_an_error_while_writing_leaves_the_older_folder(tmp_path, monkeypatch):
    rows = Dataset.from_dict({"x": [1, 2, 3, 4, 5]})
    write(DatasetDict(train=rows), tmp_path / "out")
    monkeypatch.setattr(build, "_SHARD_ROWS", 2)
    original, calls = Dataset.to_parquet, []

    def full_disk(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "to_parquet", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(DatasetDict(train=rows.select(range(4))), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    calls.clear()
    with pytest.raises(OSError, match="no space left"):
        write(DatasetDict(train=rows.select(range(4))), tmp_path / "out", overwrite=True)
    assert load_dataset(str(tmp_path / "out"), split="train")["x"][:] == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["out"]
    with pytest.raises(ValueError, match="'test' has no row left"):
        write(DatasetDict(test=rows.select([])), tmp_path / "none")
    write(DatasetDict(train=rows), tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3
    assert load_dataset(str(tmp_path / "out"), split="train")["x"][:] == [1, 2, 3, 4, 5]


def test_a_killed_command_leaves_nothing_that_loads(tmp_path):
    source = geometry3k(tmp_path / "source", [("<image>?", "1")] * 8, ["train"])
    hang = "import time; from datasets import Dataset; Dataset.to_parquet = lambda *a, **k: (print('writing', flush=True), time.sleep(60))"
    code = f"{hang}; import runpy, sys; sys.argv = ['x', '--dataset', {str(source)!r}, '--output', {str(tmp_path / 'out')!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.1)
    assert not (tmp_path / "out").exists()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The data sets that the documentation names go through `prepare` in their true layouts."""

import re

import pyarrow.parquet as parquet
import pytest
from conftest import picture
from dataset_layouts import features_of, layout_names, noise_png, read_layout, write_layout
from datasets import Dataset, load_dataset
from doc_pages import PAGES, ROOT

from trl_cppo.commands.prepare import PROMPT_SUFFIX, prepare
from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.run.rows.checks import check_dataset

OPEN_R1 = "lmms-lab/multimodal-open-r1-8k-verified"
SOURCES = [*PAGES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.yaml")]
SOURCES += (ROOT / "trl_cppo").rglob("*.py")
USED = re.compile(
    r"(?:--dataset(?:_name)? |dataset_name: |prepare\(\"|load_dataset\(\"|datasets/)(?!data/)([\w-]+/[\w.-]+)"
)
SOLUTIONS = {  # of rows 0 and 1, written here by hand
    "TIGER-Lab/ViRL39K": ["\\boxed{B}", "\\boxed{C}"],
    "hiyouga/geometry3k": ["\\boxed{3 \\sqrt { 2 }}", "\\boxed{4 \\sqrt { 3 }}"],
    OPEN_R1: ["\\boxed{C}", "\\boxed{A}"],
}
QUESTIONS = {"TIGER-Lab/ViRL39K": "question", "hiyouga/geometry3k": "problem", OPEN_R1: "problem"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_data_set_that_is_named_has_a_layout():
    named = {name for path in SOURCES for name in USED.findall(path.read_text())}
    assert named == set(layout_names()) == SOLUTIONS.keys()


@pytest.mark.parametrize("name", layout_names())
def test_a_layout_becomes_prompts_images_and_boxed_solutions(name, tmp_path):
    layout, source = read_layout(name), write_layout(name, tmp_path / "source", rows=2)
    prepared, counts = prepare(str(source))
    assert {split: len(rows) for split, rows in prepared.items()} == dict.fromkeys(layout["splits"], 2)
    assert counts == {split: {"kept": 2} for split in layout["splits"]}
    rows = prepared["train"]
    check_dataset(rows, name, required=("prompt", "solution"))
    assert rows["solution"][:] == SOLUTIONS[name]
    question = layout["row"][QUESTIONS[name]].removeprefix("<image>")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": f"{question} {PROMPT_SUFFIX}"}]
    assert rows[0]["prompt"] == [{"role": "user", "content": parts}] != rows[1]["prompt"]
    raw = rows.with_format("arrow")["images"].to_pylist()
    assert [[image["bytes"] for image in images] for images in raw] == [[noise_png(i, 84, 56)] for i in range(2)]


@pytest.mark.parametrize("name", layout_names())
def test_a_folder_has_the_columns_of_its_layout(name, tmp_path):
    source = write_layout(name, tmp_path / "source", rows=1)
    files = [str(path) for path in source.rglob("*.parquet")]
    assert len(files) == len(read_layout(name)["splits"])
    assert load_dataset("parquet", data_files=files, split="train").features == features_of(name)


def test_only_the_final_answer_is_rewarded(tmp_path):
    """The reasoning ends with 8; the answer is choice C. Unprepared it is refused."""
    source = write_layout(OPEN_R1, tmp_path / "source", rows=1)
    raw = Dataset.from_parquet(str(next(source.rglob("*.parquet"))), cache_dir=tmp_path / "cache")[0]["solution"]
    assert "= 8" in raw and "answer is C" in raw
    with pytest.raises(ValueError, match="holds reasoning in front of the answer 'The correct answer is C'"):
        boxed_accuracy_reward(["\\boxed{C}"], [raw])
    solution = prepare(str(source))[0]["train"][0]["solution"]
    assert boxed_accuracy_reward(["\\boxed{C}", "\\boxed{8}", "\\boxed{A}"], [solution] * 3) == [1, 0, 0]


def open_r1(folder, solutions):
    """A folder as lmms-lab/multimodal-open-r1-8k-verified: one image a row, embedded; solutions that reason."""
    (folder / "data").mkdir(parents=True)
    rows = [
        {"image": picture(i), "problem": "How many?", "solution": solution, "original_question": "?", "original_answer": "Answer:C"}
        for i, solution in enumerate(solutions)
    ]  # fmt: skip
    path = folder / "data" / "train-00000-of-00001.parquet"
    Dataset.from_list(rows, features=features_of(OPEN_R1)).to_parquet(path)
    return path


def test_open_r1_has_one_image_a_row_and_final_answers_alone(tmp_path):
    solutions = {
        "<think>3 + 5 = 8</think>\n\n<answer>The correct answer is C</answer>": "\\boxed{C}",
        "<think>So \\boxed{3}, <answer>3</answer>?</think>\n\n<answer> 145° </answer>": "\\boxed{145°}",
        "<think>a</think>\n\n<answer>The answer is \\( \\frac{1}{2} \\).</answer>": "\\boxed{\\( \\frac{1}{2} \\)}",
        "<answer>\\boxed{2}</answer>": "\\boxed{2}",
        "<think>a</think> \\boxed{7}": "\\boxed{7}",
        "<think>a</think>\n\n<answer>Final answer: x = 5</answer>": "\\boxed{x = 5}",
        "<think>a</think>\n\n<answer>The choice is yours</answer>": "\\boxed{The choice is yours}",
    }
    path = open_r1(tmp_path / "source", solutions)
    for metadata in (True, False):
        if not metadata:  # a struct of bytes and path that no library calls an image
            parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)
        rows = prepare(str(tmp_path / "source"))[0]["train"]
        assert rows["solution"][:] == list(solutions.values())
        assert [[image.tobytes() for image in row["images"]] for row in rows] == [
            [picture(i).tobytes()] for i in range(7)
        ]
        assert [part["text"] for part in rows[0]["prompt"][0]["content"]] == [None, f"How many? {PROMPT_SUFFIX}"]
        assert rows[0]["original_answer"] == "Answer:C"


@pytest.mark.parametrize(
    "solution", ["<think>3 + 5 = 8</think>", "<think>\\boxed{3}</think> It is 8.", "<think>a</think>\n\n<answer></answer>", "Add 3 and 5."]
)  # fmt: skip
def test_a_solution_without_a_final_answer_is_a_fault(tmp_path, solution):
    open_r1(tmp_path / "source", ["<answer>1</answer>", solution])
    with pytest.raises(ValueError, match=r"^Row 1 of .*, column 'solution': no final answer in \\boxed") as error:
        prepare(str(tmp_path / "source"))
    assert repr(solution) in str(error.value)
    prepared, counts = prepare(str(tmp_path / "source"), skip_broken=True)
    assert prepared["train"]["solution"][:] == ["\\boxed{1}"] and counts["train"]["kept"] == 1


def test_a_path_alone_and_other_pairs_of_columns(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(noise_png(0, 56, 56))
    columns = {"problem": ["?", "text?"], "answer": ["The answer is 5.", "6"], "image": ["a.png", None]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "source" / "train.parquet")
    rows = prepare(str(tmp_path / "source"))[0]["train"]
    assert [len(row["images"]) for row in rows] == [1, 0] and rows["solution"][:] == ["\\boxed{5}", "\\boxed{6}"]

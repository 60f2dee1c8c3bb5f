# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the errors for missing columns advise is done, and then the data set is accepted."""

import re

import pytest
from conftest import make_rows
from datasets import Dataset, load_dataset
from rehearsals.layouts import layout_names, write_layout

from trl_cppo.data import prepare
from trl_cppo.dataset_checks import check_dataset
from trl_cppo.loading import load_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def error_of(dataset, required=("prompt", "solution"), **kwargs):
    with pytest.raises(ValueError, match="no column") as error:
        check_dataset(dataset, "train_dataset", required, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def follow(dataset, error):
    """The data set after the one expression that the error gives."""
    [expression] = re.findall(r"dataset\.\w+\(.*\)(?=\.$)", error)
    return eval(expression, {"dataset": dataset})


@pytest.mark.parametrize("name", layout_names())
def test_a_known_layout_is_to_be_prepared_not_renamed(name, tmp_path):
    source = write_layout(name, tmp_path / "source", rows=1)
    [path] = list(source.rglob("*.parquet"))[:1]
    dataset = load_dataset("parquet", data_files=str(path), split="train")
    command = r"no column 'prompt'; .*Prepare it: python examples/prepare_dataset.py --dataset {} --output data/\w+, .*trl_cppo.data.prepare"
    assert re.search(command.format("NAME"), error_of(dataset)) and "ename" not in error_of(dataset)
    assert re.search(command.format(name), error_of(dataset, source=name))
    unreadable = (
        "cannot be loaded .* must be prepared: examples/prepare_dataset.py"  # `datasets` takes images.zip for data
    )
    archived = (source / "images.zip").is_file()
    with pytest.raises(ValueError, match=unreadable if archived else command.format(re.escape(str(source)))):
        load_split(str(source), "train")
    check_dataset(prepare(str(source))[0]["train"], "train_dataset", ("prompt", "solution"))


def test_conversations_under_another_name_are_renamed():
    dataset = make_rows([1]).rename_column("prompt", "question")  # a known name, but no string
    error = error_of(dataset)
    assert "rename_column('question', 'prompt')" in error and "prepare" not in error
    check_dataset(follow(dataset, error), "train_dataset", ("prompt", "solution"))


def test_a_question_is_made_a_conversation():
    dataset = make_rows([1, 1]).remove_columns(["prompt", "solution"]).add_column("problem", ["sum?", "x?"])
    error = error_of(dataset)
    assert "A prompt is a conversation" in error and "ename" not in error
    made = follow(dataset, error)
    check_dataset(made, "train_dataset")
    assert made["prompt"][:] == [[{"role": "user", "content": text}] for text in ("sum?", "x?")]
    assert "row['question']" in error_of(Dataset.from_dict({"text": ["x"]}))


@pytest.mark.parametrize(("answers", "advice"), [(["7", "8"], "Rename the"), ([7, 8], "Make strings of the")])
def test_right_answers_become_solutions(answers, advice):
    dataset = make_rows([1, 1]).remove_columns("solution").add_column("answer", answers)
    error = error_of(dataset)
    assert "no column 'solution'" in error and f"{advice} right answers: " in error
    made = follow(dataset, error)
    check_dataset(made, "train_dataset", ("prompt", "solution"))
    assert made["solution"][:] == ["7", "8"]


def test_without_answers_nothing_is_to_be_renamed():
    error = error_of(make_rows([1]).remove_columns("solution"))
    assert "needs the right answers, as strings: add them, or choose a reward" in error and "ename" not in error

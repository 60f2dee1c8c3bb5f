# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the errors for missing columns advise is done, and then the data set is accepted."""

import re

import pytest
from conftest import make_rows, make_trainer
from dataset_layouts import layout_names, write_layout
from datasets import ClassLabel, Dataset, Image, concatenate_datasets, load_dataset

from trl_cppo.commands.loading import load_split
from trl_cppo.commands.prepare import command as prepare_command
from trl_cppo.commands.prepare import prepare
from trl_cppo.run.rows.checks import check_dataset, check_solutions


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
    [expression] = re.findall(r"(?<=: )dataset\.\w+\(.*\)(?=\.$)", error)
    return eval(expression, {"dataset": dataset})


@pytest.mark.parametrize("name", layout_names())
def test_a_known_layout_is_to_be_prepared_not_renamed(name, tmp_path):
    source = write_layout(name, tmp_path / "source", rows=1)
    [path] = list(source.rglob("*.parquet"))[:1]
    dataset = load_dataset("parquet", data_files=str(path), split="train")
    command = r"no column 'prompt'; .*Prepare it: trl-cppo prepare --dataset {} --output data/\w+, .*trl_cppo.commands.prepare.prepare"
    assert re.search(command.format("NAME"), error_of(dataset)) and "ename" not in error_of(dataset)
    assert re.search(command.format(name), error_of(dataset, source=name))
    unreadable = "cannot be loaded .* must be prepared: trl-cppo prepare"  # `datasets` takes images.zip for data
    archived = (source / "images.zip").is_file()
    with pytest.raises(ValueError, match=unreadable if archived else command.format(re.escape(str(source)))):
        load_split(str(source), "train")
    check_dataset(prepare(str(source))[0]["train"], "train_dataset", ("prompt", "solution"))


def test_conversations_under_another_name_are_renamed():
    dataset = make_rows([1]).rename_column("prompt", "question")  # a known name, but no string
    error = error_of(dataset)
    assert "rename_column('question', 'prompt')" in error and "prepare" not in error
    check_dataset(follow(dataset, error), "train_dataset", ("prompt", "solution"))


@pytest.mark.parametrize("names", [["messages"], ["talk"], ["conversations", "messages"], ["talk", "conversations"]])
def test_of_several_conversations_the_likeliest_is_renamed_never_a_compared_one(names):
    """`chosen` stands in front of them all, and holds the answer."""
    prompt = make_rows([1, 1]).rename_column("prompt", names[-1])
    other = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": "7"}]] * 2
    dataset = Dataset.from_dict(dict.fromkeys(("chosen", "rejected", *names[:-1]), other))
    dataset = concatenate_datasets([dataset, prompt], axis=1)
    made = follow(dataset, error_of(dataset))
    assert made["prompt"][:] == prompt[names[-1]][:]
    check_dataset(made, "train_dataset", ("prompt", "solution"))


def test_compared_answers_alone_are_no_prompts():
    message = [{"role": "user", "content": "?"}]
    error = error_of(Dataset.from_dict({"chosen": [message], "rejected": [message]}))
    assert "your question column" in error and "dataset." not in error


@pytest.mark.parametrize("column", ["problem", "query"])
def test_a_question_is_made_a_conversation(column):
    dataset = make_rows([1, 1]).remove_columns(["prompt", "solution"]).add_column(column, ["sum?", "x?"])
    error = error_of(dataset)
    assert "A prompt is a conversation" in error and "ename" not in error
    made = follow(dataset, error)
    check_dataset(made, "train_dataset")
    assert made["prompt"][:] == [[{"role": "user", "content": text}] for text in ("sum?", "x?")]


@pytest.mark.parametrize("columns", [{"text": ["x"]}, {"conversations": [[{"from": "human", "value": "x"}]]}])
def test_without_a_known_question_no_column_is_made_up(columns):
    error = error_of(Dataset.from_dict(columns))
    assert error.endswith("Make it of your question column.") and "row[" not in error


@pytest.mark.parametrize(("answers", "advice"), [(["7", "8"], "Rename the"), ([7, 8], "Make strings of the")])
def test_right_answers_become_solutions(answers, advice):
    dataset = make_rows([1, 1]).remove_columns("solution").add_column("answer", answers)
    error = error_of(dataset)
    assert "no column 'solution'" in error and f"{advice} right answers: " in error
    made = follow(dataset, error)
    check_dataset(made, "train_dataset", ("prompt", "solution"))
    assert made["solution"][:] == ["7", "8"]


def test_classes_become_their_names():
    dataset = make_rows([1, 1]).remove_columns("solution").add_column("answer", [1, 0])
    dataset = dataset.cast_column("answer", ClassLabel(names=["cat", "dog"]))
    made = follow(dataset, error_of(dataset))
    assert made["solution"][:] == ["dog", "cat"]


def test_lists_of_answers_are_not_made_text():
    dataset = make_rows([1]).remove_columns("solution").add_column("answer", [["7", "8"]])
    assert "needs the right answers, as strings: add them" in error_of(dataset)


def test_without_answers_nothing_is_to_be_renamed():
    error = error_of(make_rows([1]).remove_columns("solution"))
    assert "needs the right answers, as strings: add them, or choose a reward" in error and "ename" not in error


@pytest.mark.parametrize(
    ("solutions", "told"),
    [
        (["\\boxed{1}", "<think>3 + 5", "<think>"], r"'<think>3 \+ 5' holds reasoning, but no final answer .* leave the row out"),
        (["1", None, "2"], "a solution must be a string; got None. Cast .* or leave the row out"),
    ],
)  # fmt: skip
def test_the_first_solution_that_cannot_be_graded_is_named(tmp_path, solutions, told):
    """The images are no images: nobody looks at them."""
    columns = {"prompt": [[{"role": "user", "content": "?"}]] * 3, "solution": solutions}
    dataset = Dataset.from_dict({**columns, "image": [{"bytes": b"no image", "path": None}] * 3})
    dataset.cast_column("image", Image()).save_to_disk(tmp_path / "rows")
    name = str(tmp_path / "rows")
    with pytest.raises(ValueError, match=rf"^Row 1 of {re.escape(name)} \(train\), column 'solution': {told}"):
        load_split(name, "train", ("prompt", "solution"))
    for other in (dict(required=("prompt",)), dict(required=("prompt", "solution"), graded=False)):
        assert len(load_split(name, "train", **other)) == 3


def test_solutions_that_are_numbers_say_to_cast():
    with pytest.raises(
        ValueError, match=r"^Row 0 of mine, column 'solution': .* got 7\. Cast the column: dataset\.cast_"
    ):
        check_solutions(Dataset.from_dict({"solution": [7]}), "mine")
    check_solutions(Dataset.from_dict({"solution": ["7", "The answer is C."]}), "mine")
    check_solutions(iter([]), "a stream is not looked into")


def test_prompts_that_are_texts_are_refused_with_what_makes_conversations(tmp_path):
    """TRL would say so after the model is loaded, and guess at a chat template."""
    rows = make_rows([1, 1]).map(lambda row: {"prompt": "<image>?", "answer": "1"}).remove_columns("solution")
    with pytest.raises(ValueError, match=r"^train_dataset, column 'prompt': holds texts, .*: dataset\.map") as error:
        make_trainer(tmp_path, rows)
    made = follow(rows, str(error.value))
    assert made[0]["prompt"] == [{"role": "user", "content": "?"}]
    check_dataset(made, "x")
    check_dataset(rows.with_transform(lambda batch: batch), "x")
    rows.to_parquet(tmp_path / "mine" / "train.parquet")
    with pytest.raises(
        ValueError, match="Prepare it: trl-cppo prepare --dataset .* --question prompt --output"
    ) as error:
        load_split(str(tmp_path / "mine"), "train")
    command = re.search("prepare (--dataset .*?) --output", str(error.value))[1].split()
    prepare_command.main([*command, "--output", str(tmp_path / "made")])
    assert len(load_split(str(tmp_path / "made"), "train")) == 2

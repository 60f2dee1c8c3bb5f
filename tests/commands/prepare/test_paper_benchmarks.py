# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The paper's seven benchmarks in their true layouts: each row's prompt and solution by hand, and right and wrong answers to it."""

import re

import pytest
from conftest import load_script
from dataset_layouts import benchmark_names, features_of, noise_png, read_layout, write_benchmark
from datasets import Dataset, load_dataset

from trl_cppo.commands.evaluate import evaluate_rows, summarize, table
from trl_cppo.commands.evaluate.generation import Completion
from trl_cppo.commands.evaluate.results.groups import group_scores
from trl_cppo.commands.loading import load_split
from trl_cppo.commands.prepare import PROMPT_SUFFIX, prepare, sources
from trl_cppo.commands.prepare.formats.benchmarks import BENCHMARKS, choice
from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.run.rows.checks import LocatedRows, check_solutions

HINT = "Hint: Answer with {} at the end.\nQuestion: {}"
# Of each row of a layout: the question as it is put, what it is graded against, right answers and wrong ones.
ROWS = {
    "logicvista": [
        ("Which box comes next? Select from A, B, C and D.", "C", ["C", "(C)", "c", "C. the turned one"], ["A", "A, C", ""]),
        ("Which boxes are turned? Select all from A to E.", "A, C", ["A, C", "C, A", "AC", "A and C"], ["A", "ABC", "A, B"]),
    ],
    "mathvista": [
        (
            HINT.format("the option letter", "Which bar is 5 high?\nChoices:\n(A) the left one\n(B) the middle one\n(C) the right one"),
            "B. the middle one", ["B", "(B)", "the middle one", "B. the middle one"], ["A", "the left one", "A. the middle one"],
        ),
        (HINT.format("one decimal place", "How long is the side? (Unit: cm)"), "1.2", ["1.2", "1.24", "1.16 cm", "\\frac{6}{5}"], ["1.26", "1.1", "12"]),
        (HINT.format("an integer", "How many dots are there?"), "7", ["7", "7.0", "seven"], ["7.04", "8"]),
        (HINT.format("a Python list", "Between which two years?"), "[2007, 2008]", ["[2007, 2008]", "[2007,2008]"], ["[2007, 2009]", "2007"]),
    ],
    "wemath": [
        ("How large is the angle?\nA. 45; B. 60; C. 72; D. No correct answer", "B. 60", ["B", "60"], ["A", "45", "No correct answer"]),
        ("How large is the angle?\nA. 45°; B. 60°; C. 72°", "A. 45°", ["A", "45°"], ["B", "60°"]),
        ("How large is their sum?\nA. 100°; B. 105°; C. 132°", "B. 105°", ["B", "105°"], ["C", "100"]),
    ],
    "dynamath": [
        ("How large is the volume?", "0.333", ["0.333", "1/3", "\\frac{1}{3}", "V = 0.3338"], ["0.3", "0.335", "V = 0.331"]),
        ("Which is larger? choice: (A) the left one (B) the right one", "B", ["B", "(B) the right one"], ["A"]),
        ("Which shape is it?", "cone", ["cone", "Cone"], ["cylinder", "o"]),
    ] * 2,
    "mmmu_pro_vision": [
        ("Answer the question in the image.", "B. the king's son", ["B", "the king's son"], ["A", "the king"]),
        ("Answer the question in the image.", "A", ["A"], ["B", "1"]),  # two choices have that text
    ],
    "mathvision": [
        ("Which piece fits?\n<image1>\nA. A\nB. B\nC. C\nD. D\nE. E", "C", ["C", "(C)"], ["A", "E"]),
        (
            "How long is the path?\n<image1>\nA. $\\sqrt{2}$\nB. 2 m\nC. 3 m", "A. $\\sqrt{2}$",
            ["A", "\\sqrt{2}", "$\\sqrt2$"], ["B", "2", "B. \\sqrt{2}"],
        ),
        ("How many paths are there?\n<image1>", "12", ["12", "12.0"], ["2", "A"]),
    ],
    "mathverse": [
        ("The angle at C is 40°. How large is A?\nChoices:\nA:20°\nB:25°\nC:50°", "C", ["C", "C:50°"], ["B", "B:25°"]),
        ("Answer the question in the image.", "2\\sqrt{3}", ["2\\sqrt{3}", "\\sqrt{12}"], ["2", "3\\sqrt{2}"]),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def prepared(name, folder, **options):
    return prepare(str(write_benchmark(BENCHMARKS[name].hub, folder)), benchmark=name, **options)[0]["test"]


def test_each_has_a_stand_in():
    assert {benchmark.hub for benchmark in BENCHMARKS.values()} == set(
        benchmark_names()
    ) and ROWS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_become_prompts_and_are_graded_by_the_benchmarks_rule(name, tmp_path):
    rows, layout = prepared(name, tmp_path / "source"), read_layout(BENCHMARKS[name].hub)
    check_solutions(rows, name)
    assert len(rows) == len(ROWS[name])
    images = rows.with_format("arrow")["images"].to_pylist()
    for i, (row, (question, solution, right, wrong)) in enumerate(zip(rows, ROWS[name], strict=True)):
        parts = [{"type": "image", "text": None}, {"type": "text", "text": f"{question} {PROMPT_SUFFIX}"}]
        assert row["prompt"] == [{"role": "user", "content": parts}] and row["solution"] == f"\\boxed{{{solution}}}"
        place, number = divmod(i, len(layout["rows"]))
        assert [image["bytes"] for image in images[i]] == [noise_png(place * 1000 + number, 84, 56)]
        texts = [f"<think>It is A, no, B or 2.</think> \\boxed{{{answer}}}" for answer in [*right, *wrong]]
        columns = {column: [row[column]] * len(texts) for column in rows.column_names if column != "images"}
        assert boxed_accuracy_reward(texts, **columns) == [1.0] * len(right) + [0.0] * len(wrong), row["solution"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_files_that_are_read_are_those_of_the_split(name, tmp_path):
    hub, layout = BENCHMARKS[name].hub, read_layout(BENCHMARKS[name].hub)
    source = write_benchmark(hub, tmp_path / "source", rows=1)
    files = [str(path) for path in source.rglob("*.parquet")]
    assert load_dataset("parquet", data_files=files, split="train").features == features_of(hub)
    read = len(sources.find_benchmark(name, str(source)).files["test"])
    assert (read, len(files)) == (2 if name == "dynamath" else 1, len(layout["splits"]))


def test_only_those_files_are_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, repo_type, allow_patterns):
        asked.append((name, repo_type, allow_patterns))
        return write_benchmark(name, tmp_path / "hub")

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    assert prepare(benchmark="mathvista")[1]["test"] == {"kept": 4}
    assert asked == [("AI4Math/MathVista", "dataset", ["data/testmini-*.parquet"])]


def test_questions_that_are_scored_together_are_told(tmp_path):
    wemath = prepared("wemath", tmp_path / "wemath")["question_group"][:]
    scores = ["strict", "loose"]
    assert wemath == [{"name": "2steps 0", "part": part, "size": 3, "scores": scores} for part in ("1", "2", "multi")]
    dynamath = prepared("dynamath", tmp_path / "dynamath")["question_group"][:]
    assert [(group["name"], group["part"], group["size"]) for group in dynamath] == [
        (str(i), part, 2) for part in ("1", "2") for i in range(3)
    ]
    assert "question_group" not in prepared("mathvista", tmp_path / "mathvista").column_names


@pytest.mark.parametrize(
    ("letter", "choices", "graded"),
    [
        ("B", ["1", "2"], "B. 2"), ("B", ["2", "2"], "B"), ("A", ["B", "A"], "A"), ("A", ["", "x"], "A"),
        ("A", ["\\frac{1", "x"], "A"), ("A", ["A and B", "x"], "A. A and B"), ("A ", ["B. or C.", "x"], "A"),
        ("B", ["1", 2], "B. 2"), ("2", ["1", "2"], "B. 2"),
    ],
)  # fmt: skip
def test_a_choice_is_its_letter_and_its_text_where_that_tells(letter, choices, graded):
    assert choice(letter, choices) == graded
    assert boxed_accuracy_reward([f"\\boxed{{{letter.strip()}}}", "\\boxed{E}"], [f"\\boxed{{{graded}}}"] * 2) == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "F"}, r"Row 1 of .* \(test\): the answer 'F' is none of its 3 choices. Mend it, or"),
        ({"options": None, "answer": None}, r"Row 1 of .*, column 'answer': no answer"),
        ({"question": ""}, "has no column 'question'"),
        ({"decoded_image": None}, "has no column 'decoded_image'"),
    ],
)  # fmt: skip
def test_a_fault_names_the_row(tmp_path, change, message):
    source = write_benchmark("MathLLMs/MathVision", tmp_path / "source")
    [path] = source.glob("data/testmini-*.parquet")
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    gone = [column for column in change if column in ("question", "decoded_image")]
    changed = [row | change if i == 1 else row for i, row in enumerate(rows)]
    Dataset.from_list(changed, features=rows.features).remove_columns(gone).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        prepare(str(source), benchmark="mathvision")
    if not gone:
        left = prepare(str(source), benchmark="mathvision", skip_broken=True)[1]["test"]
        assert (left["kept"], left.rows["answer: no answer"]) == (2, [1])


@pytest.mark.parametrize("broken", [0, 2], ids=["a step", "the whole"])
def test_a_problem_of_which_a_question_is_broken_is_not_scored(broken):
    keys = ["2steps_1", "2steps_2", "2steps_multi"]
    rows = [
        {"ID": problem, "key": key, "question": "How many?", "option": "A. 1; B. 2", "answer": "A", "image_path": None}
        for problem in ("7", "8")
        for key in keys
    ]
    rows[broken]["answer"] = "C"
    made = BENCHMARKS["wemath"].rows(Dataset.from_list(rows), "wemath", skip_broken=True)
    assert [row["answer"] for row in made].count("") == 1
    assert [(group["name"], group["part"], group["size"]) for group in made["question_group"]] == [
        (f"2steps {problem}", part, 3) for problem in ("7", "8") for part in ("1", "2", "multi")
    ]
    asked = [
        {"row": number, "group": row["question_group"], "samples": [1.0]}
        for number, row in enumerate(made)
        if row["answer"]
    ]
    assert {name: len(scores) for name, scores in group_scores(asked, "samples").items()} == {"strict": 1, "loose": 1}


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["0.5", "1/2"], "A"), (["50", "50%"], "A"), (["1,2", "2,1"], "A"), (["\\frac{1}{2}", "0.5"], "A"),
        (["12", "21"], "A. 12"), (["$\\frac{1}{3}$", "0.5"], "A. $\\frac{1}{3}$"), (["the left one", "the right one"], "A. the left one"),
    ],
)  # fmt: skip
def test_a_choice_that_equals_another_is_right_by_its_letter_alone(choices, answer):
    assert choice("A", choices) == answer


def test_the_command_makes_what_evaluate_reads(tmp_path, capsys):
    source, output = write_benchmark("We-Math/We-Math", tmp_path / "source"), tmp_path / "wemath"
    flags = ["--benchmark", "wemath", "--dataset", str(source), "--output", str(output)]
    run = load_script("prepare_dataset").main
    run(flags)
    assert f"Measure on it: trl-cppo evaluate --model MODEL --dataset {output}" in capsys.readouterr().out
    run(flags)
    assert "nothing to do" in capsys.readouterr().out
    for wrong, message in [
        (["--benchmark", "wemath", "--question", "q"], "--question does not go with --benchmark"),
        (["--benchmark", "mathvista", "--dataset", str(source)], r"holds no data/testmini-\*.parquet|no column"),
        (["--benchmark", "nobody"], "invalid choice: 'nobody'"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run([*wrong, "--output", str(tmp_path / "other")])
        assert re.search(message, f"{stopped.value} {capsys.readouterr().err}"), message
    rows = LocatedRows(load_split(str(output), "test", required=("prompt", "solution")), "wemath")
    reward = boxed_accuracy_reward
    [batch] = evaluate_rows(rows, [0, 1, 2], Answering(), reward, num_samples=2)
    settings = dict(model="m", dataset="d", split="test", reward="r", seed=0, temperature=1.0, top_p=1.0)
    result = summarize(batch, settings)
    groups = result["sampled"]["groups"]
    assert [groups[name]["score"] for name in ("strict", "loose")] == [0.25, 0.75]  # by hand: see Answering
    assert result["greedy"]["groups"]["strict"]["score"] == 1.0 and groups["strict"]["num_groups"] == 1
    assert "strict@2  | 0.250" in table(result) and "strict    | 1.000" in table(result)


class Answering:
    """Greedy all right; sample 0: one step wrong, the whole right; sample 1: the steps right, the whole wrong."""

    def encode(self, examples):
        return len(examples)

    def complete(self, inputs, rows, samples):
        for sample in samples:
            answers = {None: "BAB", 0: "CAB", 1: "BAC"}[sample]
            yield [Completion(f"\\boxed{{{answers[row]}}}", [1], clipped=False) for row in rows]

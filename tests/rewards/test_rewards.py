# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rewards: what is right, and that no text keeps them busy."""

import asyncio
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import logged, make_rows, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import accuracy_reward

from trl_cppo.commands.loading import RewardCountError, load_rewards
from trl_cppo.rewards import boxed_accuracy_reward, think_boxed_format_reward
from trl_cppo.rewards.client import GRADER
from trl_cppo.rewards.grading import answers_match, final_answer, last_boxed

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000


def grade(answer, gold):
    [reward] = boxed_accuracy_reward([[{"role": "assistant", "content": f"So \\boxed{{{answer}}}."}]], [gold])
    return reward


def documented():
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (yes|no) \|", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    return rows


@pytest.mark.parametrize(("gold", "answer", "right"), documented())
def test_the_documents_table(gold, answer, right):
    assert grade(answer, gold) == grade(answer, f"\\boxed{{{gold}}}") == (right == "yes")


RIGHT = [
    ("17^\\circ", "17"), ("90", "90^{\\circ}"), ("2\\sqrt{3} cm", "\\sqrt{12} \\text{ cm}"), ("2\\pi \\text{ cm}", "2\\pi"),
    ("12 \\text{ cm}^2", "12 cm²"), ("5 m/s", "5 meters per second"), ("5 sq. ft", "5 ft^{2}"), ("5", "\\$5"), ("5cm", "5"),
    ("A", "a"), ("A", "A."), ("A", "\\textbf{(A)}"), ("A", "Answer: A"), ("A", "(A) 12 cm"), ("(C) 4", "(C)"),
    ("C: 4 cm", "4"), ("5", "five"), ("5", "3 + 2 = 5"), ("5", "x = \\frac{10}{2} = 5"), ("x \\geq 5", "x >= 5"), ("Paris", "paris."), ("50", "50\\%"), ("\\frac12", "\\dfrac{1}{2}"), ("1\\frac{1}{2}", "1.5"),
    ("-\\frac{3}{4}", "−0.75"), ("1.5\\times10^3", "1500"), ("6 \\times 10^{-3} m", "0.006"), ("1{,}000", "1000"),
    ("\\{1,2\\}", "2,1"), ("7, 8", "7 and 8"), ("[1,2)", "\\left[1,2\\right)"), ("(-\\infty, 3]", "(-\\infty,3]"), ("5", "x=5"),
    ("x \\geq 3", "3 \\le x"), ("AB", "BA"), ("10:30", "10:30"), ("$\\frac{3}{8}$", "3/8"), ("\\(7\\)", "$$7$$"), ("5", " \\boxed{5} "),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"), ("Zhōngguó", "zhōngguó"),
    ("\\begin{pmatrix}1 & 2 \\\\ 3 & 4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&\\frac{8}{2}\\end{pmatrix}"),
]  # fmt: skip
WRONG = [
    ("A", "B"), ("A", "AB"), ("A", "A, B"), ("A", "A or B"), ("A", "(A) (B)"), ("A", "A. B"), ("A", "All of them"), ("(C) 4", "5"),
    ("(C) 4", "D"), ("A", "A: 5 B: 6"), ("yes", "no"), ("yes", "yes or no"), ("Paris", "pairs"), ("north", "thorn"),
    ("5 m/s", "5 m/s^2"), ("20°C", "20°F"), ("3:30 PM", "3:30 AM"), ("5 or more", "5"), ("3x", "3"), ("12", "12 12"), ("12", "1 2"),
    ("2", "1,2,3"), ("2", "2 or 3"), ("5", "5 = 7"), ("8", "B"), ("B", "8"), ("1", ""), ("1", " "), ("", ""), ("", "1"),
    ("0", "-"), ("5", "\\text{}"), ("5^2", "52"), ("January 5", "5"),
    # What NFKC alone would make equal, or other kinds of the same faults.
    ("106", "10⁶"), ("11/2", "1½"), ("15", "7 8"), ("(B) C", "C"), ("(B) d", "D"), ("5", "7 = 5"), ("5", "6 = x = 5"),("5", "5 fewer"), ("5", ">= 5"), ("x \\geq 5", "x <= 5"), ("0", "10^{-9}"), ("4n", "4"), ("5", "5 k"), ("(1,234)", "1234"),
]  # fmt: skip


def pairs(name):
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())["pairs"]


TASTE = [("5", "5 (five)"), ("Yes", "Yes, it is"), ("2 h 30 min", "2.5 h"), ("\\triangle DEF", "DEF"), ("ACD", "A, C, D"),
    ("1 hour 30 minutes", "1.5 hours"), ("6.02\\times10^{23}", "602000000000000000000000"),
    ("(-\\infty, 2] \\cup [3, \\infty)", "x \\leq 2 \\text{ or } x \\geq 3")]  # fmt: skip


@pytest.mark.parametrize("name", ["grader_pairs", "grader_neighbours"])
def test_no_wrong_pair_is_accepted_and_no_right_one_refused_but_what_the_documents_name(name):
    graded = [(gold, answer, right, grade(answer, gold) == 1) for gold, answer, right in pairs(name)]
    assert [pair for pair in graded if pair[3] and not pair[2]] == []
    assert {(gold, answer) for gold, answer, right, accepted in graded if right and not accepted} <= set(TASTE)
    assert sum(pair[2] for pair in graded) > 170


def test_what_the_pairs_refuse_stands_in_the_documents():
    refused = {(gold, answer) for gold, answer, right in documented() if right == "no"}
    assert set(TASTE) <= refused


@pytest.mark.parametrize("name", ["grader_pairs", "grader_neighbours"])
def test_every_solution_is_right_as_its_own_text(name):
    for gold, _, _ in pairs(name):
        assert gold == "" or answers_match(gold, final_answer(gold), lambda gold, answer: False)


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right_answers(gold, answer):
    assert grade(answer, gold) == 1.0


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong_answers(gold, answer):
    assert grade(answer, gold) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} and \\boxed{2}", "2"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1 \\boxed{2}}", "2"), ("\\boxed {3}", "3"), ("\\boxed{a\\\\b}", "a\\\\b"), ("\\boxed{}", ""),
        ("\\boxed{1} then \\boxed{2", None), ("\\boxed{\\frac{1}{2}", None), ("\\boxed 5", None), ("5", None), ("", None),
        ("\\boxed{2\\}", None),
    ],
)  # fmt: skip
def test_the_last_box_counts(text, expected):
    assert last_boxed(text) == expected


def test_completions_of_every_kind():
    """A string, a conversation with tool calls, content in parts or none; the last assistant message counts."""
    completions = [
        "\\boxed{7}",
        [{"role": "assistant", "content": "\\boxed{1}"}, {"role": "tool", "content": "\\boxed{2}"}, {"role": "assistant", "content": "\\boxed{7}"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "\\boxed{"}, {"type": "text", "text": "7}"}]}],
        [{"role": "assistant", "content": None}],
        [],
    ]  # fmt: skip
    logs = {}
    assert boxed_accuracy_reward(completions, ["7"] * 5, log_extra=logs.__setitem__, qid=[1] * 5) == [1, 1, 1, 0, 0]
    assert logs == {"solution": ["7"] * 5, "answer": ["7", "7", "7", "", ""]}
    assert think_boxed_format_reward([[{"role": "assistant", "content": "<think></think>\\boxed{}"}], []]) == [1, 0]
    with pytest.raises(TypeError, match="a solution must be a string; got 7"):
        boxed_accuracy_reward(["\\boxed{7}"], [7])
    with pytest.raises(ValueError, match="argument 2 is"):
        boxed_accuracy_reward(["\\boxed{7}"], [])


def test_what_text_settles_needs_no_process():
    def never(gold, answer):
        raise AssertionError(f"asked for {gold}, {answer}")

    assert answers_match("\\boxed{12\\text{ cm}}", "12 CM.", never) and answers_match("12 cm", "12", never)
    assert (
        answers_match("A", "(A)", never)
        and not answers_match("A", "3", never)
        and not answers_match("yes", "3", never)
    )
    assert not answers_match("3 cm", "3 m", never) and not answers_match("3", "4" * 1001, never)


def test_where_trls_reward_differs_as_documented():
    def trl(answer, gold):
        return accuracy_reward([[{"role": "assistant", "content": f"\\boxed{{{answer}}}"}]], [gold])[0]

    assert trl("yes", "yes") is None and trl("\\text{yes}", "yes") is None
    assert trl("2\\sqrt{3}", "2\\sqrt{3}") == 0 and trl("2", "2\\sqrt{3}") == 1
    assert trl("silent", "\\boxed{listen}") == 1 and trl("12 m", "\\boxed{12 cm}") == 1
    assert trl("A. 12 cm", "\\boxed{A}") == 0
    reasoned = "<think>3 + 5 = 8</think> <answer>The correct answer is C</answer>"
    assert trl("C", reasoned) == 0 and trl("8", reasoned) == 1
    with pytest.raises(ValueError, match="holds reasoning in front of the answer 'The correct answer is C'"):
        grade("C", reasoned)


def test_the_default_mixture_is_the_authors():
    assert load_rewards(None) == ([boxed_accuracy_reward, think_boxed_format_reward], [0.9, 0.1])
    assert load_rewards(["accuracy_reward"]) == ([accuracy_reward], None)


def test_a_reward_imports_from_the_working_folder_then_and_later(tmp_path, monkeypatch):
    late = "def {name}(completions, **kwargs):\n    import {name}_helper\n    return [{name}_helper.VALUE] * len(completions)\n"
    (tmp_path / "own_rewards.py").write_text(late.format(name="late") + "\n\nasync " + late.format(name="slow"))
    for name, value in {"late": 0.25, "slow": 0.5}.items():
        (tmp_path / f"{name}_helper.py").write_text(f"VALUE = {value}\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    (late, slow), _ = load_rewards(["own_rewards.late", "own_rewards.slow"])
    monkeypatch.chdir("/")
    assert late(completions=["a", "b"]) == [0.25, 0.25] and late.__name__ == "late"
    assert inspect.iscoroutinefunction(slow) and asyncio.run(slow(completions=["a"])) == [0.5]
    with pytest.raises(
        ImportError, match="^The reward own_rewards.nowhere cannot be imported: .* has no attribute 'nowhere'"
    ):
        load_rewards(["own_rewards.nowhere"])
    assert sys.path == path


def test_a_reward_is_a_file_and_a_function(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("VALUE = 0.75\n")
    source = "import math\nfrom dataclasses import dataclass\n\nFACTOR = 2\n\n\ndef one(completions, **kwargs):\n    import helper\n    return [helper.VALUE] * len(completions)\n\n\n"
    source += "def two(completions, **kwargs):\n    return [0.0]\n"
    (tmp_path / "datasets.py").write_text(source)  # called as a library
    monkeypatch.chdir(tmp_path)
    path, library = list(sys.path), sys.modules["datasets"]
    functions, weights = load_rewards(["./datasets.py:one", f"{tmp_path}/datasets.py:two", "boxed_accuracy_reward"])
    monkeypatch.chdir("/")
    assert functions[0](completions=["a", "b"]) == [0.75, 0.75] and functions[0].__name__ == "one" and weights is None
    with pytest.raises(RewardCountError, match="the reward two returned 1 values for 2 completions"):
        functions[1](completions=["a", "b"])
    assert sys.path == path and sys.modules["datasets"] is library and functions[2] is boxed_accuracy_reward


def test_a_file_without_its_function_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from math import sqrt\n\n\ndef first():\n    pass\n\n\ndef second():\n    pass\n"
    )
    (tmp_path / "empty.py").write_text("")
    has = r"\./mine\.py has the functions first, second\.$"
    with pytest.raises(
        ValueError, match=r"^The reward \./mine\.py names a file and no function: \./mine\.py:FUNCTION\. " + has
    ):
        load_rewards(["./mine.py"])
    with pytest.raises(AttributeError, match=r"there is no function 'third'\. " + has):
        load_rewards(["./mine.py:third"])
    with pytest.raises(ValueError, match=r"empty.py has no function\.$"):
        load_rewards(["empty.py"])
    with pytest.raises(FileNotFoundError, match=r"^The reward nowhere\.py:x: there is no file nowhere\.py\.$"):
        load_rewards(["nowhere.py:x"])
    (tmp_path / "typo.py").write_text("def x(:\n")
    with pytest.raises(
        ImportError, match=r"^The reward typo\.py:x cannot be imported: SyntaxError: .*\(typo\.py, line 1\)"
    ):
        load_rewards(["typo.py:x"])
    for name in ("./mine", "mine:first", "/x/y.z"):
        with pytest.raises(
            ValueError, match=r"^Unknown reward .* a file and its function \(\./my_rewards\.py:my_reward\)"
        ):
            load_rewards([name])


def test_the_mixture_trains(tmp_path):
    functions, weights = load_rewards(None)
    seen = []

    def spy(completions, **kwargs):
        values = functions[0](["\\boxed{4/2}" if i % 2 else "\\boxed{3}" for i, _ in enumerate(completions)], **kwargs)
        seen.extend(zip(kwargs["solution"], values, strict=True))
        return values

    trainer = make_trainer(tmp_path, make_rows([1] * 4), reward_funcs=[spy, functions[1]], reward_weights=weights)
    trainer.train()
    assert set(seen) == {("0", 0.0), ("1", 0.0), ("2", 0.0), ("2", 1.0), ("3", 0.0), ("3", 1.0)}
    assert logged(trainer, "reward") == pytest.approx([0.9 * value for value in logged(trainer, "rewards/spy/mean")])


# The oracle: the definition as a regular expression, which takes quadratic time and more.
DEFINITION = re.compile(r"\s*<think>(?:(?!<think>).)*</think>(?:(?!</?think>).)*\\boxed\{.*\}.*", re.DOTALL)
TOKENS = st.sampled_from(["<think>", "</think>", "\\boxed{", "}", "{", "x", " ", "\n", "\\boxed", "<", "think>"])


@settings(max_examples=500, deadline=None)
@given(st.lists(TOKENS, max_size=12), st.booleans())
def test_format_is_its_definition(tokens, begun):
    text = ("<think></think>" if begun else "") + "".join(tokens)
    assert think_boxed_format_reward([text]) == [float(DEFINITION.fullmatch(text) is not None)]


@pytest.mark.parametrize(
    ("start", "mark"),
    [
        ("<think></think>", "\\boxed{"), ("", "<think>"), ("<think>", "</think>"), ("", " "),
        ("<think>", "</think>\\boxed{"), ("\\boxed", " "), ("\\boxed{", "\\"), ("", "{"),
    ],
)  # fmt: skip
def test_ten_megabytes_of_marks_are_read_in_linear_time(start, mark):
    """No clock, for a busy machine: a regular expression of quadratic time would run into pytest's guard (1800 s)."""
    text = start + mark * (10 * MEGABYTE // len(mark))
    assert think_boxed_format_reward([text]) == boxed_accuracy_reward([text], ["1"]) == [0.0]
    assert GRADER.overruns == 0

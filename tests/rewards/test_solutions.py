# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What counts of a solution that reasons: its final answer, or an error."""

import pytest
from datasets import Dataset

from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.rewards.grading import answers_match, check_solution, final_answer, without_lead_in
from trl_cppo.run.rows.checks import check_solutions


@pytest.mark.parametrize(
    ("solution", "final"),
    [
        ("<think>3 + 5 = 8</think> <answer>The correct answer is C</answer>", "The correct answer is C"), ("The answer is C.", "The answer is C."),
        ("<think>a</think>\n\n<answer>\n(B)\n</answer>", "(B)"), ("\\boxed{8} <think>\\boxed{3}", "8"),
        ("<think>\\boxed{3}</think> \\boxed{8} <think>\\boxed{5} + 5", "8"),
        ("<answer>3</answer> or <answer>8</answer>", "8"), ("<think>\\boxed{3}</think> \\boxed{8}", "8"), ("\\boxed{The answer is 8}", "The answer is 8"),
        ("<think><answer>3</answer></think> <answer>\\boxed{8}</answer>", "8"), ("<think>\\boxed{3}, \\boxed{8}</think>\n", "8"),
        ("<answer>2 < 3</answer> <answer>", "2 < 3"), (" 5 ", "5"), ("\\boxed{1", "\\boxed{1"), ("x < 3", "x < 3"), ("", ""),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_solution(solution, final):
    assert final_answer(solution) == final


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("The answer is C.", "C"), ("Answer: 45", "45"), ("The correct option is: (B)", "(B)"), ("the choice is yours", "yours"),
        ("The final answer is: \\frac{1}{2}", "\\frac{1}{2}"), ("Final answer:x", "x"), ("The answer is-5", "-5"),
        ("The answer isn't 5", "The answer isn't 5"), ("Answer", "Answer"), ("The answer is", "The answer is"), ("Answer: ", "Answer: "),
        ("the right angle", "the right angle"), ("optional: no", "optional: no"), ("C.", "C."), ("", ""),
    ],
)  # fmt: skip
def test_words_in_front_of_an_answer(text, bare):
    assert without_lead_in(text) == bare


def differ(gold, answer):
    """In place of math-verify: whatever the text leaves to it is wrong."""
    return False


SENTENCES = [
    "The answer is C",
    "The answer is not known",
    "Answer: 45",
    "The choice is yours",
    "The answer isn't 5",
    "The answer is $x$.",
]


@pytest.mark.parametrize(
    "text", [*SENTENCES, "Answer", "The answer is", "\\text{The answer is }C", "Answer: Answer: 5", "the right angle"]
)
def test_the_same_text_is_right(text):
    for solution in (text, f"{text}.", f"\\boxed{{{text}}}", f"<think>3</think> <answer>{text}</answer>"):
        assert answers_match(solution, text, differ)
    assert not answers_match(text, "3", differ)


@pytest.mark.parametrize(
    ("solution", "answer", "right"),
    [
        ("The answer is C.", "C", True), ("C", "The answer is C.", True), ("A", "Answer: A", True), ("Answer: A", "A", True),
        ("The answer is $x$.", "x", True), ("x", "\\text{The answer is } $x$", True), ("The answer is not known", "not known", True),
        ("The answer is C.", "The answer is D.", False), ("The answer isn't 5", "5", False), ("The answer isn't 5", "n't 5", False),
    ],
)  # fmt: skip
def test_words_in_front_of_either_side_do_not_count(solution, answer, right):
    assert answers_match(solution, answer, differ) == right


REASONING = "<think>3 + 5 = 8</think>"


@pytest.mark.parametrize(
    "solution", [REASONING, f"{REASONING} 8", f"{REASONING} <answer>8", f"{REASONING} <answer> </answer>", f"{REASONING} \\boxed{{}}",
                 "<think>\\boxed{3}</think> It is 8.", "<think>3 + 5", "8</answer>",
                 "<think>\\boxed{3} + 5", "<think>a</think> text <think>\\boxed{3}", "<think>\\boxed{3}</think> <think>\\boxed{5}",
                 "<think>so <answer>3</answer>?"],
)  # fmt: skip
def test_reasoning_without_a_final_answer_is_an_error_not_a_zero(solution):
    with pytest.raises(ValueError, match=r"column 'solution': .* no final answer in .*boxed.* or <answer>") as error:
        boxed_accuracy_reward(["\\boxed{8}"], [solution])
    assert repr(solution) in str(error.value)
    with pytest.raises(ValueError, match="^.{1,300}$"):
        boxed_accuracy_reward(["\\boxed{8}"], [solution + "<think>" + "long " * 1000])


@pytest.mark.parametrize(
    "solution", [f"{REASONING} <answer>C</answer>", f"{REASONING} \\boxed{{8}}", "3 + 5</think> \\boxed{8}"]
)
def test_reasoning_in_front_of_an_answer_is_refused_too(solution):
    told = "column 'solution': .* holds reasoning in front of the answer '[C8]'. Keep the answer alone: prepare"
    with pytest.raises(ValueError, match=f"^{told}"):
        boxed_accuracy_reward(["\\boxed{8}"] * 2, ["8", solution])
    with pytest.raises(ValueError, match=f"^Row 1 of mine, {told}"):
        check_solutions(Dataset.from_dict({"solution": ["8", solution]}), "mine")
    check_solutions(Dataset.from_dict({"solution": [final_answer(solution)]}), "mine")  # what it says to do


@pytest.mark.parametrize(
    ("mark", "end"),
    [("<answer>", "</answer>"), ("</answer>", ""), ("<answer></think>", "\\boxed{1}"), ("\\boxed{", "")],
)
def test_ten_megabytes_of_marks_are_read_in_linear_time(mark, end):
    """No clock, for a busy machine: a regular expression of quadratic time would run into pytest's guard (1800 s)."""
    assert final_answer(f"{mark * (10_000_000 // len(mark))}{end}<answer>8</answer>") == "8"


@pytest.mark.parametrize(
    "solution", ["", " ", "\\boxed{}", "$ $", ".", "\\text{ }", "\\boxed{\\text{}}", "<answer>\\,</answer>", "$"]
)
def test_a_solution_that_no_completion_could_match_is_refused_before_the_training(solution):
    if solution != "$":  # a text like any other
        assert (
            boxed_accuracy_reward([f"\\boxed{{{text}}}" for text in ("", " ", "x", solution)], [solution] * 4)
            == [0] * 4
        )
        with pytest.raises(
            ValueError, match="^Row 1 of the training data set, column 'solution': .* no completion could be right"
        ):
            check_solutions(Dataset.from_dict({"solution": ["5", solution]}), "the training data set")
    else:
        check_solution(solution)
        assert boxed_accuracy_reward(["\\boxed{$}"], [solution]) == [1]


@pytest.mark.parametrize("solution", ["\\frac{1}{2", "5}", "\\text{yes", "\\boxed{5"])
def test_a_solution_whose_braces_do_not_match_is_graded_as_far_as_it_is_read(solution):
    check_solution(solution)
    answer = {"\\frac{1}{2": "0.5", "\\text{yes": "yes"}.get(solution, "5")
    assert boxed_accuracy_reward([f"\\boxed{{{answer}}}", "\\boxed{7}"], [solution] * 2) == [1, 0]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What counts of a solution that reasons: its final answer, or an error."""

import time

import pytest

from trl_cppo.grading import final_answer
from trl_cppo.rewards import boxed_accuracy_reward


@pytest.mark.parametrize(
    ("solution", "final"),
    [
        ("<think>3 + 5 = 8</think> <answer>The correct answer is C</answer>", "C"), ("The answer is C.", "C"), ("Answer: 45", "45"),
        ("<think>a</think>\n\n<answer>\nThe correct option is: (B)\n</answer>", "(B)"), ("The final answer is: \\frac{1}{2}", "\\frac{1}{2}"),
        ("<answer>3</answer> or <answer>8</answer>", "8"), ("<think>\\boxed{3}</think> \\boxed{8}", "8"), ("\\boxed{The answer is 8}", "8"),
        ("<think><answer>3</answer></think> <answer>\\boxed{8}</answer>", "8"), ("<think>\\boxed{3}, \\boxed{8}</think>\n", "8"),
        ("<answer>2 < 3</answer> <answer>", "2 < 3"), ("Answer", "Answer"), ("The answer is", "The answer is"), ("the right angle", "the right angle"),
        ("optional: no", "optional: no"), (" 5 ", "5"), ("\\boxed{1", "\\boxed{1"), ("x < 3", "x < 3"), ("", ""),
    ],
)  # fmt: skip
def test_the_final_answer_of_a_solution(solution, final):
    assert final_answer(solution) == final


REASONING = "<think>3 + 5 = 8</think>"


@pytest.mark.parametrize(
    "solution", [REASONING, f"{REASONING} 8", f"{REASONING} <answer>8", f"{REASONING} <answer> </answer>", f"{REASONING} \\boxed{{}}",
                 "<think>\\boxed{3}</think> It is 8.", "<think>3 + 5", "8</answer>"],
)  # fmt: skip
def test_reasoning_without_a_final_answer_is_an_error_not_a_zero(solution):
    with pytest.raises(ValueError, match=r"column 'solution': .* no final answer in .*boxed.* or <answer>") as error:
        boxed_accuracy_reward(["\\boxed{8}"], [solution])
    assert repr(solution) in str(error.value)
    with pytest.raises(ValueError, match="^.{1,300}$"):
        boxed_accuracy_reward(["\\boxed{8}"], [solution + "<think>" + "long " * 1000])


def test_a_megabyte_of_marks_is_read_in_a_second():
    start = time.process_time()
    for text in (
        "<answer>" * 125_000 + "</answer>",
        "</answer>" * 110_000,
        "<answer></think>" * 62_000 + "\\boxed{1}",
    ):
        final_answer(text + "<answer>8</answer>")
    assert time.process_time() - start < 1

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The rewards: what is right, and that no text keeps them busy."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import logged, make_rows, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.rewards import accuracy_reward

from trl_cppo import grading_client, rewards
from trl_cppo.grading import is_right, last_boxed
from trl_cppo.grading_client import GRADER, Grader
from trl_cppo.loading import load_rewards
from trl_cppo.rewards import boxed_accuracy_reward, think_boxed_format_reward

ROOT = Path(__file__).parents[1]
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
    ("C: 4 cm", "4"), ("Paris", "paris."), ("50", "50\\%"), ("\\frac12", "\\dfrac{1}{2}"), ("1\\frac{1}{2}", "1.5"),
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
    ("2", "1,2,3"), ("2", "2 or 3"), ("5", "5 = 7"), ("5", "five"), ("8", "B"), ("B", "8"), ("1", ""), ("1", " "), ("", ""), ("", "1"),
    ("0", "-"), ("5", "\\text{}"), ("5^2", "52"), ("January 5", "5"),
]  # fmt: skip


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

    assert is_right("\\boxed{12\\text{ cm}}", "12 CM.", never) and is_right("12 cm", "12", never)
    assert is_right("A", "(A)", never) and not is_right("A", "3", never) and not is_right("yes", "3", never)
    assert not is_right("3 cm", "3 m", never) and not is_right("3", "4" * 1001, never)


def test_where_trls_reward_differs_as_documented():
    def trl(answer, gold):
        return accuracy_reward([[{"role": "assistant", "content": f"\\boxed{{{answer}}}"}]], [gold])[0]

    assert trl("yes", "yes") is None and trl("\\text{yes}", "yes") is None
    assert trl("2\\sqrt{3}", "2\\sqrt{3}") == 0 and trl("2", "2\\sqrt{3}") == 1
    assert trl("silent", "\\boxed{listen}") == 1 and trl("12 m", "\\boxed{12 cm}") == 1
    assert trl("A. 12 cm", "\\boxed{A}") == 0
    reasoned = "<think>3 + 5 = 8</think> <answer>The correct answer is C</answer>"
    assert trl("C", reasoned) == 0 and trl("8", reasoned) == 1
    assert grade("C", reasoned) == 1 and grade("8", reasoned) == 0


@pytest.fixture
def own_grader(monkeypatch):
    """Puts a grader of its own behind the reward."""
    graders = []

    def replace(**limits):
        graders.append(Grader(**limits))
        monkeypatch.setattr(rewards, "GRADER", graders[-1])
        return graders[-1]

    yield replace
    for grader in graders:
        grader.close()


@pytest.fixture
def quick(own_grader):
    return own_grader(seconds=1)


@pytest.fixture
def patient(own_grader):
    return own_grader(seconds=60)  # for a busy machine


OVERRUNS = {
    "power": "9^{9^{9^{9}}}", "factorial": "1000000000!", "polynomial": "(x+y+z+1)^{300}-1", "parentheses": "(" * 900,
}  # fmt: skip
HARMLESS = {
    "10,000 braces": "{" * 10_000 + "1" + "}" * 10_000, "10,000 commands": "\\text{" * 10_000 + "43" + "}" * 10_000,
    "1 MB": "7" * MEGABYTE, "1,000 digits": "7" * 1000, "nul": "4\x002", "surrogate": "\ud8004", "newlines": "4\n\r\n2", "spaces": " " * 900 + "5", "protocol": 'true\n["42", "42"]\n',
}  # fmt: skip


@pytest.mark.parametrize("kind", OVERRUNS)
def test_an_answer_that_overruns_is_wrong_and_the_next_one_is_right(quick, kind, caplog):
    grade("0.5", "1/2")
    assert grade(OVERRUNS[kind], "42") == 0.0 and quick.overruns == 1
    assert (
        "1 answers overran the grader's limits (1 s, 1024 MiB) and count as wrong; 1 since the start." in caplog.text
    )
    assert grade("\\frac{6}{4}", "1.5") == 1.0
    assert grade(OVERRUNS[kind], "42") == 0.0 and quick.overruns == 1  # compared once


@pytest.mark.parametrize("kind", HARMLESS)
def test_odd_answers_are_wrong_at_once_and_the_next_one_is_right(patient, kind):
    grade("0.5", "1/2")
    assert grade(HARMLESS[kind], "42") == 0.0 and patient.overruns == 0
    assert grade("\\frac{6}{4}", "1.5") == 1.0
    assert grade("42", HARMLESS[kind]) == 0.0
    if kind != "10,000 braces" and "protocol" not in kind:
        assert grade(HARMLESS[kind], HARMLESS[kind]) == 1.0


def child_of(worker):
    [child] = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("mebibytes", [1, 300])
def test_memory_has_a_limit(own_grader, mebibytes):
    """One mebibyte is less than the process has when the limit is set: whatever it allocates then fails."""
    grader = own_grader(seconds=20, mebibytes=mebibytes)
    assert grade("\\frac{6}{4}+x^2+x^3", "1.5+x^2+x^3") == float(mebibytes == 300)
    if mebibytes == 300:
        limits = Path(f"/proc/{child_of(grader._process.pid)}/limits").read_text()
        assert re.search(rf"Max address space\s+{300 << 20}\s+{300 << 20}\s", limits)


def test_the_worker_is_light(patient):
    """No torch, no trl_cppo, no CUDA library in its address space."""
    grade("0.5", "1/2")
    maps = Path(f"/proc/{patient._process.pid}/maps").read_text()
    assert "torch" not in maps and "cuda" not in maps and "python" in maps
    command = Path(f"/proc/{patient._process.pid}/cmdline").read_bytes().split(b"\0")
    assert command[2].endswith(b"grading_worker.py")


def test_threads_and_forked_processes_have_the_right_replies(patient):
    pairs = [(f"{2 * i + i % 2}/2", f"{i + 0.0}", i % 2 == 0) for i in range(1, 60)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda pair: grade(pair[0], pair[1]), pairs))
    assert replies == [float(right) for _, _, right in pairs]
    worker = patient._process.pid
    child = os.fork()
    if child == 0:
        own = grade("\\frac{8}{4}", "2") == 1.0 and patient._process.pid != worker
        patient.close()
        os._exit(0 if own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert grade("\\frac{10}{4}", "2.5") == 1.0 and patient._process.pid == worker


def test_a_process_forked_while_another_thread_grades_does_not_wait_for_it(quick):
    grade("0.5", "1/2")
    thread = threading.Thread(target=grade, args=(OVERRUNS["power"], "42"))
    thread.start()
    time.sleep(0.2)
    child = os.fork()
    if child == 0:
        right = grade("\\frac{8}{4}", "2") == 1.0
        quick.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


def test_a_worker_that_was_killed_is_replaced_without_counting(patient):
    grade("0.5", "1/2")
    patient._process.kill()
    patient._process.wait()
    assert grade("\\frac{6}{4}", "1.5") == 1.0 and patient.overruns == 0


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_a_killed_parent(busy):
    """The parent is a script without a __main__ guard, which the worker must not run again."""
    code = (
        f"import runpy, time\ngrader = runpy.run_path({grading_client.__file__!r})['GRADER']\n"
        "print(grader.equal('1/2', '0.5'), grader._process.pid, flush=True)\n"
    ) + ("grader.equal('9^{9^{9^{9}}}', '1')" if busy else "time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    equal, worker = parent.stdout.readline().split()
    assert equal == "True"
    worker = int(worker)
    time.sleep(0.3)
    assert is_alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 300
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_without_math_verify_the_error_says_what_to_install(monkeypatch, quick):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for names in (None, ["boxed_accuracy_reward"], ["accuracy_reward"]):
        with pytest.raises(ImportError, match=r'needs math-verify: pip install "trl-cppo\[math\]"'):
            load_rewards(names)
    assert load_rewards(["think_boxed_format_reward"])[0] == [think_boxed_format_reward]
    with pytest.raises(ImportError, match=r'needs math-verify: pip install "trl-cppo\[math\]"'):
        grade("0.5", "1/2")
    assert grade("0.5", "0.5") == 1.0  # the text settles it


def test_a_worker_that_cannot_start_is_an_error(monkeypatch, tmp_path, quick):
    (tmp_path / "worker.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(grading_client, "_WORKER", tmp_path / "worker.py")
    with pytest.raises(RuntimeError, match="The grader did not start"):
        grade("0.5", "1/2")


def test_the_default_mixture_is_the_authors():
    assert load_rewards(None) == ([boxed_accuracy_reward, think_boxed_format_reward], [0.9, 0.1])
    assert load_rewards(["accuracy_reward"]) == ([accuracy_reward], None)


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

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The process that compares mathematics: its limits, the bound of a batch, threads, forks and kills."""

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

from trl_cppo.commands.loading import load_rewards
from trl_cppo.rewards import boxed_accuracy_reward, think_boxed_format_reward
from trl_cppo.rewards import client as grading_client
from trl_cppo.rewards import functions as rewards
from trl_cppo.rewards.client import Grader

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000


def grade(answer, gold):
    [reward] = boxed_accuracy_reward([[{"role": "assistant", "content": f"So \\boxed{{{answer}}}."}]], [gold])
    return reward


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


def child_of(worker):
    [child] = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return int(child)


def powers(count):
    return [f"9^{{9^{{9^{{{i + 9}}}}}}}" for i in range(count)]


def boxed(answers):
    return [f"\\boxed{{{answer}}}" for answer in answers]


def test_a_batch_of_overruns_has_a_bound_and_costs_no_other_answer_its_reward(own_grader, caplog):
    """The clock is of the processor and generous; what counts is how many had a second try."""
    grader = own_grader(seconds=1, quick_seconds=0.5, batch_seconds=0.5)
    answers = [*powers(3), "\\frac{6}{4}", *powers(4)[3:], "1.50"]
    rewards = boxed_accuracy_reward(boxed(answers), ["1.5"] * 6)
    assert rewards == [0.0] * 3 + [1.0, 0.0, 1.0]
    assert grader.overruns == 1  # the second try of the second one would have begun after a second
    assert (
        "1 answers overran the grader's limits (1 s, 1024 MiB) and count as wrong; 1 since the start." in caplog.text
    )
    assert "3 answers overran a first try of 0.5 s, had no second one in the 0.5 s of their batch" in caplog.text


def test_a_right_answer_that_needs_its_second_try_has_it(own_grader, caplog):
    """A first try that nothing can pass, as on a processor that is too slow."""
    grader = own_grader(seconds=60, quick_seconds=1e-5)
    assert boxed_accuracy_reward(boxed(["\\frac{6}{4}", "\\frac{7}{4}", "1.5"]), ["1.5"] * 3) == [1, 0, 1]
    assert grader.overruns == 0 and not caplog.text


def test_rewards_are_the_same_whatever_time_the_batch_had(own_grader):
    """A run that is resumed on a slower machine grades as the unbroken one: what had no second try is wrong in both."""
    answers = boxed([*powers(2), "\\frac{6}{4}"])
    rewards = []
    for batch_seconds in (0, 3600):
        own_grader(seconds=0.6, quick_seconds=0.5, batch_seconds=batch_seconds)
        rewards.append(boxed_accuracy_reward(answers, ["1.5"] * 3))
    assert rewards == [[0, 0, 1]] * 2


def test_an_overrun_costs_no_new_start(quick):
    grade("0.5", "1/2")
    worker, child = quick._process.pid, child_of(quick._process.pid)
    assert grade(OVERRUNS["power"], "42") == 0.0 and grade("\\frac{6}{4}", "1.5") == 1.0
    assert quick._process.pid == worker and child_of(worker) != child


@pytest.mark.parametrize("kind", HARMLESS)
def test_odd_answers_are_wrong_at_once_and_the_next_one_is_right(patient, kind):
    grade("0.5", "1/2")
    assert grade(HARMLESS[kind], "42") == 0.0 and patient.overruns == 0
    assert grade("\\frac{6}{4}", "1.5") == 1.0
    assert grade("42", HARMLESS[kind]) == 0.0
    if kind != "10,000 braces" and "protocol" not in kind:
        assert grade(HARMLESS[kind], HARMLESS[kind]) == 1.0


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
    assert command[2].endswith(b"worker.py")


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

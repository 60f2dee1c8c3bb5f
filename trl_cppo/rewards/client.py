# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Comparing mathematics with a hard limit of time and memory, from any thread and any forked process."""

import atexit
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 60  # importing sympy from a cold network disk
_CLOCK = 4  # limits of processor time, for what sleeps or swaps: a busy machine must not make an answer wrong
_LATE_SECONDS = 5  # for the reply on a busy machine


class Overrun(Exception):
    """A comparison that did not end within its limits."""


class Grader:
    """
    math-verify in a child process, which is started at the first comparison.

    The child is not forked from, and does not import, the user's program: a training script has no `__main__` guard
    and holds CUDA. It ends with this process, and within seconds even where this process was killed.

    Args:
        seconds (`float`, *optional*, defaults to `3`): processor time of one comparison; four times as much by the clock.
        mebibytes (`int`, *optional*, defaults to `1024`): limit of the child's address space.
        quick_seconds (`float`, *optional*, defaults to `0.25`): processor time of a first try.
        batch_seconds (`float`, *optional*, defaults to `30`): by the clock, in which second tries of a batch begin.
    """

    def __init__(
        self, seconds: float = 3.0, mebibytes: int = 1024, quick_seconds: float = 0.25, batch_seconds: float = 30.0
    ):
        self.seconds = seconds
        self.mebibytes = mebibytes
        self.quick_seconds = quick_seconds
        self.batch_seconds = batch_seconds
        self.overruns = 0
        self._forget_worker()
        # Rollouts of one prompt repeat each other, and an answer that overran must not cost its time again.
        self._compare = functools.lru_cache(maxsize=4096)(self._request)
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._after_fork)

    def equal(self, gold: str, answer: str, tolerance: float = 0.0) -> bool:
        """
        Whether math-verify takes an answer for the gold one, or both are numbers that differ by at most `tolerance`; within
        `seconds`.

        Raises:
            [`Overrun`]: if it takes longer, or more memory.
            `ImportError`: if math-verify is not installed.
            `RuntimeError`: if the child cannot be started.
        """
        return self._known(self._compare(gold, answer, tolerance, False))

    def quickly_equal(self, gold: str, answer: str, tolerance: float = 0.0) -> bool:
        """The same within `quick_seconds`."""
        return self._known(self._compare(gold, answer, tolerance, True))

    @staticmethod
    def _known(equal: bool | None) -> bool:
        if equal is None:
            raise Overrun
        return equal

    def _request(self, gold: str, answer: str, tolerance: float, quickly: bool) -> bool | None:
        seconds = min(self.quick_seconds, self.seconds) if quickly else self.seconds
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            try:
                request = [gold, answer, tolerance, seconds, _CLOCK * seconds]
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                reply = self._read(_CLOCK * seconds + _LATE_SECONDS)  # the child's own alarms are first
            except BaseException as error:  # a reply that comes after an interrupt would be taken for the next one
                self.close()
                if not isinstance(error, BrokenPipeError):
                    raise
                reply = ""
            if not reply:
                self.close()
            equal = json.loads(reply or "null")
            self.overruns += equal is None and not quickly
            return equal

    def close(self) -> None:
        """End the child process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it has forked
            process.communicate()

    def _start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError('boxed_accuracy_reward needs math-verify: pip install "trl-cppo[math]".')
        self._process = subprocess.Popen(
            # -P: this folder's modules must not hide others of the same name
            [sys.executable, "-P", str(_WORKER), str(self.mebibytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the training script alone
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        if not self._read(_START_SECONDS):
            self.close()
            raise RuntimeError(f"The grader did not start within {_START_SECONDS} s: run `python -P {_WORKER} 1024`.")

    def _read(self, seconds: float) -> str:
        """One line of JSON, or `""` if the child ended or took longer."""
        deadline, line = time.monotonic() + seconds, b""
        output = select.poll()  # select.select fails in a process with more than 1,024 open files
        output.register(self._process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left = max(0, deadline - time.monotonic())
            chunk = os.read(self._process.stdout.fileno(), 64) if output.poll(left * 1000) else b""
            if not chunk:
                return ""
            line += chunk
        return line.decode()

    def _forget_worker(self) -> None:
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def _after_fork(self) -> None:
        # The child process and its pipes belong to the parent: a forked process closes its copies and starts its own.
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.returncode = 0  # not ours to wait for
        self._forget_worker()


GRADER = Grader()

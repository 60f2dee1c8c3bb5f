# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Comparing mathematics with a hard limit of time and memory, from any thread and any forked process."""

import atexit
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

_WORKER = Path(__file__).with_name("grading_worker.py")
_START_SECONDS = 60  # importing sympy from a cold network disk


class Grader:
    """
    math-verify in a child process, which is started at the first comparison and anew after each overrun.

    The child is not forked from, and does not import, the user's program: a training script has no `__main__` guard
    and holds CUDA. It ends with this process, and within `seconds` even where this process was killed.

    Args:
        seconds (`float`, *optional*, defaults to `3`): wall-clock limit of one comparison.
        mebibytes (`int`, *optional*, defaults to `1024`): limit of the child's address space.
    """

    def __init__(self, seconds: float = 3.0, mebibytes: int = 1024):
        self.seconds = seconds
        self.mebibytes = mebibytes
        self.overruns = 0
        self._forget_worker()
        # Rollouts of one prompt repeat each other, and an answer that overran must not cost its time again.
        self.equal = functools.lru_cache(maxsize=4096)(self._equal)
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._after_fork)

    def _equal(self, gold: str, answer: str) -> bool:
        """
        Whether math-verify takes an answer for the gold one; `False` after an overrun, which is counted.

        Raises:
            `ImportError`: if math-verify is not installed.
            `RuntimeError`: if the child cannot be started.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            try:
                self._process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
                reply = self._read(self.seconds + 1)  # the child's own alarm is first
            except BaseException as error:  # a reply that comes after an interrupt would be taken for the next one
                self.close()
                if not isinstance(error, BrokenPipeError):
                    raise
                reply = None
            if reply is None:
                self.overruns += 1
                self.close()
            return bool(reply)

    def close(self) -> None:
        """End the child process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError('boxed_accuracy_reward needs math-verify: pip install "trl-cppo[math]".')
        self._process = subprocess.Popen(
            # -P: this folder's modules must not hide others of the same name
            [sys.executable, "-P", str(_WORKER), str(self.seconds), str(self.mebibytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the training script alone
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        if self._read(_START_SECONDS) is None:
            self.close()
            raise RuntimeError(f"The grader did not start within {_START_SECONDS} s: run `python {_WORKER} 3 1024`.")

    def _read(self, seconds: float) -> bool | None:
        """One reply, or `None` if the child ended or took longer."""
        deadline, line = time.monotonic() + seconds, b""
        output = select.poll()  # select.select fails in a process with more than 1,024 open files
        output.register(self._process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left = max(0, deadline - time.monotonic())
            chunk = os.read(self._process.stdout.fileno(), 64) if output.poll(left * 1000) else b""
            if not chunk:
                return None
            line += chunk
        return json.loads(line)

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

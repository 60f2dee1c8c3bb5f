# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Starts worker.py for the tests, on one process or two."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker.py"
LIMIT = 1800  # seconds for one launch, which takes 10 to 120; only a guard against hanging


@dataclass
class Result:
    logs: list[list[dict]]  # process, step
    weights: dict[str, torch.Tensor]


class Launches:
    """Starts a launch when one of its runs is asked for; a run that the launch did not get to has no result."""

    def __init__(self, root: Path, launches: dict[str, tuple[int, list[dict]]], deepspeed_ops: Path):
        self.root = root
        self.launches = launches  # number of processes, and runs, by name
        self.deepspeed_ops = deepspeed_ops
        self.errors = {}

    def folder(self, launch: str) -> Path:
        folder = self.root / launch
        if launch not in self.errors:
            folder.mkdir()
            self.errors[launch] = self.start(folder, *self.launches[launch])
        return folder

    def result(self, launch: str, name: str) -> Result:
        folder = self.folder(launch)
        if not (folder / f"{name}.json").exists():
            pytest.fail(f"{name} did not end.\n{self.errors[launch]}")
        logs = json.loads((folder / f"{name}.json").read_text())
        return Result(logs, torch.load(folder / f"{name}.pt"))

    def start(self, folder: Path, processes: int, runs: list[dict]) -> str:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(WORKER), str(folder), json.dumps(runs)]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(self.deepspeed_ops)}
        with (folder / "output.txt").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                code = f"none: it hung, or took more than {LIMIT} s"
                process.terminate()  # torchrun passes it on to the workers, which it would orphan if killed
                process.wait()
        return f"Exit code {code}.\n" + (folder / "output.txt").read_text()[-6000:]

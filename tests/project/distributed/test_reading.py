# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of two processes, sharded or not, are read back to the bit, or there is an error: see reading.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import LIMIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]

PROGRAM = Path(__file__).parent / "reading.py"


@pytest.mark.parametrize(
    ("backend", "lora"),
    [("ddp", True), ("zero2", False), ("zero3", True), ("fsdp2", False)],
)
def test_sharded_checkpoints_are_read_back_as_they_were_written(tmp_path, deepspeed_ops, backend, lora):
    # Under FSDP2, torch does not read back an optimizer without any state ("Expected device to be set"), as SGD's here.
    run = {"name": "read", "backend": backend, "save": True, "lora": lora, "optim": "adamw_torch"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(PROGRAM)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(deepspeed_ops)}
    with (tmp_path / "output.txt").open("w") as output:
        done = subprocess.run(
            [*command, str(tmp_path), json.dumps(run)], stdout=output, stderr=output, env=environment, timeout=LIMIT
        )
    assert done.returncode == 0, (tmp_path / "output.txt").read_text()[-4000:]
    results = json.loads((tmp_path / "reading.json").read_text())
    assert results.pop("adapters") == lora and "differ" in results.pop("moved")
    ways = {"best", "resumed"} | ({"evaluation"} if not lora and backend != "zero3" else set())
    assert {name: results.pop(name) for name in ways} == dict.fromkeys(ways, "same")
    if backend == "ddp":  # whose weights are all there without the rest
        assert set(results.values()) == {"same"}, results
        assert "training goes on with its weights" in (tmp_path / "output.txt").read_text()
    else:
        assert results and all("Error: " in text for text in results.values()), results

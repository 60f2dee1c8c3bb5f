# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The short version of each benchmark runs, prints JSON and reaches the targets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check_ratios(rows, shares):
    assert [row["gated_share"] for row in rows] == shares
    for row in rows:
        limit = 1 + 2 * row["gated_share"]
        assert 0.97 * limit <= row["flops_ratio"] <= 1.03 * limit
        assert 0.95 * limit <= row["saved_bytes_ratio"] <= 1.05 * limit
        assert row["forwards"] == 1


def check_cost(report):
    check_ratios(report["rows"], [0.0, 0.25, 0.5, 1.0])
    for row in report["rows"]:
        assert min(row["update_seconds_ratio"], row["step_seconds_ratio"], row["grpo_update_seconds"]) > 0
        assert row["every_row_forwards"] == 3 and row["every_row_flops_ratio"] == pytest.approx(3, rel=0.01)


def check_scale(report):
    assert max(report["check"].values()) < 0.001  # against real tensors
    published = {"qwen2_5_vl_3b": 3_754_622_976, "qwen2_5_vl_7b": 8_292_166_656}
    assert {model["model"]: model["parameters"] for model in report["models"]} == published
    check_ratios(report["rows"], [0.5, 1.0])


CHECKS = {"cost": check_cost, "scale": check_scale}


def files():
    folders = (ROOT / "benchmarks" / "results", ROOT / "docs" / "results")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CHECKS)
def test_the_short_version_reaches_the_targets_and_writes_nothing(name):
    before = files()
    command = [sys.executable, f"benchmarks/{name}.py", "--smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    CHECKS[name](json.loads(result.stdout))
    assert files() == before

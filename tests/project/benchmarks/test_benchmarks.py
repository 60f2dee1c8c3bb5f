# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The short version of each benchmark runs, prints JSON and reaches the targets."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def check_ratios(rows, shares):
    assert [row["gated_share"] for row in rows] == shares
    for row in rows:
        limit = 1 + 2 * row["gated_share"]
        assert 0.97 * limit <= row["flops_ratio"] <= 1.03 * limit
        assert 0.95 * limit <= row["saved_bytes_ratio"] <= 1.05 * limit
        assert row["forwards"] == 1


def check_cost(report):
    rows = [row for row in report["rows"] if not row["share_prefix"]]
    [shared] = [row for row in report["rows"] if row["share_prefix"]]
    assert shared["forwards"] == 1 and shared["update_seconds_ratio"] > 0
    # 32 prompt tokens, 8 completions of 8, half of them on views; of the images, three in place of eight
    tokens = (31 + 8 * 9 + 2 * (31 + 4 * 9)) / (8 * (32 + 8))
    assert shared["prompt"] == 32 and 3 / 8 < shared["flops_ratio"] < tokens
    check_ratios(rows, [0.0, 0.25, 0.5, 1.0])
    for row in rows:
        assert min(row["update_seconds_ratio"], row["step_seconds_ratio"], row["grpo_update_seconds"]) > 0
        assert row["every_row_forwards"] == 3 and row["every_row_flops_ratio"] == pytest.approx(3, rel=0.01)


def check_scale(report):
    assert max(report["check"].values()) < 0.001  # against real tensors
    published = {"qwen2_5_vl_3b": 3_754_622_976, "qwen2_5_vl_7b": 8_292_166_656}
    assert {model["model"]: model["parameters"] for model in report["models"]} == published
    check_ratios([row for row in report["rows"] if not row["share_prefix"]], [0.5, 1.0])
    [shared] = [row for row in report["rows"] if row["share_prefix"]]
    assert 1 < shared["flops_ratio"] < 1.8 and shared["forwards"] == 1  # two rollouts, one with views: 2 when plain


def check_detector(report):
    [group] = report["groups"].values()
    assert 0.1 < group["share_of_true_tokens"]["all"] < 0.14  # three of 25
    mixture = next(view for view in group["views"] if view["kind"] == "mixture")
    aucs = {name: score["auc"]["mean"] for name, score in mixture["all"]["scores"].items()}
    assert 0.7 < aucs["relative_shift"] < aucs["kl"] < 1


def check_gradients(report):
    batches = report["warm_starts"]["0"]["batches"]
    assert all(batch["error_of_sum"] < 1e-4 for batch in batches)  # anchor + positive + negative = the whole
    assert all(batch["ratios"]["weights"] > 1 for batch in batches)
    assert all(entry["metric"] > 0 for entry in report["training"]["0.2"])


def check_learning(report):
    runs = report["runs"]
    assert {run["job"]["arm"] for run in runs.values()} == {"cppo", "papo"}
    for run in runs.values():
        for shares in run["conditions"].values():
            assert sum(shares[kind] for kind in ("right", "misread", "wrong_sum", "format")) == pytest.approx(1)
        assert 0.75 < run["detector"]["auc"] < 1  # two steps from the warm start
        assert run["conditions"]["given"]["misread"] == 0  # the reading is given
    assert all(value > 0 for run in runs.values() for value in run["history"]["rewards/sum_reward/mean"])


def check_budget(report):
    assert report["runs"] == {}
    [seed] = report["noise"].values()
    # One rollout has nearly all of this batch's gradient, and is alone in its prompt: what is drawn hardly matters.
    assert 0 < seed["noise"]["2"] < 1.01 * seed["noise"]["1"] < 10 * seed["squared_norm"]


def check_temptation(report):
    runs = {run["job"]["arm"]: run for run in report["runs"].values()}
    assert set(runs) == {"disagreement", "augmented"}
    for run in runs.values():
        conditions, tokens = run["conditions"], run["tokens"]
        assert list(conditions) == ["wrong", "absent", "training", "right"]
        assert all(0 < graded["right"] < 1 for graded in conditions.values())
        assert "follows" in conditions["wrong"] and "follows" not in conditions["absent"]  # nothing to follow
        assert 0 < tokens["removed_divergence_where_right"] < tokens["removed_divergence_where_wrong"]
    assert runs["augmented"]["history"]["cpl/loss"] == [None]
    assert runs["disagreement"]["history"]["cpl/loss"][0] > 0


def check_prefix_overhead(report):
    [row] = report["rows"]
    assert row["tokens_saved_a_prompt"] == 2 * (5 + 6) - (4 + 2 * 7) and row["seconds_ratio"] > 0


CHECKS = {
    "cost": check_cost,
    "cost.prefix_overhead": check_prefix_overhead,
    "cost.scale": check_scale,
    "detection": check_detector,
    "gradients": check_gradients,
    "learning": check_learning,
    "learning.budget": check_budget,
    "temptation": check_temptation,
}


def files():
    folders = (ROOT / "benchmarks" / "results", ROOT / "docs" / "results")
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def start(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


@pytest.fixture(scope="module")
def runs():
    """All of them, two at a time."""
    before = files()
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(CHECKS, pool.map(start, CHECKS), strict=True))
    assert files() == before  # the short versions keep nothing
    return results


@pytest.mark.parametrize("name", CHECKS)
def test_the_short_version_reaches_the_targets(runs, name):
    result = runs[name]
    assert result.returncode == 0, result.stderr[-2000:]
    CHECKS[name](json.loads(result.stdout.splitlines()[-1]))

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Two processes, sharded or not, with packed rows, train as one process with plain rows does on the same global batch."""

import math
import shutil

import pytest
import torch
from launching import LIMIT, Launches

from trl_cppo.scoring.shared_prefix import TOKEN_RATIO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT)]

# Largest differences allowed, relative to the value where that is above 1. Measured: losses and metrics 1e-6, gradient
# norms (0.2 to 20) 4e-6, weights 2e-7 after three steps of SGD.
LOSS = 1e-5
GRAD_NORM = 4e-5
WEIGHT = 2e-6
# DeepSpeed's CPU Adam rounds otherwise than torch's, and Adam divides by gradients near zero. Measured: 2e-5.
ADAM_WEIGHT = 1e-4

FULL, LORA = {"name": "full"}, {"name": "lora", "lora": True}
FROZEN_TOWER = {"name": "frozen_tower", "freeze": ["vision_tower"]}
TOWER_RATE = {"name": "tower_rate", "tower_rate": 0.001, "freeze": ["projector"]}
# In the last step no process has an image, so that nothing has a gradient.
FROZEN_TEXT = {"name": "text_only_frozen", "freeze": ["language_model"], "scenario": "text_only_rank"}
# Of a family whose tower gets no gradients from transformers under re-entrant checkpointing.
TOWER_LORA = {"name": "tower_lora", "lora": True, "lora_on": ["vision_tower"], "family": "qwen3_vl"}
OLD_POLICY = {"name": "old_policy", "scenario": "text_only_rank", "accumulation": 2, "iterations": 2}
TEXT_ONLY_LORA = {"name": "text_only_lora", "scenario": "text_only_rank", "lora": True}
SCENARIOS = ["no_gated_rank", "text_only_rank", "masked_rank"]
REFERENCES = [
    FULL,
    LORA,
    {"name": "accumulation", "accumulation": 2},
    {"name": "adamw", "optim": "adamw_torch"},
    {"name": "kl", "divergence": "kl"},
    {"name": "bounded", "bound": 0.05},
    {"name": "budget", "budget": 1},
    {"name": "kl_lora", "divergence": "kl", "lora": True},
    *({"name": scenario, "scenario": scenario} for scenario in SCENARIOS),
    OLD_POLICY,
    TEXT_ONLY_LORA,
    FROZEN_TOWER,
    TOWER_RATE,
    FROZEN_TEXT,
    TOWER_LORA,
]


def runs_of(backend: str, full_matrix: bool) -> list[dict]:
    """Runs on one backend, each named after what it is compared with and what is particular to it."""
    runs = [
        FULL,
        LORA,
        FROZEN_TOWER,
        TOWER_RATE,
        {**TOWER_LORA, "name": "tower_lora-reentrant", "checkpointing": "reentrant"},
    ]
    if full_matrix:
        # eight micro-batches of two rows: some are text-only on one process alone
        runs += [*REFERENCES[2:3], {"name": "accumulation-by_two", "accumulation": 4}]
        for kind in ("reentrant", "non_reentrant"):
            runs += [{**run, "name": f"{run['name']}-{kind}", "checkpointing": kind} for run in (FULL, LORA)]
        runs += [{"name": scenario, "scenario": scenario} for scenario in SCENARIOS] + [FROZEN_TEXT]
        runs += [
            {"name": "kl", "divergence": "kl"},
            {"name": "bounded", "bound": 0.05},
            {"name": "budget", "budget": 1},
        ]
        # Micro-batches of two rows, half a prompt; one process scores the old policy in packed rows, the other in plain ones.
        runs += [{**OLD_POLICY, "name": "old_policy-by_two", "accumulation": 4}]
        runs += [{"name": "kl_lora-reentrant", "divergence": "kl", "lora": True, "checkpointing": "reentrant"}]
        runs += [{**TEXT_ONLY_LORA, "name": "text_only_lora-non_reentrant", "checkpointing": "non_reentrant"}]
    else:
        runs += [{**LORA, "name": "lora-reentrant", "checkpointing": "reentrant"}]
        runs += [{**FULL, "name": "full-non_reentrant", "checkpointing": "non_reentrant"}]
        runs += [{"name": "text_only_rank", "scenario": "text_only_rank"}]
    return [{**run, "name": f"{run['name']}@{backend}", "backend": backend} for run in runs]


ZERO3_INIT = [
    {**run, "name": f"{run['name']}-init@zero3", "backend": "zero3", "zero3_init": True} for run in (FULL, LORA)
]
OFFLOAD = [
    {"name": f"adamw@{backend}", "backend": backend, "offload": True, "optim": "adamw_torch"}
    for backend in ("zero2", "zero3")
]
LAUNCHES = {
    "one": (1, [{**run, "share_prefix": False} for run in REFERENCES]),
    "whole weights": (2, runs_of("ddp", True) + runs_of("zero1", False) + runs_of("zero2", False)),
    "zero3": (2, runs_of("zero3", True) + ZERO3_INIT),
    "fsdp2": (2, runs_of("fsdp2", True)),
    "offload": (2, OFFLOAD),
}
CASES = [(launch, run["name"]) for launch, (processes, runs) in LAUNCHES.items() if processes == 2 for run in runs]


@pytest.fixture(scope="module")
def launches(tmp_path_factory, deepspeed_ops):
    return Launches(tmp_path_factory.mktemp("launches"), LAUNCHES, deepspeed_ops)


def assert_close(ours: float | None, expected: float | None, tolerance: float, what: str) -> None:
    if expected is None or math.isnan(expected):
        assert ours is None or math.isnan(ours), what
    else:
        assert ours == pytest.approx(expected, rel=tolerance, abs=tolerance), what


def assert_same_metrics(ours: list[dict], expected: list[dict], compared: set[str], may_be_plain: bool) -> None:
    assert len(ours) == len(expected)
    for step, (log, expected_log) in enumerate(zip(ours, expected, strict=True)):
        packing = {TOKEN_RATIO} if "loss" in log else set()
        assert log.keys() - packing == expected_log.keys() and packing <= log.keys(), f"step {step}"
        assert not packing or log[TOKEN_RATIO] < 1 or (may_be_plain and log[TOKEN_RATIO] == 1)
        for name in compared & expected_log.keys():
            tolerance = GRAD_NORM if name in ("grad_norm", "cpl/gradient_ratio") else LOSS
            assert_close(log[name], expected_log[name], tolerance, f"{name} of step {step}")


@pytest.mark.parametrize(("launch", "name"), CASES, ids=[name for _, name in CASES])
def test_two_processes_train_as_one(launches, launch, name):
    if launch == "offload" and shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles its CPU Adam with g++, which this machine lacks.")
    reference_name = name.split("@")[0].split("-")[0]
    reference = launches.result("one", reference_name)
    result = launches.result(launch, name)

    assert len(result.logs) == 2
    compared = {"loss", "grad_norm", "entropy", "reward", "reward_std"}
    if reference_name not in (
        "accumulation",
        "old_policy",
    ):  # else the metrics are means over micro-batches, which are cut otherwise
        compared |= {key for key in reference.logs[0][0] if key.startswith("cpl/")}
    else:
        compared -= {"entropy"}
    for logs in result.logs:
        # A process without an image scores plain rows, see SharedPrefix.
        run_is_text_only = reference_name.startswith("text_only") or reference_name == "old_policy"
        assert_same_metrics(logs, reference.logs[0], compared, may_be_plain=run_is_text_only)
    tolerance = ADAM_WEIGHT if reference_name == "adamw" else WEIGHT
    assert result.weights.keys() == reference.weights.keys()
    for key, value in reference.weights.items():
        torch.testing.assert_close(
            result.weights[key], value, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_killed_under_zero3_resumes_to_the_weights_of_the_unbroken_run(launches, tmp_path):
    run = {"name": "full", "backend": "zero3", "save": True}
    launches.start(tmp_path, 2, [{**run, "kill_at": 2}])
    assert (tmp_path / "trainer" / "checkpoint-2").is_dir() and not (tmp_path / "full.pt").exists()
    error = launches.start(tmp_path, 2, [{**run, "resume": True}])
    assert (tmp_path / "full.pt").exists(), error
    unbroken = launches.result("zero3", "full@zero3")
    weights = torch.load(tmp_path / "full.pt")
    assert all(torch.equal(weights[key], value) for key, value in unbroken.weights.items())


def test_the_runs_move_the_weights_and_have_a_perception_loss(launches):
    """What all others are compared with must be worth comparing with."""
    full = launches.result("one", "full")
    steps = [log for log in full.logs[0] if "loss" in log]
    assert len(steps) == 3
    assert all(log["cpl/loss"] > 0.1 and log["cpl/perception_ratio"] > 0.05 for log in steps)
    bounded = launches.result("one", "bounded")
    assert min(log["cpl/gradient_ratio"] for log in bounded.logs[0] if "loss" in log) > 0.05  # so the bound is at work
    scenario = launches.result("one", "text_only_rank")
    moved = max((full.weights[key] - value).abs().max().item() for key, value in scenario.weights.items())
    assert moved > 1000 * WEIGHT

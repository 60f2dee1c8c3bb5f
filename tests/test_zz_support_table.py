# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Runs last: what the README's support table claims was tested, in this session, and passed."""

import re
from pathlib import Path

import pytest
from outcomes import OUTCOMES
from test_families import README_NAMES, UPSTREAM

README = (Path(__file__).parents[1] / "README.md").read_text()


def row(beginning):
    [line] = [line for line in README.splitlines() if line.startswith(f"| {beginning}")]
    return line


def outcomes_of(file):
    found = {name: outcome for name, outcome in OUTCOMES.items() if name.startswith(f"{file}::")}
    if not found:
        pytest.skip(f"{file} was not run; this test is for whole runs")
    return found


def test_every_family_passed():
    found = outcomes_of("test_families.py")
    for family in sum(README_NAMES.values(), []):
        for kind in ("one", "several", "mixed"):
            name = f"test_families.py::test_view_rows_get_the_pixels_of_their_own_row[{family}-{kind}]"
            if (family, kind) in UPSTREAM:
                name = f"test_families.py::test_grpo_itself_fails_on_what_is_left_out[{family}-{kind}]"
            assert found.get(name) == "passed", name


def test_every_way_of_sharding_passed():
    found = outcomes_of("test_sharding.py")
    claimed = row("Sharding and several processes")
    names = {"DDP": "ddp", "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP2": "fsdp2"}
    assert all(name in claimed for name in names)
    cases = [f"{kind}@{backend}" for backend in names.values() for kind in ("full", "lora", "text_only_rank")]
    cases += [f"{kind}-{way}@{b}" for b in ("ddp", "zero3", "fsdp2") for kind in ("full", "lora") for way in
              ("reentrant", "non_reentrant")]  # fmt: skip
    cases += [f"{case}@{b}" for b in ("zero1", "zero2") for case in ("lora-reentrant", "full-non_reentrant")]
    for case in [*cases, "full-init@zero3", "lora-init@zero3"]:
        name = f"test_sharding.py::test_two_processes_train_as_one[{case}]"
        assert found.get(name) == "passed", name


@pytest.mark.parametrize("beginning", ["GRPO's settings", "Faults and bad input", "Tools, environments", "Sharding"])
def test_every_file_that_a_row_names_passed(beginning):
    files = re.findall(r"`tests/(test_\w+\.py)`", row(beginning)) or {"Faults and bad input": ["test_faults.py"]}.get(
        beginning, ["test_sharding.py"]
    )
    for file in files:
        assert set(outcomes_of(file).values()) <= {"passed", "skipped"}
        assert "passed" in outcomes_of(file).values()

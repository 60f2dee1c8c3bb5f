# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What README's support table claims was tested has passed, in the runs whose results are given: of all tests, and of those with
vLLM in its environment. `.ci/run` does it.

    pytest --slow --junitxml results.xml && python tests/project/support_table.py results.xml vllm.xml
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

from family_cases import README_NAMES, UPSTREAM

README = (Path(__file__).parents[2] / "README.md").read_text()


VLLM_FILES = ("test_prompts", "test_runs", "test_server")


def outcomes_of(*results: str) -> dict[str, str]:
    """What became of each test, by `file::test[case]`; of one that ran twice, the worse."""
    found = {}
    for case in (case for file in results for case in ElementTree.parse(file).getroot().iter("testcase")):
        file = case.get("classname").split(".")[-1]
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{file}::{case.get('name')}"
        if found.get(name, "skipped") in ("skipped", "passed"):
            found[name] = kinds[0] if kinds else "passed"
    return found


def row(beginning: str) -> str:
    [line] = [line for line in README.splitlines() if line.startswith(f"| {beginning}")]
    return line


def claimed_tests() -> list[str]:
    """Those that must have passed, one by one."""
    names = []
    for family in sum(README_NAMES.values(), []):
        for kind in ("one", "several", "mixed"):
            test = "test_view_rows_get_the_pixels_of_their_own_row"
            if (family, kind) in UPSTREAM:
                test = "test_grpo_itself_fails_on_what_is_left_out"
            names.append(f"test_families::{test}[{family}-{kind}]")
    backends = {"DDP": "ddp", "ZeRO-1": "zero1", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP2": "fsdp2"}
    assert all(name in row("Sharding and several processes") for name in backends)
    cases = [f"{kind}@{backend}" for backend in backends.values() for kind in ("full", "lora", "text_only_rank")]
    cases += [f"{kind}-{way}@{b}" for b in ("ddp", "zero3", "fsdp2") for kind in ("full", "lora") for way in
              ("reentrant", "non_reentrant")]  # fmt: skip
    cases += [f"{case}@{b}" for b in ("zero1", "zero2") for case in ("lora-reentrant", "full-non_reentrant")]
    cases += ["full-init@zero3", "lora-init@zero3"]
    return names + [f"test_sharding::test_two_processes_train_as_one[{case}]" for case in cases]


def claimed_files() -> set[str]:
    """Those of which nothing may have failed."""
    rows = ["GRPO's settings", "Faults and bad input", "Tools, environments", "Sharding", "Combinations"]
    named = re.findall(r"`tests/(?:\w+/)*(test_\w+)\.py`", "".join(row(beginning) for beginning in rows))
    return {
        *named,
        *VLLM_FILES,
        "test_faults",
        "test_resume",
        "test_weights",
        "test_decorations",
        "test_reading",
        "test_sharding",
        "test_combinations_sharded",
        "test_commands",
    }


def main(*results: str) -> None:
    outcomes = outcomes_of(*results)
    wrong = [f"{name}: {outcomes.get(name, 'not run')}" for name in claimed_tests() if outcomes.get(name) != "passed"]
    for file in sorted(claimed_files()):
        found = {outcome for name, outcome in outcomes.items() if name.startswith(f"{file}::")}
        if "passed" not in found or found - {"passed", "skipped"}:
            wrong.append(f"{file}: {sorted(found) or 'not run'}")
    if wrong:
        sys.exit("README's support table claims what did not pass:\n" + "\n".join(wrong))
    print(f"README's support table: {len(claimed_tests())} tests and {len(claimed_files())} files passed.")


if __name__ == "__main__":
    main(*sys.argv[1:])

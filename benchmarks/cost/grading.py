# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What grading costs: milliseconds an answer, the start and the memory of the process that compares. Prints JSON.

    python -m benchmarks.cost.grading
"""

import argparse
import json
import random
from pathlib import Path

from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.rewards.client import GRADER

from ..lib.turns import seconds


def timed(answers: list[str], solutions: list[str]) -> float:
    completions = [f"<think>a</think> \\boxed{{{answer}}}" for answer in answers]
    return seconds(lambda: boxed_accuracy_reward(completions, solutions))


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.cost.grading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    draw = random.Random(0)
    pairs = [(draw.randint(2, 10**6), draw.randint(2, 99)) for _ in range(500)]
    start = timed(["0.5"], [r"\frac{1}{2}"])
    status = Path(f"/proc/{GRADER._process.pid}/status").read_text()
    report = {
        "start_of_the_process_s": round(start, 2),
        "memory_of_the_process_mib": round(int(status.split("VmHWM:")[1].split()[0]) / 1024),
        "ms_an_answer": {
            "same text": timed([f"{a}" for a, _ in pairs], [f"{a}" for a, _ in pairs]) / 500 * 1000,
            "wrong letter": timed(["B"] * 500, ["A"] * 500) / 500 * 1000,
            "fraction for a decimal": timed([f"{a}/{4}" for a, _ in pairs], [f"{a / 4}" for a, _ in pairs])
            / 500
            * 1000,
            "root": timed([f"{b}\\sqrt{{{a}}}" for a, b in pairs], [f"\\sqrt{{{a * b * b}}}" for a, b in pairs]) / 0.5,
            "wrong number": timed([f"{a}" for a, _ in pairs], [f"{a + 1}" for a, _ in pairs]) / 500 * 1000,
        },
    }
    report["ms_an_answer"] = {name: round(value, 3) for name, value in report["ms_an_answer"].items()}
    report["answer_that_overruns_s"] = round(timed(["9^{9^{9^{9}}}"], ["1"]), 2)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Where packing short prompts takes longer than it saves: what `MIN_TOKENS_SAVED` of trl_cppo/scoring/shared_prefix.py was chosen from.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.prefix_overhead          # a table, and benchmarks/results/cost/prefix_overhead.json
    OMP_NUM_THREADS=1 python -m benchmarks.cost.prefix_overhead --tables # the table from that file

CPPO's update (loss and backward) of a Qwen2.5-VL of one million parameters, packed and in plain rows in turns, half of the prompts
gated. Each packed prompt costs two more calls of attention a layer, so that small prompts of a small model are the worst case.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from trl_cppo.commands.plan.counts.meta_mode import head_of_a_gpu
from trl_cppo.run.card.markdown import table

from ..lib.command import BenchmarkParser, run_and_print, write_json
from ..lib.counting import versions
from ..lib.shapes import Row, ShapeBench, build_model
from ..lib.turns import take_turns
from .scale import small_config

PROMPTS = {5: (1, 16), 12: (8, 16), 24: (20, 16), 48: (44, 16), 72: (56, 64)}  # tokens: those of text, patches
# Prompts of a micro-batch, rollouts of each, completion tokens.
SIZES = [(32, 2, 6), (32, 2, 32), (16, 4, 6), (16, 4, 32)]


def measure(prompt: int, num_prompts: int, group: int, completion: int, repeats: int) -> dict[str, Any]:
    """Seconds of the packed update over those of the plain one, and what packing saves."""
    bench, config = ShapeBench("cpu", torch.float32), small_config()
    model = build_model(config, "cpu", torch.float32)
    rows, gated = [Row(*PROMPTS[prompt], completion)] * (num_prompts * group), num_prompts // 2 * group
    losses = {arm: bench.loss_of(model, rows, gated, arm, group) for arm in ("cppo", "cppo_shared")}
    with head_of_a_gpu():
        _, *rounds = take_turns(  # the first warms up
            lambda arm: losses[arm]().backward(), list(losses), repeats + 1, time.process_time
        )
    ratio = statistics.median(times["cppo_shared"] / times["cppo"] for times in rounds)
    packed = prompt - 1 + group * (1 + completion)  # tokens of a prompt, as of each of its views
    saved = group * (prompt + completion) - packed
    head = {"prompt": prompt, "prompts": num_prompts, "group": group, "completion": completion}
    return head | {"tokens_saved_a_prompt": saved, "seconds_ratio": round(ratio, 3)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    prompts, sizes = ([5], SIZES[:1]) if options.smoke else (PROMPTS, SIZES)
    rows = [measure(prompt, *size, options.repeats) for prompt in prompts for size in sizes]
    rows.sort(key=lambda row: row["tokens_saved_a_prompt"])
    report = {"settings": {"repeats": options.repeats}, "versions": versions(), "rows": rows}
    if options.output:
        write_json(options.output, report)
    return report


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    head = ["tokens saved a prompt", "prompt", "completion", "rollouts", "packed / plain, CPU time"]
    names = ("tokens_saved_a_prompt", "prompt", "completion", "group", "seconds_ratio")
    return table(([str(row[name]) for name in names] for row in report["rows"]), head)


def main() -> None:
    parser = BenchmarkParser("cost.prefix_overhead", __doc__, smoke="one size, one repeat")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each arm")
    options = parser.parse_args()
    if options.smoke:
        options.repeats = 1
    if not parser.show(options, tables, lambda report: None):
        run_and_print(options, run, tables)


if __name__ == "__main__":
    main()

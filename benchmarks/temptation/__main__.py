# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Digits with a caption in the prompt that names them, often rightly: does CPPO keep a model looking, where GRPO learns to trust the text?

    python -m benchmarks.temptation             # all runs into benchmarks/results/temptation/temptation.json; interrupt it at will
    python -m benchmarks.temptation --choose    # temperatures and bounds on the validation split, into choice.json beside it
    python -m benchmarks.temptation --tables    # Markdown tables from the files
    python -m benchmarks.temptation --picture   # docs/results/temptation.svg from the file

A caption's digits are right with probability 0.5 in the warm start and 0.9 in training. Models are graded on the same canvases
behind captions that are wrong, absent, as in training, and right. Runs that are in the file are not repeated, and they are
ordered by seed. Two one-thread runs go side by side, each of one to two minutes.
"""

import json
from typing import Any

from ..lib.command import PICTURES, RESULTS, BenchmarkParser, read_json
from ..lib.jobs import Job, add_options, seed_by_seed
from .arms import ARMS
from .report import choice_table, picture, tables
from .runs import run_jobs

CHOICE_SEEDS = (10, 11)  # not those that are shown
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {}),
    ("cppo_bounded", {}),
    ("soft", {}),
    ("another_soft", {"cpl_temperature": 0.1}),
    ("another_soft", {"cpl_temperature": 0.3}),
    ("another_soft", {}),
    ("another_soft", {"cpl_temperature": 3.0}),
    ("another_soft", {"cpl_max_gradient_ratio": 0.2}),
    ("another_soft", {"cpl_max_gradient_ratio": 0.6}),
    ("another_soft", {"cpl_max_gradient_ratio": 1.0}),
]


def choice_jobs(steps: int) -> list[Job]:
    """From the first warm start, with seeds of their own."""
    return [Job(arm, 0, seed, steps, changes) for seed in CHOICE_SEEDS for arm, changes in CHOICES]


def main() -> None:
    parser = BenchmarkParser("temptation", __doc__, smoke="two arms of two steps, few canvases")
    add_options(parser, list(ARMS))
    parser.add_argument(
        "--choose", action="store_true", help="run the settings to choose from, on the validation split"
    )
    options = parser.parse_args()
    choice = RESULTS / "temptation" / "choice.json"

    def all_tables(report: dict[str, Any]) -> str:
        chosen = read_json(choice)
        return "\n\n".join([*tables(report, options.steps), *([choice_table(chosen)] if chosen else [])])

    if parser.show(options, all_tables, lambda report: picture(report, options.steps, PICTURES / "temptation.svg")):
        return
    grading = {"split": "test", "canvases": 1000, "sampled": 250}
    if options.smoke:
        jobs = [Job(arm, 0, 0, steps=2) for arm in ("disagreement", "augmented")]
        print(json.dumps(run_jobs(jobs, {**grading, "canvases": 20, "sampled": 5}, options.output, options.workers)))
    elif options.choose:
        run_jobs(choice_jobs(options.steps), {**grading, "split": "validation"}, choice, options.workers)
    else:
        jobs = seed_by_seed(options.arms, options.warm_starts, options.seeds, options.steps)
        run_jobs(jobs, grading, options.output, options.workers)


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What CPPO teaches on digits, with error bars: warm starts × seeds × arms, graded on held-out canvases and on shifted ones.

    python -m benchmarks.learning              # all runs into benchmarks/results/learning/learning.json; interrupt it at will
    python -m benchmarks.learning --sweep      # and CPPO's two forms over λ
    python -m benchmarks.learning --choose     # the bound on the gradient, on the validation split, into choice.json
    python -m benchmarks.learning --first      # README's first run with five seeds, into first.json
    python -m benchmarks.learning --few        # on 40 canvases, again and again, into few.json
    python -m benchmarks.learning --prefix     # CPPO with a shared prefix and without, paired, into prefix.json
    python -m benchmarks.learning --tables     # Markdown tables from the file
    python -m benchmarks.learning --picture    # docs/results/learning.svg and sweep.svg from the file

Runs that are in the file are not repeated. They are ordered by seed, so that what is there after an interruption compares all arms on
the same warm starts and seeds. Two one-thread runs go side by side, each of one to three minutes.
"""

import json
from typing import Any

from ..lib import digits_lab as lab
from ..lib.command import PICTURES, RESULTS, BenchmarkParser, read_json
from ..lib.jobs import Job, add_options, seed_by_seed
from .arms import ARMS, FEW
from .report import choice_table, few_table, first_table, picture, prefix_table, sweep_picture, sweep_table, tables
from .runs import BOUNDS, SWEEP, Grading, run_jobs, sweep_job

_RESULTS = RESULTS / "learning"


def sweep_jobs(seeds: int, steps: int) -> list[Job]:
    """The forms of CPPO over λ from one warm start, and GRPO; the runs of the benchmark among them are not repeated."""
    return [sweep_job(arm, coef, seed, steps) for seed in range(seeds) for arm, coef in SWEEP]


def choice_jobs(seeds: int, steps: int) -> list[Job]:
    """What the bound of the arm `cppo_robust` was chosen from, at the largest λ of the sweep."""
    bounds = [
        Job("cppo_robust", 0, seed, steps, {"cpl_max_gradient_ratio": b}) for seed in range(seeds) for b in BOUNDS
    ]
    return [Job("grpo", 0, seed, steps) for seed in range(seeds)] + bounds


def prefix_jobs(warm_starts: int, seeds: int, steps: int) -> list[Job]:
    """Both ways of scoring, side by side: what else the machine does slows both."""
    return [
        Job("cppo", warm_start, seed, steps, {"share_prefix": share})
        for seed in range(seeds)
        for warm_start in range(warm_starts)
        for share in (False, True)
    ]


def first_jobs(seeds: int) -> list[Job]:
    """The embedded run and its start."""
    steps = lab.run_settings()["max_steps"]
    return [Job("cppo", 0, 0, 0), *(Job("cppo", 0, seed, steps) for seed in range(seeds))]


def all_tables(report: dict[str, Any], steps: int) -> str:
    others = {
        "choice": choice_table,
        "first": first_table,
        "few": lambda few: few_table(few, steps),
        "prefix": prefix_table,
    }
    found = {name: read_json(_RESULTS / f"{name}.json") for name in others}
    parts = [make(found[name]) for name, make in others.items() if found[name]]
    return "\n\n".join([tables(report, steps), sweep_table(report, steps), *parts])


def draw(report: dict[str, Any], steps: int) -> None:
    picture(report, steps, PICTURES / "learning.svg")
    sweep_picture(report, steps, PICTURES / "sweep.svg")


def main() -> None:
    parser = BenchmarkParser("learning", __doc__, smoke="two arms of two steps, few canvases")
    add_options(parser, list(ARMS))
    parser.add_argument("--models", default=None, help="folder to keep the trained models in")
    parser.add_argument("--sweep", action="store_true", help="run CPPO's two forms over λ, from the first warm start")
    parser.add_argument("--choose", action="store_true", help="run the bounds on the validation split, two seeds")
    parser.add_argument("--first", action="store_true", help="the embedded run as it is, from the first warm start")
    parser.add_argument("--few", action="store_true", help="run on 40 canvases")
    parser.add_argument("--prefix", action="store_true", help="compare share_prefix=True with False, two seeds")
    options = parser.parse_args()
    steps = options.steps
    if parser.show(options, lambda report: all_tables(report, steps), lambda report: draw(report, steps)):
        return
    if options.smoke:
        jobs = [Job(arm, 0, 0, steps=2) for arm in ("cppo", "papo")]
        print(json.dumps(run_jobs(jobs, Grading(canvases=20, sampled=5), options.output, options.workers)))
    elif options.prefix:
        jobs = prefix_jobs(options.warm_starts, 2, steps)
        run_jobs(jobs, Grading(conditions=("clean",)), _RESULTS / "prefix.json", options.workers)
    elif options.first:
        run_jobs(first_jobs(options.seeds), Grading(conditions=("clean",)), _RESULTS / "first.json", options.workers)
    elif options.few:
        jobs = seed_by_seed(FEW, options.warm_starts, options.seeds, steps, few=40)
        run_jobs(jobs, Grading(conditions=("clean",)), _RESULTS / "few.json", options.workers)
    elif options.choose:
        grading = Grading(split="validation", conditions=("clean",))
        run_jobs(choice_jobs(2, steps), grading, _RESULTS / "choice.json", options.workers)
    else:
        if options.sweep:
            jobs = sweep_jobs(options.seeds, steps)
        else:
            jobs = seed_by_seed(options.arms, options.warm_starts, options.seeds, steps, once=(0, 2 * steps))
        run_jobs(jobs, Grading(models=options.models), options.output, options.workers)


if __name__ == "__main__":
    main()

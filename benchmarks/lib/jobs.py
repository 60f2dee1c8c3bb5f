# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Training runs on digits: many of them, two at a time, kept in a file that survives an interruption."""

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .command import read_json, write_json
from .counting import versions

METRICS = ["rewards/sum_reward/mean", "cpl/loss", "cpl/entropy_shift", "cpl/contrast_accuracy", "cpl/perception_ratio"]
METRICS += ["cpl/gradient_ratio"]


@dataclass(frozen=True)
class Job:
    """One run. `settings` come on top of the arm's."""

    arm: str
    warm_start: int
    seed: int
    steps: int = 60
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    few: int | None = None  # canvases that it trains on, again and again; None: each is new

    @property
    def name(self) -> str:
        changes = "".join(f" {name}={value}" for name, value in self.settings.items())
        few = "" if self.few is None else f" canvases{self.few}"
        return f"warm{self.warm_start} seed{self.seed} {self.arm}{changes} steps{self.steps}{few}"


def history(log: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Means of every ten steps of the metrics that are kept."""
    return {name: _means([entry.get(name) for entry in log]) for name in METRICS}


def _means(values: Iterable[float | None], window: int = 10) -> list[float | None]:
    """Means of every ten values; a `None` or NaN is left out."""
    values = list(values)
    parts = [[v for v in values[i : i + window] if v is not None and v == v] for i in range(0, len(values), window)]
    return [round(statistics.fmean(part), 5) if part else None for part in parts]


def add_options(parser: argparse.ArgumentParser, arms: list[str]) -> None:
    """How many runs, of what, how long."""
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--warm_starts", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps a run, of 32 prompts × 8 rollouts")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")


def seed_by_seed(
    arms: Iterable[str], warm_starts: int, seeds: int, steps: int, once: tuple[int, ...] = (0,), few: int | None = None
) -> list[Job]:
    """
    What is there after an interruption compares all arms on the same warm starts and seeds.

    Args:
        once (`tuple[int, ...]`, *optional*): steps of the runs of GRPO that come with the first seed alone; of 0 it is the warm start.
    """
    jobs = []
    for seed in range(seeds):
        for warm_start in range(warm_starts):
            jobs += [Job("grpo", warm_start, seed, length, few=few) for length in once if seed == 0]
            jobs += [Job(arm, warm_start, seed, steps, few=few) for arm in arms]
    return jobs


def run_jobs(
    jobs: list[Job],
    grading: dict[str, Any],
    path: Path | None,
    run: Callable[[Job], dict[str, Any]],
    settings_of: Callable[[Job], dict[str, Any]],
    warm_start: Callable[[int], Any],
    workers: int = 2,
) -> dict[str, Any]:
    """
    Do the jobs that the file at `path` does not hold yet, and add each to it when it is done.

    Args:
        grading (`dict[str, Any]`): what the runs are graded by, as JSON has it; kept with them.
        run (`Callable`): does a job, in a process of its own.
        settings_of (`Callable`): a job's settings, which are kept with it.
        warm_start (`Callable`): makes the warm start of a number, before the processes that share it.

    Raises:
        `SystemExit`: if the file was made with another grading or other settings; at the end, if a job failed.
    """
    report = (read_json(path) if path else {}) or {
        "grading": grading,
        "versions": {**versions(), "trl_cppo": version("trl_cppo")},
        "runs": {},
    }
    _refuse_others(report, jobs, grading, path, settings_of)
    for arm in dict.fromkeys(job.arm for job in jobs):
        print(arm, settings_of(next(job for job in jobs if job.arm == arm)), file=sys.stderr)
    todo = [job for job in jobs if job.name not in report["runs"]]
    for seed in sorted({job.warm_start for job in todo}):
        warm_start(seed)
    # One thread each, and a thread that waits gives its core away: the variables are read when torch is loaded.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    failures = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(run, job): job for job in todo}
        try:
            for done in as_completed(pending):
                job, error = pending[done], done.exception()
                if error:
                    failures.append(f"{job.name}: {error!r}")
                    continue
                report["runs"][job.name] = {"job": asdict(job), "settings": settings_of(job), **done.result()}
                if path:
                    write_json(path, report)
                first = next(iter(done.result()["conditions"].values()))
                print(job.name, first, file=sys.stderr, flush=True)
        except BaseException:  # an interruption does not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        sys.exit("These runs failed, the others are kept:\n" + "\n".join(failures))
    return report


def _refuse_others(
    report: dict[str, Any],
    jobs: list[Job],
    grading: dict[str, Any],
    path: Path | None,
    settings_of: Callable[[Job], dict[str, Any]],
) -> None:
    """Runs of another grading, or of other settings than these jobs', are not to be compared with them."""
    if report["grading"] != grading:
        sys.exit(f"{path} holds runs graded with {report['grading']}, not {grading}. Use another --output.")
    stale = [
        job.name
        for job in jobs
        if report["runs"].get(job.name, {}).get("settings", settings_of(job)) != settings_of(job)
    ]
    if stale:
        sys.exit(
            f"{path} holds runs with other settings than the arms have now: {', '.join(stale)}. Use another --output."
        )

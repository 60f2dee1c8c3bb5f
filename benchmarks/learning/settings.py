# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What each CPPOConfig setting does to the logged metrics: the embedded digits run, one setting changed at a time.

    python -m benchmarks.learning.settings --output settings.json

Every run starts from the same weights with the same seed, so the rollouts of the first step are the same in all of them.
A run takes about a minute of one core. Finished runs are kept in `--output` and not repeated, so an interrupted call goes
on where it stopped. Prints Markdown tables. One seed shows a direction, not a size.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trl_cppo import CPPOTrainer
from trl_cppo.run.card.markdown import table

from ..lib import digits_lab as lab
from ..lib.command import read_json, write_json

CHANGES: list[dict[str, Any]] = [
    {},
    {"cpl_coef": 0.0},
    {"cpl_coef": 0.05},
    {"cpl_coef": 0.2},
    {"cpl_temperature": 0.05},
    {"cpl_temperature": 0.5},
    {"perception_token_ratio": 0.25},
    {"perception_token_ratio": 1.0},
    {"perception_token_ratio": None},
    {"perception_score": "entropy_shift"},
    {"cpl_divergence": "k1"},
    {"cpl_divergence": "kl"},
    {"gate_by_advantage": False},
    {"cpl_reduction": "token"},
    *({"information_removing": [name]} for name in ("noise_boxes", "zoom_crop", "black_squares", "patch_blackening")),
    *({"information_preserving": [name]} for name in ("color_jitter", "random_perspective", "random_rotation")),
    {"information_preserving": ["gaussian_blur"]},
    {"information_removing": ["random_rotation"]},  # removes nothing
    {  # the two lists swapped
        "information_preserving": ["noise_boxes", "zoom_crop"],
        "information_removing": ["color_jitter", "random_perspective", "random_rotation"],
    },
]
METRICS = ["reward", "cpl/loss", "cpl/gated_ratio", "cpl/perception_ratio", "cpl/entropy_shift"]
METRICS += ["cpl/divergence_preserved", "cpl/divergence_removed", "cpl/contrast_accuracy"]
SECONDS = "cpu_seconds"


def name_of(change: dict[str, Any]) -> str:
    """What the run is called in the report and in the tables."""
    texts = (f"{name}={value if isinstance(value, list) else json.dumps(value)}" for name, value in change.items())
    return ", ".join(texts) or "defaults"


class StepSeconds(TrainerCallback):
    """CPU time of each step: other work on the machine stretches the wall clock, but hardly this."""

    def __init__(self):
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = self._start or time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.process_time()
        self.seconds.append(now - self._start)
        self._start = now


def run(change: dict[str, Any], seed: int, steps: int) -> dict[str, list[float]]:
    """The value of each metric at each step of one training run."""
    with tempfile.TemporaryDirectory() as folder:
        clock = StepSeconds()
        settings = lab.run_settings(seed=seed, max_steps=steps, **change)
        trainer = lab.make_trainer(CPPOTrainer, folder, 0, 4000, settings, callbacks=[clock])
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    history = {name: [entry[name] for entry in logged if entry.get(name) is not None] for name in METRICS}
    return {**history, SECONDS: clock.seconds}


def means_table(runs: dict[str, dict[str, list[float]]], steps: slice, timed: bool) -> str:
    """A Markdown table: the mean over some steps of each metric and, if `timed`, of the CPU time as a ratio to GRPO's."""
    grpo = statistics.fmean(runs[name_of({"cpl_coef": 0.0})][SECONDS][steps])
    rows = []
    for name, history in runs.items():
        cells = [f"{statistics.fmean(history[metric][steps]):.3f}" if history[metric] else "–" for metric in METRICS]
        cells += [f"{statistics.fmean(history[SECONDS][steps]) / grpo:.2f}"] if timed else []
        rows.append([f"`{name}`", *cells])
    return table(rows, ["run", *(f"`{name}`" for name in METRICS), *(["time / GRPO"] if timed else [])])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.settings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the runs in it are not repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps a run, at least 10")
    options = parser.parse_args()
    if options.steps < 10:
        parser.error("--steps must be at least 10: the tables average the last 10 steps.")
    torch.set_num_threads(1)
    settings = {"seed": options.seed, "steps": options.steps}
    report = read_json(options.output) or {"settings": settings, "runs": {}}
    if report["settings"] != settings:
        parser.error(f"{options.output} holds runs with {report['settings']}. Use these, or another file.")
    for change in CHANGES:
        if name_of(change) not in report["runs"]:
            report["runs"][name_of(change)] = run(change, **settings)
            write_json(options.output, report)
    runs = {name_of(change): report["runs"][name_of(change)] for change in CHANGES}
    print("Step 1, the same rollouts in every run:\n", means_table(runs, slice(1), timed=False), sep="\n")
    print("\nMean of the last 10 steps:\n", means_table(runs, slice(-10, None), timed=True), sep="\n")


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What a budget of views (`cpl_rollouts_per_prompt`) costs in learning, and in noise of the CPL's gradient, on digits.

    python -m benchmarks.learning.budget            # all runs into benchmarks/results/learning/budget.json; interrupt it at will
    python -m benchmarks.learning.budget --tables   # Markdown tables from the file

Runs of K = 1, 2 and all gated rollouts of a prompt, and GRPO's, from one warm start, seed by seed on the same prompts. The noise is
that of the warm start's batches, each with several draws of K. Runs and seeds that are in the file are not repeated.
"""

import argparse
import json
import tempfile
from itertools import islice
from typing import Any

import torch

from trl_cppo import CPPOTrainer
from trl_cppo.method.budget import drawn_weights
from trl_cppo.run.card.markdown import table

from ..lib import digits_lab as lab
from ..lib.command import BenchmarkParser, Report, write_json
from ..lib.jobs import Job
from .report import FIGURES, Values, cell, difference
from .runs import Grading, run_jobs

_NAME, BUDGETS = "cpl_rollouts_per_prompt", (1, 2)
SHOWN = ("greedy", "avg@4", "training reward, last 10 steps", "detector AUC, %")


def jobs_of(seed: int, steps: int) -> list[Job]:
    budgets = [Job("cppo", 0, seed, steps, {_NAME: budget}) for budget in BUDGETS]
    return [Job("cppo", 0, seed, steps), *budgets, Job("grpo", 0, seed, steps)]


class _Probe(CPPOTrainer):
    def _cpl_share(self, inputs, request, policy_loss):
        self.contrast = super()._cpl_share(inputs, request, policy_loss) / self.args.cpl_coef
        return self.contrast

    def gradient(self, batch: dict[str, Any]) -> torch.Tensor:
        """Of the CPL of a generation batch, with respect to all weights: shape `(P,)`."""
        self.compute_loss(self.model, batch)
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(self.contrast, list(self.model.parameters()))]
        )


def within_budget(batch: dict[str, Any], group: int, budget: int, draw: int) -> dict[str, Any]:
    """A generation batch of which all gated rows have views, with those of one draw alone."""
    gated = [pair is not None for pair in batch["cpl_views"]]
    weights = drawn_weights(gated, group, budget, draw, ("benchmark",))
    views = [pair if weight else None for pair, weight in zip(batch["cpl_views"], weights, strict=True)]
    return {**batch, "cpl_views": views, "cpl_weights": weights}


def measure_noise(seed: int, batches: int, draws: int) -> dict[str, Any]:
    """
    Squared norms: of the gradient of all gated rows, of its spread over batches, and of what a draw of K adds to that.
    """
    whole, noise = [], {str(budget): 0.0 for budget in BUDGETS}
    with tempfile.TemporaryDirectory() as folder:
        probe = lab.make_trainer(_Probe, folder, 0, 32 * batches, lab.run_settings(seed=seed))
        probe.model.train()
        probe.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
        for inputs in islice(probe.get_train_dataloader(), batches):
            batch = probe._generate_and_score_completions(inputs)
            whole.append(probe.gradient(batch))
            for budget in BUDGETS:
                for draw in range(draws):
                    drawn = probe.gradient(within_budget(batch, probe.num_generations, budget, draw))
                    noise[str(budget)] += float((drawn - whole[-1]).square().sum()) / (draws * batches)
    gradients = torch.stack(whole)
    return {
        "squared_norm": float(gradients.square().sum(dim=1).mean()),
        "variance": float(gradients.var(dim=0).sum()),
        "noise": noise,
    }


def run(options: argparse.Namespace) -> Report:
    """All that is missing in the file."""
    grading, path = Grading(conditions=("clean",)), options.output
    seeds, batches, draws = (1, 1, 2) if options.smoke else (options.seeds, 4, 6)
    torch.set_num_threads(1)
    report: Report = {}
    for seed in range(seeds):
        report = run_jobs([] if options.smoke else jobs_of(seed, options.steps), grading, path, workers=1)
        noise = report.setdefault("noise", {})
        if str(seed) not in noise:
            noise[str(seed)] = measure_noise(seed, batches, draws)
            if path:
                write_json(path, report)
    return report


ARMS = {"GRPO": ("grpo", None), "K = 1": ("cppo", 1), "K = 2": ("cppo", 2), "all": ("cppo", None)}


def _values(report: Report, arm: str, name: str) -> Values:
    """A figure of every run, by warm start and seed."""
    runs = [
        run for run in report["runs"].values() if ARMS[arm] == (run["job"]["arm"], run["job"]["settings"].get(_NAME))
    ]
    return {(0, run["job"]["seed"]): FIGURES[name](run) for run in runs}


def _variance(report: Report, budget: int | None) -> str:
    """Of the CPL's gradient over batches and draws, over that of all rollouts: of all seeds together, and the seeds' range."""
    if budget is None:
        return "1"
    pairs = [(seed["noise"][str(budget)], seed["variance"]) for seed in report["noise"].values()]
    ratios = [1 + noise / variance for noise, variance in pairs]
    whole = 1 + sum(noise for noise, _ in pairs) / sum(variance for _, variance in pairs)
    return f"{whole:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def tables(report: Report) -> str:
    """Markdown: the figures, and the differences to views of all gated rollouts on the same prompts."""
    rows, differences = [], []
    for arm, (kind, budget) in ARMS.items():
        values = {name: _values(report, arm, name) for name in SHOWN}
        variance = _variance(report, budget) if kind == "cppo" else "–"
        rows.append([arm, len(values["greedy"]), *map(cell, values.values()), variance])
        differences.append([arm, *(difference(values[name], _values(report, "all", name)) for name in SHOWN)])
    first = table(rows, ["views", "runs", *SHOWN, "variance of the CPL's gradient / all"])
    return f"{first}\n\n{table(differences[:-1], ['difference to all', *SHOWN])}"


def main() -> None:
    parser = BenchmarkParser("learning.budget", __doc__, smoke="the noise of one batch, no runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps a run, of 32 prompts × 8 rollouts")
    options = parser.parse_args()
    if parser.show(options, tables, lambda report: None):
        return
    if options.smoke:
        print(json.dumps(run(options)))
    else:
        run(options)


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Where the gradient of the Contrastive Perception Loss goes: its parts against GRPO's, on batches of the embedded digits run.

    python benchmarks/gradients.py              # into benchmarks/results/gradients.json, about 8 minutes of one core
    python benchmarks/gradients.py --tables     # Markdown tables from the file
    python benchmarks/gradients.py --picture    # docs/results/gradients.svg from the file

Of each part: its norm over that of GRPO's gradient, its cosine with it, and what a step of length 1 against it changes in first order on
held-out canvases. Then the ratio of the two norms along short training runs, and how well the ratio at the log-probabilities tells it.
Warm starts and runs that are in the file are not repeated.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import digits_lab as lab
import torch
from command import PICTURES, BenchmarkParser, read_json, write_json
from gradient_effects import clean_effects, roll_out, same_batch_effect, view_effects
from gradient_parts import Probe, contrast_parts, gradient_ratios, other_forms, score, scored, token_shares
from gradients_report import picture, tables
from transformers import PrinterCallback


@dataclass
class Settings:
    warm_starts: int = 3
    batches: int = 5  # of 32 prompts × 4 rollouts, for each warm start
    canvases: int = 400  # held out
    samples: int = 4  # completions of each canvas
    steps: int = 40  # of a training run
    every: int = 2  # steps between two measurements in it
    coefs: tuple[float, ...] = (0.01, 0.2)  # λ of the training runs


class TrackingProbe(Probe):
    """Measures the ratio of the gradients' norms during training, before a step every few steps."""

    every = 1

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.track: list[dict[str, float]] = []

    def _contrastive_perception_loss(self, inputs, request, policy_loss):
        share = super()._contrastive_perception_loss(inputs, request, policy_loss)
        if self.state.global_step % self.every == 0:
            ratios = gradient_ratios(scored(self, inputs), self.args.cpl_coef)
            self.track.append({"step": self.state.global_step + 1} | ratios)
        return share


def make_trainer(trainer: type[Probe], folder: str, warm_start: int, rows: int, **changes: Any) -> Probe:
    return lab.make_trainer(trainer, folder, warm_start, rows, lab.run_settings(seed=warm_start, **changes))


def draw_batches(probe: Probe, count: int) -> Iterator[dict[str, Any]]:
    """Training batches: rollouts, advantages, gate and views."""
    probe.model.train()
    probe.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    for inputs in islice(probe.get_train_dataloader(), count):
        yield probe._generate_and_score_completions(inputs)


def measure_part(
    gradient: torch.Tensor, policy: torch.Tensor, effects: dict[str, torch.Tensor]
) -> dict[str, float | dict[str, float]]:
    """`effects` are gradients of quantities, each of shape `(P,)` as the gradients of the part and of GRPO's loss."""
    norm, policy_norm = gradient.norm(), policy.norm()
    unit = gradient / norm.clamp(min=1e-30)
    return {
        "norm": float(norm),
        "ratio": float(norm / policy_norm),
        "cosine": float(unit @ policy / policy_norm),
        "effects": {name: -float(unit @ effect) for name, effect in effects.items()},
    }


def agreement(gradients: list[torch.Tensor]) -> float:
    """Share of signal: the mean product of two independent batches' gradients over the mean square of one."""
    matrix = torch.stack(gradients)
    products = matrix @ matrix.T
    off = ~torch.eye(len(gradients), dtype=torch.bool)
    return float(products[off].mean() / products.diag().mean()) if len(gradients) > 1 else float("nan")


def measure_warm_start(warm_start: int, settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        probe = make_trainer(Probe, folder, warm_start, rows=32 * settings.batches)
        rollouts = roll_out(probe, settings.canvases, settings.samples, seed=warm_start)
        effects = clean_effects(probe, rollouts) | view_effects(probe, rollouts)
        batches, seen = [], {}
        for batch in draw_batches(probe, settings.batches):
            scores = score(probe, batch)
            gradients = {"grpo": scores.gradient(scores.policy_loss)} | contrast_parts(scores) | other_forms(scores)
            for name, gradient in gradients.items():
                seen.setdefault(name, []).append(gradient)
            goals = {"same_batch": same_batch_effect(scores)} | effects
            whole = gradients["anchor"] + gradients["positive"] + gradients["negative"]
            parts = {name: measure_part(part, gradients["grpo"], goals) for name, part in gradients.items()}
            batches.append(
                {
                    "gated_rows": len(scores.rows),
                    "error_of_sum": float((whole - gradients["cpl"]).norm() / gradients["cpl"].norm()),
                    "selected": token_shares(scores),
                    "ratios": gradient_ratios(scores, 1.0),
                    "parts": parts,
                }
            )
    return {
        "sampled_accuracy": float(rollouts.rewards.mean()),
        "batches": batches,
        "agreement": {name: agreement(gradients) for name, gradients in seen.items()},
    }


def measure_training(coef: float, settings: Settings) -> list[dict[str, float]]:
    """The ratios along one run, with the reward of the same step's rollouts."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"cpl_coef": coef, "max_steps": settings.steps}
        trainer = make_trainer(TrackingProbe, folder, 0, rows=32 * settings.steps, **changes)
        trainer.every = settings.every
        trainer.remove_callback(PrinterCallback)  # stdout is the report's
        trainer.train()
        rewards = {entry["step"]: entry["reward"] for entry in trainer.state.log_history if "reward" in entry}
    return [entry | {"reward": rewards[entry["step"]]} for entry in trainer.track]


def rounded(value: Any) -> Any:
    """Five significant digits of every float in a report."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def run(settings: Settings, output: Path | None) -> dict[str, Any]:
    """All that is missing in the file; written after each warm start and each run."""
    fresh = {"settings": rounded(asdict(settings)), "warm_starts": {}, "training": {}}
    fresh["versions"] = {name: version(name) for name in ("trl-cppo", "trl", "transformers", "torch")}
    report = (read_json(output) if output else {}) or fresh
    if report["settings"] != fresh["settings"]:
        raise SystemExit(f"{output} holds a run with {report['settings']}: use these settings, or another file.")
    jobs = [("warm_starts", seed, measure_warm_start) for seed in range(settings.warm_starts)]
    jobs += [("training", coef, measure_training) for coef in settings.coefs]
    for group, key, measure in jobs:
        if str(key) not in report[group]:
            report[group][str(key)] = rounded(measure(key, settings))
            if output:
                write_json(output, report)
    return report


def main() -> None:
    parser = BenchmarkParser("gradients", __doc__, smoke="one batch and four steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if parser.show(options, tables, lambda report: picture(report, PICTURES / "gradients.svg")):
        return
    if options.smoke:
        short = Settings(warm_starts=1, batches=1, canvases=20, samples=2, steps=4, coefs=(0.2,))
        print(json.dumps(run(short, options.output)))
    else:
        run(Settings(), options.output)


if __name__ == "__main__":
    main()

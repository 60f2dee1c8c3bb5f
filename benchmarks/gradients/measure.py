# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is measured on the batches of a warm start, and along a training run.

Shapes: `P` parameters, all of the model in one vector.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PrinterCallback

from ..lib import digits_lab as lab
from .effects import clean_effects, roll_out, same_batch_effect, view_effects
from .parts import Probe, contrast_parts, gradient_ratios, other_forms, score, scored, token_shares


@dataclass
class Settings:
    warm_starts: int = 3
    batches: int = 5  # of 32 prompts × 8 rollouts, for each warm start
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

    def _cpl_share(self, inputs, request, policy_loss):
        share = super()._cpl_share(inputs, request, policy_loss)
        if self.state.global_step % self.every == 0:
            ratios = gradient_ratios(scored(self, inputs), self.args.cpl_coef)
            self.track.append({"step": self.state.global_step + 1} | ratios)
        return share


def make_trainer(trainer: type[Probe], folder: str, warm_start: int, rows: int, **changes: Any) -> Probe:
    settings = lab.run_settings(seed=warm_start, share_prefix=False, **changes)  # hidden states are read by row
    return lab.make_trainer(trainer, folder, warm_start, rows, settings)


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

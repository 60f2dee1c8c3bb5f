# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What a small step of the weights changes on held-out canvases: gradients of some quantities, to be multiplied with steps.

Shapes: `B` rows, `T` completion tokens, `V` vocabulary, `P` weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from trl_cppo import digits

from ..lib import digits_lab as lab
from .parts import Probe, Scored, flat

_ROWS = 200  # of a forward

# What the quantities are called in tables, in this order.
EFFECTS = {
    "same_batch": "log-prob, same batch",
    "perception": "log-prob, perception tokens",
    "other": "log-prob, other tokens",
    "entropy": "entropy, perception tokens",
    "reward": "reward",
    "shift": "ΔH, perception tokens",
    "shift_other": "ΔH, other tokens",
}


@dataclass
class Rollouts:
    """The policy's own completions of some canvases."""

    images: list[Image.Image]
    completions: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T), bool: up to the end token
    perception: torch.Tensor  # (B, T), bool
    rewards: torch.Tensor  # (B,): 1 for a right sum, else 0
    advantages: torch.Tensor  # (B,): reward less the mean of the canvas's other rollouts


def roll_out(probe: Probe, canvases: int, samples: int, seed: int) -> Rollouts:
    """Some completions of each of some "validation" canvases, sampled as in training."""
    model, processor = probe.model, probe.processing_class
    rows = digits.make_dataset("validation", canvases, seed=seed)
    images = [image for image in rows["image"] for _ in range(samples)]
    solutions = [solution for solution in rows["solution"] for _ in range(samples)]
    completions = lab.sample(model.eval(), processor, images, seed=seed)
    texts = processor.batch_decode(completions, skip_special_tokens=True)
    right = [digits.task.boxes_the_sum(text, solution) for text, solution in zip(texts, solutions, strict=True)]
    rewards = torch.tensor(right, dtype=torch.float32).view(canvases, samples)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (samples - 1)
    mask = lab.completion_mask(processor, completions)
    perception = lab.true_perception_tokens(processor, completions) & mask
    return Rollouts(images, completions, mask, perception, rewards.flatten(), (rewards - others).flatten())


def _log_probs(probe: Probe, images: list[Image.Image], completions: torch.Tensor) -> torch.Tensor:
    return lab.next_log_probs(probe.model, probe.processing_class, images, completions)


def _gradients(
    probe: Probe, num_rows: int, values: Callable[[slice], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The gradient, shape `(P,)`, of the sums over all rows of some quantities that `values` gives for a slice of rows."""
    weights, totals = list(probe.model.parameters()), {}
    for start in range(0, num_rows, _ROWS):
        for name, value in values(slice(start, start + _ROWS)).items():
            gradient = flat(torch.autograd.grad(value, weights, retain_graph=True))
            totals[name] = totals.get(name, 0.0) + gradient
    return totals


def clean_effects(probe: Probe, rollouts: Rollouts) -> dict[str, torch.Tensor]:
    """
    Of what concerns the unperturbed images, each `(P,)`: mean log-prob of the rewarded perception and other tokens, mean
    entropy at the first, and the expected reward by the policy-gradient theorem.
    """
    right = rollouts.rewards.bool()[:, None]
    perception, other = rollouts.perception & right, rollouts.mask & ~rollouts.perception & right

    def values(rows: slice) -> dict[str, torch.Tensor]:
        log_probs = _log_probs(probe, rollouts.images[rows], rollouts.completions[rows])
        logps = log_probs.gather(2, rollouts.completions[rows, :, None])[..., 0]
        return {
            "perception": (logps * perception[rows]).sum() / perception.sum(),
            "other": (logps * other[rows]).sum() / other.sum(),
            "entropy": (lab.entropy(log_probs) * perception[rows]).sum() / perception.sum(),
            "reward": ((logps * rollouts.mask[rows]).sum(dim=1) * rollouts.advantages[rows]).sum() / len(right),
        }

    return _gradients(probe, len(rollouts.images), values)


def view_effects(probe: Probe, rollouts: Rollouts) -> dict[str, torch.Tensor]:
    """Of the mean entropy shift under removing views at the rewarded perception tokens and at the others, each `(P,)`."""
    right = rollouts.rewards.nonzero().flatten().tolist()
    images = [rollouts.images[row] for row in right]
    completions, perception = rollouts.completions[right], rollouts.perception[right]
    other = rollouts.mask[right] & ~perception
    views = [probe.view_maker([image], "held out", 0, 0, row).removed[0] for row, image in enumerate(images)]

    def values(rows: slice) -> dict[str, torch.Tensor]:
        clean, removed = (_log_probs(probe, given[rows], completions[rows]) for given in (images, views))
        shift = lab.entropy(removed) - lab.entropy(clean)
        return {
            "shift": (shift * perception[rows]).sum() / perception.sum(),
            "shift_other": (shift * other[rows]).sum() / other.sum(),
        }

    return _gradients(probe, len(images), values)


def same_batch_effect(scored: Scored) -> torch.Tensor:
    """Of the mean clean log-prob of the rewarded perception tokens of the training batch itself: shape `(P,)`."""
    anchor = scored.logps[scored.rows]
    return scored.gradient((anchor * scored.perception).sum() / scored.perception.sum())

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The methods that the learning benchmarks compare, each a trainer class and settings.

Shapes: `N` gated rows, `T` completion tokens.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trl_cppo import CPPOTrainer
from trl_cppo.method.losses import masked_mean, token_divergence
from trl_cppo.method.objective import Objective
from trl_cppo.method.request import split_scores


@dataclass(frozen=True)
class _RandomTokens(Objective):
    draw: int = 0

    def select(self, entropies: torch.Tensor, removed_entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counts = super().select(entropies, removed_entropies, mask).sum(dim=1, keepdim=True)
        # A generator of its own: the rollouts are drawn from torch's global one and must stay those of the other arms.
        generator = torch.Generator().manual_seed(self.draw)
        draws = torch.rand(mask.shape, generator=generator).masked_fill(~mask, 2.0)
        return mask & (draws.argsort(dim=1).argsort(dim=1) < counts)


class RandomTokensTrainer(CPPOTrainer):
    """CPPO on as many tokens of each row as CPPO would select, but drawn at random among those that count."""

    def _objective(self) -> Objective:
        draw = 1_000_003 * self.args.seed + self.state.global_step
        return _RandomTokens(**vars(super()._objective()), draw=draw)


class PAPOTrainer(CPPOTrainer):
    """
    PAPO's loss (arXiv 2507.06448) in the place of the CPL, with `cpl_coef` as γ:
    L_GRPO − γ · KL(anchor ‖ masked) + η · (H(anchor) + H(masked)), on all tokens of all rollouts, KL by k3, η = 0.03.
    """

    eta = 0.03  # both entropies' weight in PAPO's scripts

    def _write_cards(self, folder: Path) -> None:
        """None: they would call it a training with CPPO."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Neither before an upload."""

    def _cpl_share(self, inputs: dict[str, Any], request: Any, policy_loss: torch.Tensor) -> torch.Tensor:
        if not request.entropies.requires_grad:
            raise RuntimeError("PAPO's double entropy loss needs entropies with a gradient; this TRL gives none.")
        logps, _, masked_logps = split_scores(request.logps, request.entropies, request.rows).logps
        divergence = masked_mean(token_divergence(logps, masked_logps), request.mask)
        num_anchors = len(inputs["cpl_views"])
        anchor, _, masked = request.entropies.split([num_anchors, len(request.rows), len(request.rows)])
        entropies = masked_mean(anchor[request.rows], request.mask) + masked_mean(masked, request.mask)
        return self.eta * entropies - self.args.cpl_coef * divergence


@dataclass(frozen=True)
class Arm:
    label: str
    trainer: type[CPPOTrainer] = CPPOTrainer
    settings: dict[str, Any] = field(default_factory=dict)  # on top of examples/configs/digits.yaml
    augmented: bool = False  # whether what is trained on are information-preserving views of the canvases


# At τ = 0.1 a contrast of some tenths of a nat has no gradient left.
SOFT = {"cpl_coef": 1.0, "cpl_temperature": 1.0, "cpl_max_gradient_ratio": 0.4}
ANOTHER = {**SOFT, "information_removing": ["another_image"]}
GENTLE = {**ANOTHER, "cpl_max_gradient_ratio": 0.2}  # chosen by benchmarks/temptation on validation canvases
ARMS = {
    "grpo": Arm("GRPO", settings={"cpl_coef": 0.0}),
    "cppo": Arm("CPPO, authors' form"),
    "cppo_robust": Arm("CPPO, bounded gradient", settings={"cpl_coef": 0.2, "cpl_max_gradient_ratio": 0.4}),
    "another_gentle": Arm("CPPO, another image, τ = 1, bound 0.2", settings=GENTLE),
    "random_tokens": Arm("CPPO on random tokens", RandomTokensTrainer),
    # At twice the λ their gradient is as large as that of the authors' form: ratios of 0.58 and 0.61 in the first ten steps.
    "random_tokens_double": Arm("CPPO on random tokens, λ = 0.02", RandomTokensTrainer, {"cpl_coef": 0.02}),
    "all_tokens": Arm("CPPO on all tokens", settings={"perception_token_ratio": None}),
    "papo": Arm(
        "PAPO's loss",
        PAPOTrainer,
        {"gate_by_advantage": False, "perception_token_ratio": None, "information_removing": ["patch_blackening"]},
    ),
}
AUGMENTED = Arm("GRPO on preserving views", settings={"cpl_coef": 0.0}, augmented=True)
FEW = {  # arms of the runs on few canvases
    "grpo": ARMS["grpo"],
    "cppo": ARMS["cppo"],
    "cppo_double": Arm("CPPO, λ = 0.02", settings={"cpl_coef": 0.02}),
    "augmented": AUGMENTED,
}

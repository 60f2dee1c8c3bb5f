# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The forms of CPPO that the captions tempt, and what they are compared with, each a trainer class and settings.

Shapes: `R` rollouts.
"""

from dataclasses import dataclass
from typing import Any

from trl_cppo import CPPOTrainer
from trl_cppo.method.objective import Objective
from trl_cppo.method.request import ScoringRequest, ViewScores

from ..learning.arms import ANOTHER, AUGMENTED, SOFT, Arm
from ..learning.arms import ARMS as LEARNING
from .captions import caption_of


class _FurtherGate(CPPOTrainer):
    """CPPO on those gated rollouts alone that `keeps` lets through."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _gated(self, batch: dict[str, Any]) -> list[bool]:
        return [gated and kept for gated, kept in zip(super()._gated(batch), self.keeps(), strict=True)]

    def keeps(self) -> list[bool]:
        """Of each of the R rollouts."""
        raise NotImplementedError


class DisagreementTrainer(_FurtherGate):
    """Where the caption names a wrong digit. Nobody knows that of real data: the most that such a gate could bring."""

    def keeps(self) -> list[bool]:
        return [caption_of(row) != row["digits"] for row in self._rows]


class HardTrainer(_FurtherGate):
    """Where at most half of the prompt's rollouts are right."""

    def keeps(self) -> list[bool]:
        right = self.rewards[:, 0].view(-1, self.num_generations)  # one process, which has all
        hard = right.nanmean(dim=1) <= 0.5
        return hard.repeat_interleave(self.num_generations).tolist()


@dataclass(frozen=True)
class _Contrasted(Objective):
    least: float = 0.3  # nats of d⁻

    def answer(self, request: ScoringRequest) -> ViewScores:
        scores = super().answer(request)
        request.selected = request.selected & (request.divergences[1].detach() >= self.least)
        return scores


class ContrastTrainer(CPPOTrainer):
    """On the perception tokens alone that the removing view changes."""

    def _objective(self) -> Objective:
        return _Contrasted(**vars(super()._objective()))


_BOUNDED = LEARNING["cppo_robust"]
ARMS = {
    "grpo": LEARNING["grpo"],
    "cppo": LEARNING["cppo"],
    "cppo_bounded": _BOUNDED,
    "cppo_pair": Arm("CPPO, bounded, and least shift 0.15", settings={**_BOUNDED.settings, "min_entropy_shift": 0.15}),
    "another_image": Arm("CPPO, another image", settings={"information_removing": ["another_image"]}),
    "soft": Arm("CPPO, τ = 1, bound 0.4", settings=SOFT),
    "another_soft": Arm("CPPO, another image, τ = 1, bound 0.4", settings=ANOTHER),
    "another_gentle": LEARNING["another_gentle"],
    "disagreement": Arm("CPPO where the caption is wrong (oracle)", DisagreementTrainer),
    "hard": Arm("CPPO on hard prompts", HardTrainer),
    "contrast": Arm("CPPO without low-contrast tokens", ContrastTrainer),
    "papo": LEARNING["papo"],
    "augmented": AUGMENTED,
}

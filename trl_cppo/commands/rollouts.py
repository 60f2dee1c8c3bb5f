# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is known of a completion once it was scored behind its image and its views.

Shapes: `T` completion tokens.
"""

from dataclasses import dataclass, field

from PIL import Image

from ..method.request import ViewPair
from ..run.token_text import TokenText


@dataclass(frozen=True)
class NamedViews:
    """The images of a row, their views, and the name of the view that each was drawn from."""

    images: list[Image.Image]
    pair: ViewPair
    names: list[tuple[str, str]]  # preserving, removing


@dataclass
class TokenScores:
    """What one model says of a completion's T tokens; without an image, `logps` and `entropies` alone are filled."""

    logps: list[float]
    entropies: list[float]  # nats
    preserved_logps: list[float] = field(default_factory=list)
    removed_logps: list[float] = field(default_factory=list)
    removed_entropies: list[float] = field(default_factory=list)
    divergences_preserved: list[float] = field(default_factory=list)
    divergences_removed: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # what ranks the tokens
    selected: list[bool] = field(default_factory=list)

    @property
    def has_views(self) -> bool:
        return bool(self.removed_entropies)

    @property
    def shifts(self) -> list[float]:
        """ΔH = H⁻ − H of each token, in nats; none without views."""
        if not self.has_views:
            return []
        return [removed - h for removed, h in zip(self.removed_entropies, self.entropies, strict=True)]


@dataclass
class Rollout:
    """One completion of one data set row and its scores."""

    ids: list[int]
    tokens: list[TokenText]
    scores: TokenScores
    views: NamedViews | None
    rewards: dict[str, float]

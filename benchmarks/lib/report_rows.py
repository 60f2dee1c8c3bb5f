# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Made-up rows of a report, without a model: for the tests of the page and its benchmark."""

import random

from PIL import Image

from trl_cppo.commands.report.rows import Row
from trl_cppo.commands.rollouts import NamedViews, Rollout, TokenScores
from trl_cppo.method.request import ViewPair
from trl_cppo.run.token_text import TokenText

WORDS = [" the", " angle", " 42", ",", "\n", " A", "BC", " is", "\u9f8d", " x", "=", "7", " triangle", "."]


def make_scores(length, draw):
    """Scores of a T-token completion; half of the tokens whose entropy rises are selected."""
    entropies = [draw.uniform(0, 2) for _ in range(length)]
    removed = [max(0.0, h + draw.gauss(0.1, 0.4)) for h in entropies]
    logps, kept, gone = ([-draw.expovariate(2) for _ in range(length)] for _ in range(3))
    return TokenScores(
        logps=logps,
        entropies=entropies,
        preserved_logps=kept,
        removed_logps=gone,
        removed_entropies=removed,
        divergences_preserved=[draw.expovariate(3) for _ in range(length)],
        divergences_removed=[draw.expovariate(1) for _ in range(length)],
        scores=[max(0.0, r - h) / (r + 1e-6) for h, r in zip(entropies, removed, strict=True)],
        selected=[r > h and draw.random() < 0.5 for h, r in zip(entropies, removed, strict=True)],
    )


def make_views(color=(200, 30, 30), size=(56, 56)):
    image = Image.new("RGB", size, color)
    return NamedViews([image], ViewPair([image], [image]), [("color_jitter", "zoom_crop")])


def make_row(number=0, length=40, models=1, seed=0, texts=None, **changes):
    """A row of `length` tokens, or of the given texts, as `models` models see it."""
    draw = random.Random(seed)
    tokens = [TokenText(text) for text in texts or (draw.choice(WORDS) for _ in range(length))]
    rollouts = [
        Rollout([0] * len(tokens), tokens, make_scores(len(tokens), draw), make_views(), {}) for _ in range(models)
    ]
    defaults = dict(number=number, prompt="What is x?", solution="42", rollouts=rollouts, rewards={"accuracy": 1.0})
    return Row(**{**defaults, **changes})

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the rows of a report add up to."""

from collections import defaultdict
from dataclasses import dataclass

from ..rollouts import Rollout

# Bounds of the levels of ΔH in nats. Fixed, so that two pages can be compared.
LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0)
NOTICEABLE = 0.1  # nats: a ΔH up to here is taken for next to nothing; docs/report.md has what was seen
_BOUNDS = (*(-bound for bound in reversed(LEVELS)), 0.0, *LEVELS)


@dataclass
class Bin:
    """One bar of the distribution of ΔH: its interval in nats, and tokens in it."""

    label: str
    tokens: int = 0
    selected: int = 0


@dataclass
class WordCount:
    """How often one token text was a perception token."""

    text: str
    selected: int
    tokens: int
    mean_shift: float


@dataclass
class Summary:
    """Totals of one model over all tokens that were scored with views; means are `None` where there is none."""

    rows: int
    rows_with_views: int
    tokens: int
    rising: int  # tokens with ΔH > 0
    noticeable: int  # tokens with ΔH > `NOTICEABLE`
    selected: int
    closer: int  # selected tokens with d⁺ < d⁻
    means: dict[str, float | None]
    bins: list[Bin]
    words: list[WordCount]

    @property
    def is_closer(self) -> bool:
        """Whether d⁺ is below d⁻ over all perception tokens: in the mean, and at most of them."""
        return 2 * self.closer > self.selected and self.means["preserved"] < self.means["removed"]


def level(shift: float) -> int:
    """0 for a shift that is not positive, else 1 to 6 by `LEVELS`; a bound belongs to the level below it."""
    return 0 if shift <= 0 else 1 + sum(shift > bound for bound in LEVELS)


def summarize(rollouts: list[Rollout]) -> Summary:
    """
    Add up the rollouts of one model.

    Args:
        rollouts (`list[Rollout]`): of all rows; those without views count in `rows` alone.
    """
    viewed = [rollout for rollout in rollouts if rollout.scores.has_views]
    shifts = [shift for rollout in viewed for shift in rollout.scores.shifts]
    chosen = [flag for rollout in viewed for flag in rollout.scores.selected]
    to_preserved = [value for rollout in viewed for value in rollout.scores.divergences_preserved]
    to_removed = [value for rollout in viewed for value in rollout.scores.divergences_removed]
    means = {
        "entropy": _mean([h for rollout in viewed for h in rollout.scores.entropies]),
        "shift": _mean(shifts),
        "shift_selected": _mean(_where(shifts, chosen)),
        "preserved": _mean(_where(to_preserved, chosen)),
        "removed": _mean(_where(to_removed, chosen)),
        "logp": _mean([value for rollout in viewed for value in rollout.scores.logps]),
    }
    closer = sum(p < r and flag for p, r, flag in zip(to_preserved, to_removed, chosen, strict=True))
    return Summary(
        rows=len(rollouts),
        rows_with_views=len(viewed),
        tokens=len(shifts),
        rising=sum(shift > 0 for shift in shifts),
        noticeable=sum(shift > NOTICEABLE for shift in shifts),
        selected=sum(chosen),
        closer=closer,
        means=means,
        bins=_bins(shifts, chosen),
        words=_words(viewed),
    )


def overlap(first: list[Rollout], second: list[Rollout]) -> float | None:
    """Perception tokens that both models have, as a share of those that either has; `None` if neither has one."""
    pairs = [
        pair
        for one, other in zip(first, second, strict=True)
        for pair in zip(one.scores.selected, other.scores.selected, strict=True)
    ]
    either = sum(a or b for a, b in pairs)
    return sum(a and b for a, b in pairs) / either if either else None


def _where(values: list[float], flags: list[bool]) -> list[float]:
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _bins(shifts: list[float], chosen: list[bool]) -> list[Bin]:
    texts = [f"{bound:g}".replace("-", "\u2212") for bound in _BOUNDS]
    labels = [f"below {texts[0]}", *(f"{low} to {high}" for low, high in zip(texts, texts[1:], strict=False))]
    bins = [Bin(label) for label in [*labels, f"above {texts[-1]}"]]
    for shift, flag in zip(shifts, chosen, strict=True):
        found = bins[sum(shift > bound for bound in _BOUNDS)]
        found.tokens += 1
        found.selected += flag
    return bins


def _words(rollouts: list[Rollout]) -> list[WordCount]:
    """The token texts that were selected most often."""
    by_text = defaultdict(list)
    for rollout in rollouts:
        for token, shift, flag in zip(rollout.tokens, rollout.scores.shifts, rollout.scores.selected, strict=True):
            by_text[token.text].append((shift, flag))
    counts = [
        WordCount(text, sum(flag for _, flag in found), len(found), sum(shift for shift, _ in found) / len(found))
        for text, found in by_text.items()
    ]
    return sorted(counts, key=lambda count: (-count.selected, -count.mean_shift, count.text))

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Numbers of an evaluation from 0/1 outcomes: NumPy only.

Shapes: `Q` questions, `N` samples a question, `V` different values of a question.
"""

import math

import numpy as np

RESAMPLES = 10_000


def bootstrap_interval(values: np.ndarray, seed: int = 0, level: float = 0.95) -> list[float]:
    """
    Percentile bootstrap interval of a mean over questions.

    A resample of the questions holds each different value a multinomial number of times, so that is what is drawn:
    the same distribution as drawing questions with replacement, in `RESAMPLES · V` numbers and not `RESAMPLES · Q`.

    Args:
        values (`np.ndarray` of shape `(Q,)`): one number a question.
        seed (`int`, *optional*, defaults to `0`): of the resamples.
        level (`float`, *optional*, defaults to `0.95`): share of the resampled means inside the interval.

    Returns:
        `list[float]`: its lower and its upper end.
    """
    return interval_of(resampled_means(values, np.random.default_rng(seed)), level)


def resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The means of `RESAMPLES` resamples of `values`, of shape `(Q,)`, as [`bootstrap_interval`] draws them."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    total = counts.sum()
    return generator.multinomial(total, counts / total, size=RESAMPLES) @ distinct / total


def interval_of(means: np.ndarray, level: float = 0.95) -> list[float]:
    """The ends between which a share `level` of resampled means lies."""
    tail = (1 - level) / 2
    return [float(end) for end in np.quantile(means, [tail, 1 - tail])]


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """
    Unbiased estimate, for each question, of the chance that at least one of `k` samples is right (Chen et al. 2021,
    arXiv 2107.03374, equation 1): 1 − C(N − c, k) / C(N, k) with c right ones of N. With `k = N`, whether any is right.

    Args:
        right (`np.ndarray` of shape `(Q, N)`): whether each sample is right.
        k (`int`): from 1 to N.

    Returns:
        `np.ndarray` of shape `(Q,)`, float64.

    Raises:
        `ValueError`: for another `k`.
    """
    samples = right.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples a question; there are {samples}.")
    by_count = [1 - math.comb(samples - count, k) / math.comb(samples, k) for count in range(samples + 1)]
    return np.array(by_count)[right.astype(np.int64).sum(axis=1)]


def std_over_samples(right: np.ndarray) -> float | None:
    """
    Spread of the accuracy from one pass over the questions to the next: the standard deviation (N − 1 in the
    denominator) of the N accuracies, each over all Q questions. `None` for one sample, which has no spread.

    Args:
        right (`np.ndarray` of shape `(Q, N)`): whether each sample is right.
    """
    return float(right.mean(axis=0).std(ddof=1)) if right.shape[1] > 1 else None


def mcnemar_exact(gained: int, lost: int) -> float:
    """
    Two-sided p of McNemar's exact test: how likely so uneven a split of the questions that changed would be if each
    were as likely gained as lost. 1.0 where none changed.

    Args:
        gained (`int`): questions that only the second model answers right.
        lost (`int`): questions that only the first model answers right.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)  # integers until the division, so that no count overflows

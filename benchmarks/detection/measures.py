# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What the detector is measured with: views of a given strength, scores of tokens, rules of selection, their grades. No model, no files.

Shapes: `B` rows (one a canvas), `T` completion tokens, `N` tokens of all rows, `V` vocabulary, `D` bootstrap draws.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from trl_cppo.method import views
from trl_cppo.method.losses import perception_token_mask, token_divergence, token_scores

from ..lib.digits_lab import entropy

Scores = dict[str, torch.Tensor]
Rule = Callable[[Scores, torch.Tensor, float], torch.Tensor]

PATCH = 7  # pixels: a patch of the tiny model, as 14 is of Qwen2.5-VL


def mixture(strength: float) -> views.View:
    """The authors' removing views, one drawn for each image. Has no strength."""
    removing = [views.get_view("noise_boxes"), views.get_view("zoom_crop")]
    return lambda image, generator: views.choose_view(removing, generator)(image, generator)


def noise_boxes(count: float) -> views.View:
    """As the registered view of that name, with `count` boxes in place of 50."""
    return lambda image, generator: views.cover_with_boxes(image, int(count), generator)


def zoom_crop(scale: float) -> views.View:
    """As the registered view of that name, with one `scale` of the sides in place of 0.6–0.7."""
    return lambda image, generator: views.crop_and_enlarge(image, scale, generator)


def gaussian_blur(sigma: float) -> views.View:
    """A Gaussian blur of `sigma` pixels, cut off at 3 σ. Draws nothing."""
    kernel = 2 * math.ceil(3 * sigma) + 1
    return lambda image, generator: F.gaussian_blur(image, kernel_size=[kernel, kernel], sigma=[sigma, sigma])


def black_patches(share: float) -> views.View:
    """Exactly this `share` (rounded) of the patches of a grid of 7 pixels turns black."""

    def view(image: Image.Image, generator: torch.Generator) -> Image.Image:
        pixels = np.array(image)
        height, width = pixels.shape[:2]
        rows, columns = math.ceil(height / PATCH), math.ceil(width / PATCH)
        black = torch.zeros(rows * columns, dtype=torch.bool)
        black[torch.randperm(rows * columns, generator=generator)[: round(share * rows * columns)]] = True
        grid = black.reshape(rows, columns).numpy()
        pixels[grid.repeat(PATCH, axis=0).repeat(PATCH, axis=1)[:height, :width]] = 0
        return Image.fromarray(pixels)

    return view


KINDS: dict[str, Callable[[float], views.View]] = {
    "mixture": mixture,
    "noise_boxes": noise_boxes,
    "zoom_crop": zoom_crop,
    "gaussian_blur": gaussian_blur,
    "black_patches": black_patches,
}
STRENGTHS = {  # from the weakest to the strongest
    "mixture": (1,),
    "noise_boxes": (5, 10, 20, 50, 100, 200),
    "zoom_crop": (0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3),
    "gaussian_blur": (1, 2, 3, 4, 6, 8),
    "black_patches": (0.2, 0.4, 0.6, 0.8, 0.95),
}


def apply(kind: str, strength: float, images: list[Image.Image], seed: int) -> list[Image.Image]:
    """A view of every image, each from a generator of its own."""
    view = KINDS[kind](strength)
    generators = (torch.Generator().manual_seed(seed + index) for index in range(len(images)))
    return [views.apply_view(view, image, generator) for image, generator in zip(images, generators, strict=True)]


def score_tokens(anchor: torch.Tensor, removed: torch.Tensor, completions: torch.Tensor) -> Scores:
    """
    Every score of every token, each of shape `(B, T)`, higher where perception is more likely.

    Args:
        anchor, removed (`torch.Tensor` of shape `(B, T, V)`): log-probabilities given the image and given its view.
        completions (`torch.Tensor` of shape `(B, T)`, int64): the sampled tokens.
    """
    entropies, removed_entropies = entropy(anchor), entropy(removed)
    logps, removed_logps = (table.gather(2, completions.unsqueeze(2)).squeeze(2) for table in (anchor, removed))
    return {
        "relative_shift": token_scores(entropies, removed_entropies, "relative_entropy_shift"),
        "shift": token_scores(entropies, removed_entropies, "entropy_shift"),
        "kl": (anchor.exp() * (anchor - removed)).sum(dim=-1),
        "k3": token_divergence(logps, removed_logps, "k3"),  # PAPO's, if the view is black patches
        "log_prob_drop": logps - removed_logps,
        "removed_entropy": removed_entropies,
        "entropy": entropies,
    }


def _top_share(score: str) -> Rule:
    """The package's rule with `score` in the place of the shift: the top share, by row, of the tokens that it lifts."""
    return lambda scores, mask, ratio: perception_token_mask(
        torch.zeros_like(scores[score]), scores[score], mask, ratio, "entropy_shift"
    )


def _package(score: str) -> Rule:
    return lambda scores, mask, ratio: perception_token_mask(
        scores["entropy"], scores["removed_entropy"], mask, ratio, score
    )


def _floor(score: str) -> Rule:
    return lambda scores, mask, floor: mask & (scores[score] >= floor)


def _removed_entropy_floor(scores: Scores, mask: torch.Tensor, floor: float) -> torch.Tensor:
    return mask & (scores["shift"] > 0) & (scores["removed_entropy"] >= floor)


def _top_half_above_floor(scores: Scores, mask: torch.Tensor, floor: float) -> torch.Tensor:
    """`CPPOConfig.min_entropy_shift`."""
    return perception_token_mask(scores["entropy"], scores["removed_entropy"], mask, min_shift=floor)


def _change_floor(scores: Scores, mask: torch.Tensor, floor: float) -> torch.Tensor:
    return mask & ((scores["removed_entropy"] - scores["entropy"]).abs() >= floor)


def _share_of_the_largest(score: str) -> Rule:
    """The tokens whose score reaches a share of the row's largest: needs no scale in nats."""

    def rule(scores: Scores, mask: torch.Tensor, share: float) -> torch.Tensor:
        values = scores[score].masked_fill(~mask, 0)
        return (values > 0) & (values >= share * values.amax(dim=1, keepdim=True))

    return rule


def _mass(scores: Scores, mask: torch.Tensor, share: float) -> torch.Tensor:
    """The fewest tokens of a row that hold a share of its summed shift: needs no scale either."""
    shift = scores["shift"].masked_fill(~mask, 0)
    ordered, order = shift.sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered
    kept = (before < share * ordered.sum(dim=1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(mask).scatter(1, order, kept)


RATIOS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 11))
_NATS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_SMALL_NATS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # k3 is a square
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FAMILIES: dict[str, tuple[Rule, tuple[float, ...], str]] = {
    "top_relative_shift": (_package("relative_entropy_shift"), RATIOS, "top {} of the rises, by ΔH / H⁻"),
    "top_shift": (_package("entropy_shift"), RATIOS, "top {} of the rises, by ΔH"),
    "top_kl": (_top_share("kl"), RATIOS, "top {} of all tokens, by exact KL"),
    "top_k3": (_top_share("k3"), RATIOS, "top {} of all tokens, by k3"),
    "relative_shift_floor": (_floor("relative_shift"), _SHARES, "ΔH / H⁻ ≥ {}"),
    "shift_floor": (_floor("shift"), _NATS, "ΔH ≥ {} nats"),
    "change_floor": (_change_floor, _NATS, "ΔH ≥ {0} or ≤ −{0} nats"),
    "kl_floor": (_floor("kl"), _NATS, "exact KL ≥ {} nats"),
    "k3_floor": (_floor("k3"), _SMALL_NATS, "k3 ≥ {} nats"),
    "log_prob_drop_floor": (_floor("log_prob_drop"), _NATS, "log-prob drop ≥ {} nats"),
    "removed_entropy_floor": (_removed_entropy_floor, _NATS, "ΔH > 0 and H⁻ ≥ {} nats"),
    "top_half_above_floor": (_top_half_above_floor, _NATS, "top half of the rises, and ΔH ≥ {} nats"),
    "share_of_largest_shift": (_share_of_the_largest("shift"), _SHARES, "ΔH ≥ {} of the row's largest"),
    "share_of_largest_k3": (_share_of_the_largest("k3"), _SMALL_NATS, "k3 ≥ {} of the row's largest"),
    "mass": (_mass, (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99), "{} of the row's summed ΔH"),
}
AUTHORS = ("top_relative_shift", 0.5)
# Graded under every view, not under the authors' alone; the exact KL needs whole distributions of every token.
MAIN_FAMILIES = ("top_half_above_floor", "k3_floor", "kl_floor")
MAIN_SCORES = ("relative_shift", "shift", "k3", "kl")


def select(rule: tuple[str, float], scores: Scores, mask: torch.Tensor) -> torch.Tensor:
    """The tokens that a rule, given by family and value, selects: bool of shape `(B, T)`."""
    family, value = rule
    return FAMILIES[family][0](scores, mask, value)


def in_words(rule: tuple[str, float]) -> str:
    family, value = rule
    return FAMILIES[family][2].format(f"{value:g}")


def resampling_weights(rows: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each canvas counts: ones in row 0, then bootstrap draws; shape `(1 + D, B)`, float32."""
    chosen = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws)
    return np.concatenate([np.ones((1, rows)), chosen]).astype(np.float32)


def rates(selected: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Precision, recall and F1 of a selection, tokens pooled over the rows, each of shape `(1 + D,)`.

    Args:
        selected, truth (`np.ndarray` of shape `(B, T)`, bool): `truth` without what does not count.
    """
    hits, chosen, true = (
        weights @ table.sum(axis=1).astype(np.float32) for table in (selected & truth, selected, truth)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"precision": hits / chosen, "recall": hits / true, "f1": 2 * hits / (chosen + true)}


def ranking(values: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """
    Area under the ROC curve and average precision of some tokens' scores; tied scores are one step of the curve.

    Args:
        values (`np.ndarray` of shape `(N,)`): scores.
        truth (`np.ndarray` of shape `(N,)`, bool).
        weights (`np.ndarray` of shape `(1 + D, N)`): how often each token counts.

    Returns:
        `dict`: `auc` and `average_precision` of shape `(1 + D,)`; `curve` of shape `(2, steps)`: recall and precision of row 0.
    """
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    ordered = weights[:, order]
    total = np.cumsum(ordered, axis=1, dtype=np.float64)[:, ends]
    hits = np.cumsum(ordered * truth[order], axis=1, dtype=np.float64)[:, ends]
    recall = hits / hits[:, -1:]
    precision = hits / np.maximum(total, 1e-9)  # a draw may leave out the first tokens
    false = (total - hits) / (total - hits)[:, -1:]
    gained = np.diff(recall, axis=1, prepend=0)
    middle = recall - gained / 2
    return {
        "auc": (np.diff(false, axis=1, prepend=0) * middle).sum(axis=1),
        "average_precision": (gained * precision).sum(axis=1),
        "curve": np.stack([recall[0], precision[0]]),
    }


def on_grid(curve: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """The precision of a curve where it first reaches each of some recalls."""
    places = np.searchsorted(curve[0], recalls - 1e-9)
    return curve[1][places]


def summary(per_model: np.ndarray) -> dict[str, float | None]:
    """
    Mean over models with its percentile 95 % interval over the draws, and the standard deviation of the models.

    Args:
        per_model (`np.ndarray` of shape `(models, 1 + D)`): the draws are the same canvases for every model.
    """
    models, mean = per_model[:, 0], per_model.mean(axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5]) if len(mean) > 1 else (math.nan, math.nan)
    figures = {"mean": mean[0], "low": low, "high": high, "sd": models.std(ddof=1) if len(models) > 1 else math.nan}
    return {name: None if math.isnan(value) else round(float(value), 4) for name, value in figures.items()}

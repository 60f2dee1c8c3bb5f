# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The pure functions of benchmarks/detection/measures.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.detection import measures
from trl_cppo.method.losses import perception_token_mask
from trl_cppo.method.views import get_view


def noise_image(width: int = 56, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8))


def black_share(image: Image.Image) -> float:
    return float((np.asarray(image).max(axis=2) == 0).mean())


@pytest.mark.parametrize("kind", measures.KINDS)
def test_a_view_keeps_the_size_and_repeats_itself(kind):
    images = [noise_image(), noise_image()]
    for strength in measures.STRENGTHS[kind]:
        first, again = (measures.apply(kind, strength, images, seed=3) for _ in range(2))
        assert [image.size for image in first] == [(56, 56)] * 2
        assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
        assert first[0].tobytes() != images[0].tobytes()


def test_fifty_boxes_are_the_registered_view():
    draw, same = (torch.Generator().manual_seed(4) for _ in range(2))
    ours = measures.noise_boxes(50)(noise_image(), draw)
    assert ours.tobytes() == get_view("noise_boxes")(noise_image(), same).tobytes()


def test_strength_is_what_it_says():
    image = noise_image()
    for share in (0.25, 0.5, 0.75):  # whole numbers of the 64 patches
        assert black_share(measures.black_patches(share)(image, torch.Generator())) == share
    whole = measures.zoom_crop(1.0)(image, torch.Generator())
    assert np.array_equal(np.asarray(whole), np.asarray(image))
    spread = [np.asarray(measures.gaussian_blur(sigma)(image, torch.Generator())).std() for sigma in (1, 2, 4, 8)]
    assert spread == sorted(spread, reverse=True)


def hand_scores() -> tuple[measures.Scores, torch.Tensor]:
    """Two rows; the last token of row 1 is padding."""
    entropies = torch.tensor([[0.1, 0.1, 0.5, 0.2], [0.0, 0.3, 0.1, 0.0]])
    removed = torch.tensor([[0.2, 1.1, 0.3, 0.21], [0.05, 0.4, 2.1, 9.0]])
    shift = (removed - entropies).clamp(min=0)
    scores = {"entropy": entropies, "removed_entropy": removed, "shift": shift, "relative_shift": shift / removed}
    scores |= {"k3": shift**2, "kl": shift, "log_prob_drop": shift}
    return scores, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()


def test_rules_of_a_hand_made_case():
    scores, mask = hand_scores()

    def selected(family: str, value: float) -> list[list[int]]:
        return measures.select((family, value), scores, mask).int().tolist()

    assert selected("shift_floor", 0.5) == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert selected("change_floor", 0.15) == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert selected("relative_shift_floor", 0.45) == [[1, 1, 0, 0], [1, 0, 1, 0]]
    assert selected("removed_entropy_floor", 0.25) == [[0, 1, 0, 0], [0, 1, 1, 0]]
    assert selected("share_of_largest_shift", 0.09) == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert selected("mass", 0.95) == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert selected("mass", 0.5) == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert selected("top_half_above_floor", 0.07) == [[0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("family", measures.FAMILIES)
def test_no_rule_selects_padding(family):
    scores, mask = hand_scores()
    for value in measures.FAMILIES[family][1]:
        assert not measures.select((family, value), scores, mask)[1, 3]


def test_the_top_share_of_the_shift_is_the_packages_rule():
    draw = torch.Generator().manual_seed(0)
    entropies, removed = (torch.rand(20, 30, generator=draw) for _ in range(2))
    mask = torch.rand(20, 30, generator=draw) < 0.8
    scores = {"shift": (removed - entropies).clamp(min=0)}
    for ratio in measures.RATIOS:
        expected = perception_token_mask(entropies, removed, mask, ratio, "entropy_shift")
        assert torch.equal(measures._top_share("shift")(scores, mask, ratio), expected)


def test_rates_of_a_hand_made_case():
    selected = np.array([[1, 1, 0], [1, 0, 0]], dtype=bool)
    truth = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    weights = np.array([[1, 1], [2, 0], [0, 2]], dtype=np.float32)
    rates = measures.rates(selected, truth, weights)
    assert rates["precision"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert rates["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert rates["f1"] == pytest.approx([2 / 3, 1 / 2, 1])


def test_rankings_are_scikit_learns_with_ties_and_weights():
    draw = np.random.default_rng(1)
    values = draw.integers(0, 20, 400).astype(np.float32)  # ties
    truth = draw.random(400) < values / 40
    weights = draw.integers(0, 4, (5, 400)).astype(np.float32)
    ranking = measures.ranking(values, truth, weights)
    for row, given in enumerate(weights):
        assert ranking["auc"][row] == pytest.approx(roc_auc_score(truth, values, sample_weight=given))
        expected = average_precision_score(truth, values, sample_weight=given)
        assert ranking["average_precision"][row] == pytest.approx(expected)


def test_precision_at_a_recall():
    curve = np.array([[0.5, 0.5, 1.0], [1.0, 0.5, 0.25]])
    assert measures.on_grid(curve, np.array([0.1, 0.5, 0.51, 1.0])).tolist() == [1.0, 1.0, 0.25, 0.25]


def test_bootstrap_draws_whole_canvases_and_starts_with_the_sample():
    weights = measures.resampling_weights(7, draws=50)
    assert weights.shape == (51, 7) and (weights[0] == 1).all() and (weights.sum(axis=1) == 7).all()
    per_model = np.array([[0.5, 0.4, 0.6], [0.7, 0.6, 0.8]])
    figures = measures.summary(per_model)
    assert figures == {"mean": 0.6, "low": 0.505, "high": 0.695, "sd": 0.1414}
    assert measures.summary(np.array([[np.nan, 0.1]]))["mean"] is None


def test_scores_are_those_of_the_distributions():
    draw = torch.Generator().manual_seed(0)
    anchor, removed = (torch.randn(2, 3, 5, generator=draw).log_softmax(dim=-1) for _ in range(2))
    completions = torch.tensor([[0, 1, 2], [3, 4, 0]])
    scores = measures.score_tokens(anchor, removed, completions)
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (anchor, removed))
    shift = q.entropy() - p.entropy()
    drop = p.log_prob(completions) - q.log_prob(completions)
    assert torch.allclose(scores["kl"], torch.distributions.kl_divergence(p, q), atol=1e-6)
    assert torch.allclose(scores["shift"], shift.clamp(min=0), atol=1e-6)
    assert torch.allclose(scores["relative_shift"], shift.clamp(min=0) / q.entropy(), atol=1e-5)
    assert torch.allclose(scores["k3"], (-drop).exp() + drop - 1, atol=1e-5)

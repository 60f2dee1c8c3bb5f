# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A budget of views: which gated rollouts are drawn, and that the CPL of the drawn ones is on average that of all."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from conftest import generation_batch, make_rows, make_trainer
from PIL import Image

from trl_cppo.method.budget import drawn_weights
from trl_cppo.method.losses import divergence_contrast, sampled_divergences, squared_gradients
from trl_cppo.method.metrics import SUMS
from trl_cppo.method.objective import Objective
from trl_cppo.method.request import ScoringRequest
from trl_cppo.scoring.head import kl_to_views

GROUP, TOKENS, HIDDEN, VOCABULARY = 4, 5, 6, 9
GATED = [True, False, True, True, False, True, True, False]  # of two prompts
ROWS = len(GATED)


def draws(budget, gated=GATED, count=400):
    """What is drawn for many keys."""
    return [tuple(drawn_weights(gated, GROUP, budget, 0, ("train", key))) for key in range(count)]


def every_draw(budget):
    """All draws of a budget, which are equally likely."""
    return sorted(set(draws(budget)), key=str)


def test_every_draw_is_of_k_gated_rollouts_of_each_prompt_which_weigh_n_over_k():
    assert set(draws(3)) == {tuple(1.0 if gated else None for gated in GATED)}  # nobody has more
    for budget, count in ((1, 3 * 2), (2, 3)):
        found = draws(budget)
        assert len(set(found)) == count  # each subset occurs
        for weights in found:
            assert [weight is not None for weight in weights] == GATED
            for start, gated in ((0, 3), (4, 2)):
                drawn = [weight for weight in weights[start : start + GROUP] if weight]
                assert drawn == [gated / min(budget, gated)] * min(budget, gated)


def test_draws_are_uniform_and_of_their_seed_key_and_prompt_alone():
    shares = Counter(draws(2, [True] * GROUP, 3000))
    assert len(shares) == 6 and all(abs(share - 500) < 5 * (500 * 5 / 6) ** 0.5 for share in shares.values())
    [one, two] = (drawn_weights([True] * 2 * GROUP, GROUP, 1, seed, ("train", 3, 0)) for seed in (0, 1))
    assert one == drawn_weights([True] * 2 * GROUP, GROUP, 1, 0, ("train", 3, 0)) != two
    # The first prompt's draw does not depend on who else there is, so a longer batch begins likewise.
    assert one[:GROUP] == drawn_weights([True] * GROUP, GROUP, 1, 0, ("train", 3, 0))
    pairs = [drawn_weights([True] * 2 * GROUP, GROUP, 1, 0, ("train", key)) for key in range(50)]
    assert any(pair[:GROUP] != pair[GROUP:] for pair in pairs)  # prompts draw apart
    state = torch.get_rng_state()
    drawn_weights(GATED, GROUP, 1, 0, ("train",))
    assert torch.equal(state, torch.get_rng_state())


def objective(reduction="sequence", divergence="k3"):
    return Objective(0.5, 0.3, divergence, 0.5, "relative_entropy_shift", 0.0, reduction, None)


class Scores:
    """A batch's hidden states, the log-probabilities that a head makes of them, and entropies: of each row and its two views."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.hidden = torch.randn(
            3, ROWS, TOKENS, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True
        )
        self.head = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
        log_probs = (self.hidden @ self.head.T).log_softmax(dim=-1)
        self.logps = log_probs[..., 0]
        self.entropies = -(log_probs.exp() * log_probs).sum(dim=-1).detach()
        self.mask = torch.rand(ROWS, TOKENS, generator=generator) < 0.8

    def request(self, rows, weights):
        """Of a micro-batch of some rows."""
        drawn = [place for place, row in enumerate(rows) if weights[row]]
        viewed = [rows[place] for place in drawn]

        def extended(of):
            return torch.cat([of[0, rows], of[1, viewed], of[2, viewed]])

        return ScoringRequest(
            rows=drawn, mask=self.mask[viewed], logps=extended(self.logps), entropies=extended(self.entropies),
            weights=[weights[row] for row in viewed], num_undrawn=sum(weights[row] == 0.0 for row in rows),
        )  # fmt: skip

    def losses(self, of, micro_batches, weights):
        """The share of each micro-batch, and the sums of all."""
        shares, totals = [], 0.0
        num_gated = torch.tensor(float(sum(GATED)))
        for rows in micro_batches:
            request = self.request(rows, weights)
            if of.cpl_divergence == "kl":
                self.answer(request, of, rows)
            share, sums = of.loss(request, request.logps[: len(rows)].sum(), len(rows), len(micro_batches), num_gated)
            shares.append(share)
            totals = totals + sums
        return shares, totals

    def answer(self, request, of, rows):
        """As the head's observer does, from places among all hidden states."""
        viewed = torch.tensor([rows[place] for place in request.rows], dtype=torch.long)
        numbers = torch.arange(3 * ROWS * TOKENS).view(3, ROWS, TOKENS)
        places = tuple(numbers[kind, viewed] for kind in range(3))
        request.selected = of.select(self.entropies[0, viewed], self.entropies[2, viewed], request.mask)
        arguments = (self.hidden.flatten(0, 2), self.head, None, None, 1.0, 4, None, 1.0, None)
        request.divergences = kl_to_views(arguments, places, request.selected)

    def gradient(self, loss):
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(loss, (self.hidden, self.head), retain_graph=True)]
        )


# Micro-batches that hold prompts whole, cut them, and hold single rows.
CUTS = [[list(range(ROWS))], [[0, 5, 1, 4], [2, 6, 3, 7]], [[row] for row in range(ROWS)]]
ALL = [1.0 if gated else None for gated in GATED]


@pytest.mark.parametrize("budget", [1, 2])
@pytest.mark.parametrize("cut", CUTS, ids=["one", "two", "eight"])
@pytest.mark.parametrize("divergence", ["k3", "kl"])
def test_the_mean_over_all_draws_is_the_loss_and_the_gradient_of_all_gated_rows(cut, divergence, budget):
    scores, of = Scores(), objective(divergence=divergence)
    expected, sums = scores.losses(of, cut, ALL)
    values, gradients, totals = [], [], []
    for weights in every_draw(budget):
        shares, total = scores.losses(of, cut, weights)
        values.append(sum(shares).detach())
        gradients.append(scores.gradient(sum(shares)))
        totals.append(total)
    gradient = scores.gradient(sum(expected))
    assert gradient.norm() > 0.1 and all((drawn - gradient).norm() > 0.1 * gradient.norm() for drawn in gradients)
    torch.testing.assert_close(torch.stack(values).mean(), sum(expected).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), gradient, rtol=1e-10, atol=1e-13)
    # The metrics' sums too, that of squared gradients included; the counts of rows are those of each draw.
    added = SUMS.index("added_gradient")  # of what is bounded, the last
    torch.testing.assert_close(torch.stack(totals).mean(dim=0)[:added], sums[:added], rtol=1e-5, atol=1e-6)
    for name in ("gated", "rows"):
        assert {float(total[SUMS.index(name)]) for total in totals} == {float(sums[SUMS.index(name)])}


def test_what_is_added_within_a_budget_keeps_to_the_bound():
    scores, of = Scores(), dataclasses.replace(objective(), cpl_max_gradient_ratio=0.001)
    rows, told = list(range(ROWS)), SUMS.index("cpl_gradient")
    for weights in draws(1, count=5):
        request = scores.request(rows, weights)
        policy_loss = request.logps[:ROWS].sum()
        share, sums = of.loss(request, policy_loss, ROWS, 1, torch.tensor(float(sum(GATED))))
        policy, unbounded, bounded = squared_gradients(
            (policy_loss, share, of.bounded(share, sums)), request.logps
        ).sqrt()
        assert (
            unbounded.square() > sums[told] and unbounded > 0.002 * policy
        )  # a drawn row weighs more than its square does
        torch.testing.assert_close(bounded, 0.001 * policy, rtol=1e-5, atol=0)


def test_the_token_reduction_by_hand():
    """Σ w · loss / Σ w over perception tokens, and the rows that the drawn ones stand for over the gated ones."""
    scores, of = Scores(), objective("token")
    for cut, weights in itertools.product(CUTS, every_draw(1)):
        shares, _ = scores.losses(of, cut, weights)
        for rows, share in zip(cut, shares, strict=True):
            total = tokens = stood_for = 0.0
            for row in (row for row in rows if weights[row]):
                selected = of.select(scores.entropies[0, [row]], scores.entropies[2, [row]], scores.mask[[row]])
                logps = tuple(scores.logps[kind, [row]] for kind in range(3))
                loss = divergence_contrast(*sampled_divergences(logps, selected), of.cpl_temperature)[
                    selected
                ].detach()
                total, tokens = total + weights[row] * loss.sum(), tokens + weights[row] * selected.sum()
                stood_for += weights[row]
            gated = max(1, sum(GATED[row] for row in rows))
            mean = total / max(1.0, tokens) * stood_for / gated if tokens else 0.0
            assert share.item() == pytest.approx(0.5 * float(mean) / len(cut), rel=1e-12)
    # Single rows: unbiased here too, where a plain quotient would lose the weight.
    means = [sum(scores.losses(of, CUTS[2], weights)[0]) for weights in every_draw(1)]
    whole = sum(scores.losses(of, CUTS[2], ALL)[0])
    assert (sum(means) / len(means)).item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_weights_of_one_round_nothing_otherwise(reduction):
    scores, of, results = Scores(), objective(reduction), []
    for weights in (None, [1.0] * sum(GATED)):
        request = scores.request(list(range(ROWS)), ALL)
        request.weights = weights
        request.logps = request.logps.float()
        share, sums = of.loss(request, request.logps.sum(), ROWS, 3, torch.tensor(5.0))
        results.append((share.detach(), sums, scores.gradient(share)))
    for plain, weighted in zip(*results, strict=True):
        assert torch.equal(plain, weighted)


def all_gated(**settings):
    return {"gate_by_advantage": False, **settings}


def test_a_batch_within_a_budget_has_the_views_of_one_without_for_fewer_rows(tmp_path):
    batches = {}
    for budget in (None, 1, 3):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, make_rows([1, 0, 2, 1]), cpl_rollouts_per_prompt=budget, **all_gated())
        batches[budget] = generation_batch(trainer)
    whole = batches.pop(None)
    assert "cpl_weights" not in whole
    images = [count > 0 for count in whole["num_images"]]
    assert [pair is not None for pair in whole["cpl_views"]] == images and 0 < sum(images)
    for budget, batch in batches.items():
        assert torch.equal(batch["completion_ids"], whole["completion_ids"])
        assert batch["num_gated_rows"] == whole["num_gated_rows"] == sum(images)
        for row, (pair, weight) in enumerate(zip(batch["cpl_views"], batch["cpl_weights"], strict=True)):
            assert (weight is not None) == images[row] and (pair is not None) == bool(weight)
            assert weight in (None, 0.0, GROUP / budget)
            if pair is not None:
                expected = whole["cpl_views"][row]
                for kind in ("preserved", "removed"):
                    drawn, same = getattr(pair, kind), getattr(expected, kind)
                    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in same]
        for start in range(0, len(images), GROUP):
            assert sum(map(bool, batch["cpl_views"][start : start + GROUP])) == budget * images[start]


def test_a_budget_trains_packed_and_cut_with_metrics_table_and_resume(tmp_path):
    """In micro-batches of half a prompt: the gated ratio is that of all, views are of K a prompt, and a resume draws the same."""
    seen = []

    def counted(image, generator):
        seen.append(1)
        return Image.new("RGB", image.size)

    common = dict(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2, save_strategy="steps", save_steps=1,
        cpl_rollouts_per_prompt=1, log_completions=True, share_prefix=True, information_removing=counted, **all_gated(),
    )  # fmt: skip
    trainers = [make_trainer(tmp_path, make_rows([1] * 8), **common) for _ in range(2)]
    trainers[0].train()
    assert len(seen) == 2 * 2  # steps, prompts
    logs = [entry for entry in trainers[0].state.log_history if "loss" in entry]
    assert [entry["cpl/gated_ratio"] for entry in logs] == [1.0, 1.0] and all(entry["cpl/loss"] > 0 for entry in logs)
    column = trainers[0]._logs["extra"]["perception_tokens"]
    assert len(column) == 8 and sum(tokens is not None for tokens in column) == 2  # of the last step
    trainers[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    parameters = [dict(trainer.model.named_parameters()) for trainer in trainers]
    assert all(torch.equal(value, parameters[1][name]) for name, value in parameters[0].items())


def test_scoring_views_keeps_within_the_budget(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1] * 4), cpl_rollouts_per_prompt=1, **all_gated())
    rows = [row for row in make_rows([1]) for _ in range(GROUP)]
    _, request = trainer.score_views(rows, [[3, 4, 5]] * GROUP)
    assert len(request.rows) == 1 and request.weights == [GROUP] and request.num_undrawn == GROUP - 1
    assert request.divergences[0].shape == (1, 3)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "2"])
def test_a_budget_without_a_rollout_is_refused(tmp_path, budget):
    with pytest.raises(
        ValueError, match="cpl_rollouts_per_prompt must be a whole number of 1 or more, or None .* cpl_coef=0"
    ):
        make_trainer(tmp_path, cpl_rollouts_per_prompt=budget)

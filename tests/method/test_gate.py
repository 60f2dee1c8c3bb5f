# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The gate: rollouts above their group's mean, and no group of equal rewards."""

import math
from fractions import Fraction

import pytest
import torch
from conftest import cpl_logged, generation_batch, make_rows, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_cppo.method.gate import above_group_mean

# What weighted sums of rewards give: TRL's float32 mean of some of these falls below them at 3, 7, 8, 9, 10, 12, 16, …
VALUES = [k / 20 for k in range(21)] + [0.333, 1 / 3, 0.9 * 0.5 + 0.1, 1e-3, 123.4, -0.7]
ONE = torch.ones(1)


@pytest.mark.parametrize("normalize_each", [False, True])
def test_equal_rewards_gate_nobody_at_any_group_size(normalize_each):
    noisy = 0
    for size in range(2, 65):
        rewards = torch.tensor(VALUES).repeat_interleave(size)[:, None]
        grouped = rewards.view(-1, size)
        noisy += int((grouped > grouped.nanmean(dim=1, keepdim=True)).any())  # as TRL's advantages are
        assert not above_group_mean(rewards, ONE, size, normalize_each).any()
    assert noisy > 20


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 64).flatmap(lambda size: st.lists(st.sampled_from(range(21)), min_size=size, max_size=size)),
    st.sampled_from([(1, 0), (9, 1), (5, 3), (7, 3)]),
    st.integers(0, 20),
)
def test_unequal_rewards_gate_exactly_those_above_the_mean(firsts, tenths, shift):
    seconds = [(value + shift) % 21 for value in firsts[::-1]]
    sums = [Fraction(a * tenths[0] + b * tenths[1], 200) for a, b in zip(firsts, seconds, strict=True)]
    expected = [value > sum(sums) / len(sums) for value in sums]
    rewards = torch.tensor([firsts, seconds]).T / 20
    assert above_group_mean(rewards, torch.tensor(tenths) / 10, len(sums)).tolist() == expected


def test_equal_sums_of_different_rewards_are_equal():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]] * 3)
    weights = torch.tensor([0.5, 0.3, 0.2])
    sums = (rewards * weights).nansum(dim=1)
    assert not above_group_mean(rewards, weights, 6).any()
    rewards[0, 0] = 1.001
    assert above_group_mean(rewards, weights, 6).tolist() == [True] + [False] * 5
    assert torch.isclose(sums, sums[0]).all()


def test_small_differences_of_large_rewards_count():
    rewards = torch.full((8, 1), 1000.0)
    rewards[3] = 1000.01
    assert above_group_mean(rewards, ONE, 8).tolist() == [row == 3 for row in range(8)]


def test_what_was_not_scored_is_neither_above_nor_in_the_mean():
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.0], [nan, nan], [nan, 3.0], [0.0, 1.0]])
    assert above_group_mean(rewards, torch.ones(2), 4).tolist() == [False, False, True, False]
    assert not above_group_mean(torch.full((4, 2), nan), torch.ones(2), 4).any()


def test_normalized_rewards_are_compared_as_trl_does():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 4, (24, 2), generator=generator).float() / 3
    weights = torch.tensor([0.9, 0.1])
    grouped = rewards.view(-1, 8, 2)
    each = (grouped - grouped.mean(dim=1, keepdim=True)) / (grouped.std(dim=1, keepdim=True) + 1e-4)
    sums = (each.view(-1, 2) * weights).sum(dim=1)
    assert above_group_mean(rewards, weights, 8, normalize_each=True).tolist() == (sums > sums.mean() + 1e-6).tolist()


@pytest.mark.parametrize("constant", [-1.0, -1024.0, 1e6, float("nan")])
def test_a_reward_that_is_equal_in_a_group_says_nothing_however_large(constant):
    rewards = torch.tensor([[float(place % 2), constant] for place in range(8)])
    for normalize_each in (False, True) if abs(constant) < 1e6 else (True,):
        above = above_group_mean(rewards, torch.ones(2), 8, normalize_each)
        assert above.tolist() == [place % 2 == 1 for place in range(8)]


RUNS = [
    {"scale_rewards": "group"},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none"},
    {"multi_objective_aggregation": "normalize_then_sum"},
    {"bf16": True},
]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("group", "value"), [(8, 0.7), (8, 0.3), (12, 0.9), (3, 0.9), (3, 0.45)])
def test_a_run_of_equal_rewards_has_no_view_and_no_loss(tmp_path, run, group, value):
    trainer = make_trainer(
        tmp_path, make_rows([1, 1]), reward_funcs=lambda completions, **kwargs: [value] * len(completions),
        num_generations=group, per_device_train_batch_size=2 * group, cpl_coef=1.0, max_completion_length=2, **run,
    )  # fmt: skip
    batch = generation_batch(trainer)
    if run == {"scale_rewards": "group"}:
        assert (batch["advantages"] > 0).all()  # TRL's own, which the gate must not believe
    assert batch["cpl_views"] == [None] * 2 * group and batch["num_gated_rows"] == 0
    trainer.current_gradient_accumulation_steps = 1
    assert abs(trainer.compute_loss(trainer.model, batch).item()) < 1e-3
    assert cpl_logged(trainer)["cpl/gated_ratio"] == 0


def test_one_group_without_signal_does_not_dilute_the_other(tmp_path):
    def reward(completions, **kwargs):
        return [0.7] * 8 + [float(place % 4 == 0) for place in range(8)]

    trainer = make_trainer(
        tmp_path, make_rows([1, 1]), reward_funcs=reward, num_generations=8, per_device_train_batch_size=16
    )
    batch = generation_batch(trainer)
    assert [row for row, pair in enumerate(batch["cpl_views"]) if pair is not None] == [8, 12]
    assert batch["num_gated_rows"] == 2


def test_evaluation_has_groups_of_its_own_size(tmp_path):
    rewards = [0.9, 0.9, 0.9, 0.0, 0.9, 0.9]
    trainer = make_trainer(
        tmp_path, make_rows([1] * 8), eval_dataset=make_rows([1, 1]), num_generations_eval=3, per_device_eval_batch_size=6,
        reward_funcs=lambda completions, **kwargs: rewards[: len(completions)] if len(completions) == 6 else [0.0] * len(completions),
    )  # fmt: skip
    trainer.model.eval()
    inputs = next(iter(trainer.get_eval_dataloader()))
    batch = trainer._generate_and_score_completions(inputs)
    assert [pair is not None for pair in batch["cpl_views"]] == [False] * 3 + [False, True, True]

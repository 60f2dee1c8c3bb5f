# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The comparison of the sampler's log-probabilities with the trainer's. With a real engine: tests/project/vllm_engine."""

import pytest
import torch
from accelerate import Accelerator
from conftest import logged, make_config, make_trainer

from trl_cppo.run.sampler_check import DIFFERENCE, SamplerCheck, SamplerMismatchError, reshaping_settings

SETTINGS = {
    "top_p": 0.9, "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1, "vllm_structured_outputs_regex": "[0-9]+",
    "generation_kwargs": {"frequency_penalty": 1.0, "seed": 1},
}  # fmt: skip


def make_check(tmp_path, **settings):
    return SamplerCheck(Accelerator(cpu=True), make_config(tmp_path, **settings))


def tokens(difference):
    """Log-probabilities of 2 x 3 tokens, one of which does not count, and a sampler's that differ by so much."""
    logps = -torch.rand(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return logps, torch.where(mask.bool(), logps - difference, 1e9), mask


def test_the_mean_is_over_the_tokens_that_count(tmp_path):
    check = make_check(tmp_path)
    logps, sampled, mask = tokens(0.01)
    sampled[0, 1] = float("nan")  # vLLM gave none
    check.note(logps, sampled, mask)  # settled at once: the first
    for difference in (0.01, 0.03):
        check.note(*tokens(difference))
    assert check.settle() == pytest.approx(0.02, abs=1e-6)
    assert check.settle() is None


@pytest.mark.parametrize("difference", [0.3, -0.3, float("inf")])
def test_worlds_apart_stop_at_the_first_micro_batch_and_later_when_it_logs(tmp_path, difference):
    with pytest.raises(SamplerMismatchError, match=r"of 5 sampled tokens .* \(max_sampling_logp_difference=0.2\)"):
        make_check(tmp_path).note(*tokens(difference))
    check = make_check(tmp_path)
    check.note(*tokens(0.0))
    check.note(*tokens(difference))
    with pytest.raises(SamplerMismatchError, match="other prompts or images, or by other weights"):
        check.settle()


@pytest.mark.parametrize(("difference", "warnings"), [(0.05, 0), (0.1, 1)])
def test_below_the_limit_it_warns(tmp_path, difference, warnings, monkeypatch):
    seen = []
    monkeypatch.setattr("trl_cppo.run.sampler_check.logger.warning_once", seen.append)
    make_check(tmp_path).note(*tokens(difference))
    assert len(seen) == warnings


@pytest.mark.parametrize("name", SETTINGS)
def test_where_vllm_samples_from_another_distribution_by_intent_it_warns(tmp_path, name, monkeypatch):
    seen = []
    monkeypatch.setattr("trl_cppo.run.sampler_check.logger.warning_once", seen.append)
    check = make_check(tmp_path, **{name: SETTINGS[name]})
    check.note(*tokens(1.0))
    shown = "generation_kwargs['frequency_penalty']" if name == "generation_kwargs" else f"{name}={SETTINGS[name]!r}"
    assert f"; {shown} may make the rest" in seen[0]
    check.note(*tokens(3.0))
    with pytest.raises(SamplerMismatchError, match="differ from the trainer's by 3 nats"):
        check.settle()


@pytest.mark.parametrize("kwargs", [{"seed": 1}, {"stop": ["x"], "bad_words": ["see"]}])
def test_where_it_stops_sampling_is_no_reason(tmp_path, kwargs):
    with pytest.raises(SamplerMismatchError):
        make_check(tmp_path, generation_kwargs=kwargs).note(*tokens(0.3))


def test_a_few_rows_with_images_are_not_lost_among_many_without(tmp_path):
    """Of 16 rows one is sampled behind another prompt."""
    logps, mask = -torch.rand(16, 8), torch.ones(16, 8)
    sampled = logps.clone()
    sampled[5] -= 0.3
    check = make_check(tmp_path)
    check.note(logps, sampled, mask)  # not told which rows have images: 0.02 nats
    check.note(logps, sampled, mask, [int(row == 5) for row in range(16)])
    with pytest.raises(SamplerMismatchError, match="of 8 sampled tokens differ from the trainer's by 0.3 nats"):
        check.settle()
    check.note(logps, logps, mask, [0] * 16)
    assert check.settle() == 0


def test_the_defaults_leave_the_distribution_as_it_is(tmp_path):
    assert reshaping_settings(make_config(tmp_path, temperature=0.7)) == []


def test_without_a_limit_nothing_is_said(tmp_path):
    check = make_check(tmp_path, max_sampling_logp_difference=None)
    check.note(*tokens(5.0))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_is_positive(tmp_path, limit):
    with pytest.raises(ValueError, match="max_sampling_logp_difference must be positive"):
        make_config(tmp_path, max_sampling_logp_difference=limit)


@pytest.mark.parametrize("cpl_coef", [0.0, 0.01])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_trainer_compares_each_micro_batch_that_was_scored_by_the_policy_that_sampled_it(
    tmp_path, cpl_coef, shift
):
    """The trainer's side without vLLM: sampled by transformers, the log-probabilities shifted."""
    trainer = make_trainer(tmp_path, cpl_coef=cpl_coef, num_iterations=2, max_steps=4)
    trainer._sampler_check = SamplerCheck(trainer.accelerator, trainer.args)
    score = trainer._generate_and_score_completions

    def with_sampled(inputs):
        batch = score(inputs)
        num_tokens = batch["completion_ids"].size(1)
        with torch.no_grad():
            logps, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                num_tokens,
                **{
                    name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
                },
            )
        return {**batch, "sampling_per_token_logps": logps - shift}

    trainer._generate_and_score_completions = with_sampled
    if shift:
        with pytest.raises(SamplerMismatchError, match="differ from the trainer's by 1 nats"):
            trainer.train()
        assert trainer.state.global_step == 0
        return
    trainer.train()
    differences = logged(trainer, DIFFERENCE)
    assert len(differences) >= 2 and max(differences) < 1e-5  # off-policy micro-batches do not count

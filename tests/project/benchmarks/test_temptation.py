# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the temptation benchmark is made of: captions, what reads them, the further gates, the rows of each run."""

from types import SimpleNamespace

import torch

from benchmarks.lib import digits_lab as lab
from benchmarks.lib.jobs import seed_by_seed
from benchmarks.temptation import arms, captions
from benchmarks.temptation.__main__ import choice_jobs
from benchmarks.temptation.runs import settings_of
from trl_cppo import CPPOConfig
from trl_cppo.method.objective import Objective
from trl_cppo.method.request import ScoringRequest


def row(named, digits):
    return {"prompt": [{"role": "user", "content": f"{named[0]},{named[1]}.sum?"}], "digits": digits}


def test_canvases_are_the_same_behind_every_caption():
    graded = {name: captions.held_out(name, "test", 12) for name in captions.CONDITIONS}
    pixels = {name: [image.tobytes() for image in rows["image"]] for name, rows in graded.items()}
    assert len({tuple(images) for images in pixels.values()}) == 1
    named = {name: [captions.caption_of(one) for one in rows] for name, rows in graded.items() if name != "absent"}
    digits = graded["right"]["digits"]
    assert named["right"] == digits
    assert all(
        a != b for pair, true in zip(named["wrong"], digits, strict=True) for a, b in zip(pair, true, strict=True)
    )
    assert {message["content"] for [message] in graded["absent"]["prompt"]} == {"sum?"}


def test_what_is_followed_is_a_wrong_digit_that_is_read():
    rows = [row([3, 5], [8, 5]), row([1, 2], [1, 2]), row([4, 4], [9, 0]), row([7, 6], [1, 6])]
    texts = ["<think>see3,5.", "<think>see1,2.", "<think>see9,4.", "nothing"]
    assert captions._followed(texts, rows) == [True, False, True, False]


def test_the_further_gates():
    rows = [row([3, 5], [3, 5]), row([3, 5], [8, 5])]
    assert arms.DisagreementTrainer.keeps(SimpleNamespace(_rows=rows)) == [False, True]
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # right, format
    trainer = SimpleNamespace(rewards=rewards, num_generations=2)
    assert arms.HardTrainer.keeps(trainer) == [True, True, False, False]


def test_low_contrast_tokens_are_left_out(tmp_path):
    torch.manual_seed(0)
    args = CPPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, perception_token_ratio=None)

    def request():
        torch.manual_seed(1)
        logps, entropies = -torch.rand(6, 9) * 3, torch.rand(6, 9)
        return ScoringRequest(rows=[0, 1], mask=torch.ones(2, 9, dtype=torch.bool), logps=logps, entropies=entropies)

    plain, contrasted = request(), request()
    Objective.of(args).answer(plain)
    arms._Contrasted(**vars(Objective.of(args))).answer(contrasted)
    assert plain.selected.all()
    assert torch.equal(contrasted.selected, plain.divergences[1] >= 0.3) and 0 < contrasted.selected.sum() < 18


def test_a_run_on_few_canvases_goes_through_them_in_another_order_each_time():
    rows = lab.training_rows(100, seed=3, few=40)
    images = [image.tobytes() for image in rows["image"]]
    first, second = images[:40], images[40:80]
    assert len(set(first)) == 40 and set(first) == set(second) and first != second and set(images[80:]) < set(first)
    fresh = lab.training_rows(100, seed=3)
    assert len({image.tobytes() for image in fresh["image"]}) == 100


def test_augmented_rows_are_views_of_the_same_canvases():
    plain, augmented = (lab.training_rows(12, seed=3, augmented=augmented) for augmented in (False, True))
    assert plain["digits"] == augmented["digits"] and plain["prompt"] == augmented["prompt"]
    changed = [a.tobytes() != b.tobytes() for a, b in zip(plain["image"], augmented["image"], strict=True)]
    assert 6 < sum(changed) <= 12  # half of the perspectives change nothing


def test_no_seed_that_chose_is_shown_and_no_job_is_done_twice():
    shown, choices = seed_by_seed(arms.ARMS, 3, 5, 60), choice_jobs(60)
    assert len({job.name for job in shown}) == len(shown) == 3 * (5 * len(arms.ARMS) + 1)
    assert not {job.seed for job in shown} & {job.seed for job in choices}
    assert len({job.name for job in choices}) == len(choices)
    pair = next(job for job in shown if job.arm == "cppo_pair")
    settings = settings_of(pair)
    assert (settings["cpl_max_gradient_ratio"], settings["min_entropy_shift"]) == (0.4, 0.15)

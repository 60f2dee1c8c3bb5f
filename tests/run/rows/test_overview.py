# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is said of rows, rollouts and steps before the first step is what the run then does."""

import logging
import time
from collections import Counter

import pytest
from conftest import make_rows, make_trainer, picture
from datasets import Dataset, Image

from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.run.rows import lengths as prompt_lengths
from trl_cppo.run.rows.overview import count_images, images_text, steps_of_an_epoch

NAMES = ("trl_cppo.run.rows.lengths", "trl_cppo.run.rows.overview")


def said(trainer, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO, "trl_cppo"):
        trainer.train()
    return [record.getMessage() for record in caplog.records if record.name in NAMES]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 2},
        {"num_iterations": 2, "shuffle_dataset": False},
        {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "per_device_train_batch_size": 2},
    ],
)
def test_the_steps_of_an_epoch_are_those_of_the_run(tmp_path, caplog, settings):
    seen = []

    def reward(completions, solution, **kwargs):
        seen.extend(solution)
        return [float(i % 2) for i, _ in enumerate(completions)]

    options = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, **settings}
    trainer = make_trainer(
        tmp_path, make_rows([1] * 7), reward_funcs=reward, max_steps=-1, num_train_epochs=1, **options
    )
    line, _ = said(trainer, caplog)
    rows, steps = steps_of_an_epoch(7, trainer.args)
    assert trainer.state.global_step == trainer.state.max_steps == steps
    assert len(seen) == 2 * rows and len(set(seen)) == rows
    assert line.startswith(
        f"Training data: 7 rows; images a row: 1. An epoch: {rows} prompts x 2 = {2 * rows} rollouts in {steps} steps"
    )
    which = "others each epoch" if settings.get("shuffle_dataset", True) else "the last, in every epoch"
    assert (
        f"; left over, since they do not fill a generation batch: {7 - rows} ({which}). This run: 1 epochs, {steps} steps."
        in line
    )


def test_steps_that_are_set_are_said_in_epochs(tmp_path, caplog):
    line, _ = said(
        make_trainer(tmp_path, make_rows([1, 0, 2, 1]), per_device_train_batch_size=4, num_generations=4, max_steps=2),
        caplog,
    )
    assert (
        "images a row: 0 to 2 (rows without one: 1). An epoch: 4 prompts x 4 = 16 rollouts in 4 steps. This run: 2 steps, 0.5 epochs."
        in line
    )


def test_too_few_rows_for_a_step_are_an_error(tmp_path):
    """TRL would end without a step and without a word."""
    trainer = make_trainer(tmp_path, make_rows([1] * 3), per_device_train_batch_size=8, num_generations=2)
    with pytest.raises(
        ValueError,
        match=r"has 3 rows, and a generation batch takes 4 prompts \(8 rollouts, 2 a prompt\): not one step",
    ):
        trainer.train()


@pytest.mark.parametrize("right", [True, False])
def test_the_counts_of_prepare_are_taken_where_they_are_right(tmp_path, caplog, monkeypatch, right):
    rows = make_rows([1] * 5, sizes=[(56, 56), (84, 56), (112, 56), (140, 56), (168, 56)])
    trainer = make_trainer(tmp_path, rows, max_steps=1)
    counts = [trainer.num_prompt_tokens(row) for row in rows]
    assert len(set(counts)) == 5
    trainer.train_dataset = rows.add_column("num_tokens", counts if right else [count + 1 for count in counts])
    looked, original = [], prompt_lengths._sizes
    monkeypatch.setattr(prompt_lengths, "_sizes", lambda *args: (looked.append(1), original(*args))[1])
    _, line = said(trainer, caplog)
    assert line.startswith(
        f"Longest prompt found: {max(counts)} tokens, images included (row {counts.index(max(counts))} of"
    )
    assert (
        f"; median {'' if right else 'about '}{sorted(counts)[2]}. A completion has at most" in line
        and bool(looked) != right
    )


def test_images_are_counted_in_columns_of_all_kinds():
    assert count_images(make_rows([1, 0, 2, 1])) == Counter({1: 2, 0: 1, 2: 1})
    one = Dataset.from_dict({"image": [picture(0), None]}).cast_column("image", Image())
    assert count_images(one) == Counter({1: 1, 0: 1}) and images_text(count_images(one)).endswith(
        "(rows without one: 1)"
    )
    assert count_images(Dataset.from_dict({"image": ["a.png", "b.png"]})) == Counter({1: 2})
    assert count_images(Dataset.from_dict({"images": [["a", "b"], None]})) == Counter({2: 1, 0: 1})
    assert images_text(count_images(Dataset.from_dict({"prompt": ["x"]}))) == "images in the prompts"


def test_a_hundred_thousand_prepared_rows_take_less_than_a_second():
    rows = Dataset.from_dict({"num_tokens": [i % 700 for i in range(100_000)], "images": [["x"]] * 100_000}).shuffle(
        seed=0
    )
    start = time.process_time()
    look = prompt_lengths._counted_rows(rows)
    assert count_images(rows) == {1: 100_000} and len(look.largest) == 3 and time.process_time() - start < 1


def test_reasoning_in_a_solution_is_named_by_trainer_and_reward(tmp_path):
    rows = make_rows([1] * 4).remove_columns("solution")
    rows = rows.add_column("solution", ["1", "2", "<think>3</think> <answer>4</answer>", "5"])
    told = "^Row 2 of the training data set, column 'solution': .* holds reasoning in front of the answer '4'"
    with pytest.raises(ValueError, match=told):
        make_trainer(tmp_path, rows, reward_funcs=boxed_accuracy_reward).train()

    def wrapped(completions, **kwargs):  # which the trainer does not know
        return boxed_accuracy_reward(completions, **kwargs)

    trainer = make_trainer(tmp_path, rows, reward_funcs=wrapped, per_device_train_batch_size=16, num_generations=4)
    with pytest.raises(ValueError, match=told):
        trainer.train()

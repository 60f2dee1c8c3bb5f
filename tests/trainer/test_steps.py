# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which rollouts an optimizer step holds: GRPOTrainer's, whatever is shared and whatever λ is; and what is said of it."""

import logging
import math
from types import MethodType

import pytest
import torch
from conftest import CPPOConfig, generation_batch, logged, make_rows, make_trainer, told
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trl_cppo.scoring.regrouping import regrouped, window_size
from trl_cppo.scoring.shared_prefix import MIN_TOKENS_SAVED, TOKEN_RATIO

LONG = [{"role": "user", "content": "sum? " * 30}]


def long_rows(counts):
    return make_rows(counts).map(lambda row: {"prompt": LONG})


def watched(trainer):
    """By micro-batch: its optimizer step, and its rollouts in their order."""
    seen, compute = [], trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        images = inputs["num_images"]
        rollouts = [
            (images[row], ids.tolist(), advantage)
            for row, (ids, advantage) in enumerate(zip(inputs["completion_ids"], inputs["advantages"].tolist(), strict=True))
        ]  # fmt: skip
        seen.append((trainer.state.global_step, rollouts))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    return seen


def run(tmp_path, settings, grpo=False, rows=None, **ours):
    """The micro-batches of a run whose weights do not move."""
    classes = {"trainer_class": GRPOTrainer, "config_class": GRPOConfig} if grpo else {"suppress_vision_tokens": False}
    torch.manual_seed(0)
    trainer = make_trainer(
        tmp_path, rows or long_rows([1, 2, 3, 1, 2, 1, 3, 2]), learning_rate=0.0, per_device_train_batch_size=4,
        lr_scheduler_type="constant", weight_decay=0.0, **{"max_steps": 8, **settings}, **classes, **ours,
    )  # fmt: skip
    seen = watched(trainer)
    trainer.train()
    return seen, trainer


def by_step(seen):
    steps = {}
    for step, rollouts in seen:
        steps.setdefault(step, []).extend(rollouts)
    return [sorted(rollouts) for _, rollouts in sorted(steps.items())]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps_per_generation": 4, "gradient_accumulation_steps": 1},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 4},
        {"steps_per_generation": 2, "gradient_accumulation_steps": 4},
        {"steps_per_generation": 6, "gradient_accumulation_steps": 4},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
        {"steps_per_generation": 4, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "max_steps": -1},
    ],
    ids=str,
)
def test_optimizer_steps_hold_the_rollouts_of_grpo(tmp_path, settings):
    micro_batches = 2 * settings["steps_per_generation"] * settings.get("num_iterations", 1)  # two generation batches
    settings = {"max_steps": math.ceil(micro_batches / settings["gradient_accumulation_steps"]), **settings}
    grpo, _ = run(tmp_path, settings, grpo=True)
    assert len({len(rollouts) for _, rollouts in grpo}) == 1
    for ours in ({"cpl_coef": 0.01}, {"cpl_coef": 0.0}, {"cpl_coef": 0.01, "share_prefix": False}):
        seen, _ = run(tmp_path, settings, **ours)
        assert by_step(seen) == by_step(grpo), ours


def test_true_regroups_the_whole_generation_batch_and_says_so(tmp_path, caplog):
    settings = {"steps_per_generation": 4, "gradient_accumulation_steps": 1}
    grpo, _ = run(tmp_path, settings, grpo=True)
    with told(caplog):
        seen, _ = run(tmp_path, settings, share_prefix=True)
    assert sorted(sum(by_step(seen)[:4], [])) == sorted(sum(by_step(grpo)[:4], []))
    assert all(len({images for images, *_ in rollouts}) == 1 for _, rollouts in seen)  # of one prompt
    assert by_step(seen) != by_step(grpo)
    assert warnings_of(caplog) == ["hold fewer prompts"]
    with told(caplog):
        make_trainer(tmp_path, share_prefix=True, gradient_accumulation_steps=4)
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("why", "rows", "ours"),
    [
        ("another loss", None, {"loss_type": "bnpo"}),
        ("another loss", None, {"top_entropy_quantile": 0.5}),
        ("another loss", None, {"cpl_reduction": "token"}),
        ("another loss", None, {"cpl_max_gradient_ratio": 0.1}),
        ("nothing saved", make_rows([1] * 8), {"num_generations": 2}),
        ("not packed", None, {"family": "gemma3"}),
    ],
)
def test_auto_leaves_micro_batches_alone_where_it_does_not_pack_or_they_matter(tmp_path, monkeypatch, why, rows, ours):
    monkeypatch.setitem(MIN_TOKENS_SAVED, "cpu", 32)
    settings = {"steps_per_generation": 4, "gradient_accumulation_steps": 4, "max_steps": 2}
    seen, trainer = run(tmp_path, settings, rows=rows, **ours)
    plain, _ = run(tmp_path, settings, rows=rows, **ours, share_prefix=False)
    assert seen == plain
    ratios = logged(trainer, TOKEN_RATIO)
    assert (min(ratios, default=1.0) < 1) == (why == "another loss")  # what lies together is packed all the same


def test_whether_auto_packs_is_foreseen(tmp_path, monkeypatch):
    """Of micro-batches with views, of text and of several prompts: what regrouping reckons is what the scoring does."""
    monkeypatch.setitem(MIN_TOKENS_SAVED, "cpu", 32)
    packed = set()
    for words in range(10, 60, 4):
        rows = make_rows([1, 0, 2, 1]).map(lambda row, n=words: {"prompt": [{"role": "user", "content": "sum? " * n}]})
        trainer = make_trainer(tmp_path, rows, num_generations=2, per_device_train_batch_size=4)
        trainer.current_gradient_accumulation_steps = 1
        for gated in (True, False):
            trainer.args.gate_by_advantage = gated
            batch = generation_batch(trainer)
            trainer.compute_loss(trainer.model, batch)
            packs = trainer._metrics["train"][TOKEN_RATIO].pop() < 1
            assert trainer.shared_prefix.will_pack(batch) == packs
            packed.add(packs)
    assert packed == {True, False}


def test_regrouping_moves_whole_rows(tmp_path):
    trainer = make_trainer(
        tmp_path, make_rows([1, 2, 0, 1], sizes=[(56, 56), (84, 42)]), share_prefix=False, per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    cut = [
        {**batch, "prompt_keys": torch.tensor([hash(tuple(ids)) for ids in batch["prompt_ids"].tolist()])}
        for batch in trainer._buffered_inputs
    ]
    counts = [list(batch["num_images"]) for batch in cut]
    rows = {row_of(batch, place) for batch in cut for place in range(4)}
    again = regrouped(cut)
    assert [list(batch["num_images"]) for batch in cut] == counts  # not modified
    assert {row_of(batch, place) for batch in again for place in range(4)} == rows and len(rows) == 16
    assert [batch["num_images"] for batch in again] != counts
    assert again[0].keys() == cut[0].keys() and again[0]["num_items_in_batch"] is cut[0]["num_items_in_batch"]


def row_of(batch, place):
    images = batch["num_images"]
    before = sum(images[:place])
    entries = [int(grid.prod()) for grid in batch["image_grid_thw"]] if "image_grid_thw" in batch else []
    first, last = sum(entries[:before]), sum(entries[: before + images[place]])
    pixels = batch["pixel_values"][first:last].sum().item() if images[place] else 0.0
    views = batch["cpl_views"][place]
    return (
        tuple(batch["prompt_ids"][place].tolist()), tuple(batch["completion_ids"][place].tolist()), images[place],
        batch["advantages"][place].item(), round(pixels, 2), len(views.removed) if views else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("per_generation", "accumulated", "size"), [(4, 1, 1), (4, 4, 4), (2, 4, 2), (6, 4, 2), (3, 2, 1)]
)
def test_windows_lie_in_one_optimizer_step(per_generation, accumulated, size):
    args = CPPOConfig(
        steps_per_generation=per_generation, gradient_accumulation_steps=accumulated, bf16=False, num_generations=2,
        per_device_train_batch_size=2,
    )  # fmt: skip
    assert window_size(args) == size
    for first in range(0, 12 * size, size):
        assert len({step // accumulated for step in range(first, first + size)}) == 1


def test_a_shuffle_within_a_reward_or_a_failure_changes_nothing(tmp_path):
    import trl.trainer.grpo_trainer as grpo_module

    shuffle, shuffled = grpo_module.shuffle_sequence_dict, []

    def reward(completions, **kwargs):
        shuffled.append(grpo_module.shuffle_sequence_dict({"of a user": list(range(4))})["of a user"])
        if len(shuffled) == 2:
            raise RuntimeError("in the reward")
        return [float(len(completion[0]["content"])) for completion in completions]

    trainer = make_trainer(tmp_path, long_rows([1] * 8), reward_funcs=reward, share_prefix=True)
    with pytest.raises(RuntimeError, match="in the reward"):
        trainer.train()
    assert sorted(shuffled[0]) == [0, 1, 2, 3] and grpo_module.shuffle_sequence_dict is shuffle


# What is said --------------------------------------------------------------------------------------------------------


PARTS = ("hold fewer prompts", "in a row of its own, as GRPOTrainer")


def warnings_of(caplog):
    texts = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    return sorted(part for part in PARTS for text in texts if part in text)


def plain(caplog):
    return {record.getMessage() for record in caplog.records if PARTS[1] in record.getMessage()}


@pytest.mark.parametrize(
    ("ours", "way_out"),
    [
        ({"family": "gemma3"}, "gemma3 cannot: its image tokens attend"),
        ({"attention": "eager"}, "load the model with attn_implementation='sdpa'"),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "should be a multiple of num_generations",
        ),
        ({"neftune_noise_alpha": 5.0}, "unset neftune_noise_alpha"),
    ],
)
def test_what_auto_leaves_plain_is_said_once_at_construction(tmp_path, caplog, ours, way_out):
    from tiny_models import build

    attention = ours.pop("attention", None)
    if attention:
        ours["model"], _ = build("qwen2_5_vl")
        ours["model"].set_attn_implementation(attention)
    with told(caplog):
        trainer = make_trainer(tmp_path, **ours)
        trainer.train()
    [message] = plain(caplog)
    assert way_out in message and "share_prefix=False leaves this message out" in message
    with told(caplog):
        make_trainer(tmp_path, share_prefix=False, **ours)
        make_trainer(tmp_path, cpl_coef=0.0, **ours)
    assert not plain(caplog)


def test_what_auto_never_packs_is_said_at_the_first_log(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(MIN_TOKENS_SAVED, "cpu", 32)
    with told(caplog):
        make_trainer(tmp_path, num_generations=2).train()
    [message] = plain(caplog)
    assert "tokens on average, and below 32 it does not pay" in message
    with told(caplog):
        make_trainer(tmp_path, long_rows([1] * 8)).train()
    assert not plain(caplog)


def test_neftune_has_rows_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="share_prefix=True is not possible: NEFTune.*unset neftune_noise_alpha"):
        make_trainer(tmp_path, share_prefix=True, neftune_noise_alpha=5.0)


# The user's model ------------------------------------------------------------------------------------------------------


def state_of(model):
    implementations = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    # transformers puts some of its own on a model in its first forward, for good.
    hooks = [
        type(hook.__self__).__name__
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if isinstance(hook, MethodType) and type(hook.__self__).__module__.startswith("trl_cppo.")
    ]
    return implementations, sorted(hooks)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "gemma3"])
def test_a_run_leaves_the_model_as_it_was(tmp_path, family):
    from tiny_models import build

    model, _ = build(family)
    before = state_of(model)
    during = []
    for _ in range(3):  # a later trainer inherits nothing
        trainer = make_trainer(
            tmp_path, long_rows([1] * 8), model=model, family=family, max_steps=1, eval_dataset=make_rows([1]),
            per_device_eval_batch_size=4, eval_strategy="steps",
        )  # fmt: skip
        assert state_of(model) == before
        compute = trainer.compute_loss
        trainer.compute_loss = lambda *args, compute=compute, **kwargs: (
            during.append(state_of(model)), compute(*args, **kwargs),
        )[1]  # fmt: skip
        trainer.train()
        assert state_of(model) == before
        trainer.evaluate()
        assert state_of(model) == before
    assert len({repr(state) for state in during}) == 1 and during[0] != before


def test_an_error_and_losses_by_hand_leave_the_model_as_it_was(tmp_path):
    from tiny_models import build

    model, _ = build("qwen2_5_vl")
    before = state_of(model)

    def failing(completions, **kwargs):
        raise RuntimeError("in the reward")

    with pytest.raises(RuntimeError, match="in the reward"):
        make_trainer(tmp_path, model=model, reward_funcs=failing).train()
    assert state_of(model) == before
    trainer = make_trainer(tmp_path, long_rows([1] * 8), model=model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(model, generation_batch(trainer))
    assert trainer._metrics["train"][TOKEN_RATIO][-1] < 1 and state_of(model) != before
    trainer.detach_hooks()
    assert state_of(model) == before
    trainer.compute_loss(model, generation_batch(trainer))
    trainer.train()
    assert state_of(model) == before


def test_a_dataset_that_draws_anew_is_not_regrouped_by_its_keys(tmp_path):
    """Rows of one prompt with other images each: nothing is packed, so nothing moves."""
    from conftest import picture

    def another(rows):
        return {**rows, "images": [[picture(int(torch.randint(10**6, ())))] for _ in rows["prompt"]]}

    rows = Dataset.from_list([{"prompt": LONG, "images": []}] * 4).with_transform(another)
    settings = {"gradient_accumulation_steps": 4, "max_steps": 1, "remove_unused_columns": False}
    seen, trainer = run(tmp_path, settings, rows=rows)
    again, _ = run(tmp_path, settings, rows=rows, share_prefix=False)
    assert seen == again and logged(trainer, TOKEN_RATIO) == [1.0]

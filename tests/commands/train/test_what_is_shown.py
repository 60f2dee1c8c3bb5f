# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-cppo train` shows while it runs and at its end."""

import logging
import shlex
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import make_config, make_rows
from datasets import DatasetDict
from tiny_models import build
from transformers import TrainerControl, TrainerState

from trl_cppo.commands.line.quiet import leave_out_noise
from trl_cppo.commands.prepare.build import write
from trl_cppo.commands.report.command import make_parser
from trl_cppo.commands.train import sampling
from trl_cppo.commands.train.arguments import CPPOScriptArguments
from trl_cppo.commands.train.outcome import closing_lines
from trl_cppo.commands.train.step_lines import StepLines, duration
from trl_cppo.run.card import Hardware

STEP = {"reward": 0.5, "cpl/loss": 1.25, "cpl/gated_ratio": 0.28125, "step_time": 2.0, "grad_norm": 3.0}


@pytest.fixture
def shown(tmp_path, capsys):
    """`shown(event, ...)`: what an event prints, in a run of 200 steps that logs every second one and shows lines five apart or more."""
    clock = SimpleNamespace(now=100.0)
    lines = StepLines(Hardware("CPU (1 thread)", 2, "MULTI_CPU", "no"), 5, lambda: clock.now)
    args = make_config(tmp_path, logging_steps=2)
    state = TrainerState(max_steps=200, logging_steps=2, is_world_process_zero=True, num_input_tokens_seen=0)

    def fire(event, step=None, **kwargs):
        state.global_step = state.global_step if step is None else step
        getattr(lines, event)(args, state, TrainerControl(should_log=kwargs.pop("should_log", False)), **kwargs)
        return capsys.readouterr().out.splitlines()

    fire.clock, fire.state, fire.lines, fire.args = clock, state, lines, args
    return fire


def measure(state, share, step):
    state.log_history.append({"step": step, "held_out_accuracy": share, "held_out_questions": 100})


def test_a_line_says_where_a_training_is(shown):
    measure(shown.state, 0.5, step=0)
    first, before = shown("on_train_begin")
    told = "A line every 6 steps, with their mean reward; all metrics go into metrics.json."
    assert first == f"Training on CPU (1 thread), 2 processes. {told}"
    assert before == "step   0/200  held-out accuracy 0.500 (0.404 to 0.596)"
    for step in (1, 2):
        shown.clock.now = 100.0 + 50 * step
        assert shown("on_step_end", step) == []
    for step, reward in ((2, 0.25), (4, None)):
        assert shown("on_log", step, logs={**STEP, "reward": reward}) == []
    shown.clock.now = 400.0
    # A step takes 50 s with what is measured in between, the first not counted, and 194 of them are left.
    assert shown("on_log", 6, logs=STEP) == ["step   6/200  reward 0.375  about 2 h 42 min left"]
    measure(shown.state, 0.75, step=7)
    assert shown("on_step_end", 7) == [
        "step   7/200  held-out accuracy 0.750 (0.657 to 0.825)"
    ]  # else a step too late
    measure(shown.state, 0.5, step=8)
    assert shown("on_step_end", 8, should_log=True) == []
    [news] = shown("on_log", 8, logs=STEP)  # before its turn, for the sake of the accuracy
    assert news.startswith("step   8/200  reward 0.500  held-out accuracy 0.500 (0.404 to 0.596)  about ")
    assert shown("on_log", 10, logs=STEP) == []
    measure(shown.state, 1.0, step=200)
    assert shown("on_step_end", 200, should_log=True) == []
    assert shown("on_log", logs={**STEP, "reward": float("nan")}) == [
        "step 200/200  reward 0.500  held-out accuracy 1.000 (0.963 to 1.000)"
    ]
    assert shown("on_log", logs={"eval_reward": 0.25, "eval_cpl/loss": 0.125}) == [
        "step 200/200  evaluation: reward 0.250"
    ]
    assert shown("on_log", logs={"train_runtime": 3.0}) == []


def test_other_processes_are_silent_and_a_resumed_run_repeats_nothing(shown):
    for step, share in ((0, 0.5), (4, 0.75)):
        shown.state.global_step = step
        measure(shown.state, share, step)
    assert [line for line in shown("on_train_begin") if "accuracy" in line] == [
        "step   4/200  held-out accuracy 0.750 (0.657 to 0.825)"
    ]
    assert shown("on_log", 6, logs={"reward": None}) == ["step   6/200  reward -"]
    shown.state.is_world_process_zero = False
    assert shown("on_train_begin") == shown("on_log", 12, logs=STEP) == []


@pytest.mark.parametrize(
    ("max_steps", "changes", "often", "steps"),
    [
        (19, {}, "A line every 2 steps, with their mean reward", [2, 4, 6, 8, 19]),  # few: one a log
        (200, {"logging_strategy": "epoch"}, "A line every epoch", [2, 4, 6, 8, 19]),
        (20, {}, "A line every 6 steps, with their mean reward", [6]),
    ],
)
def test_how_often_there_is_a_line(shown, max_steps, changes, often, steps):
    shown.state.max_steps = max_steps
    vars(shown.args).update(changes)
    assert f". {often};" in shown("on_train_begin")[0]
    assert [step for step in (2, 4, 6, 8, 19) if shown("on_log", step, logs=STEP)] == steps


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (600, "10 min"), (7199, "2 h 00 min"), (0.2, "0 s")])
def test_duration(seconds, text):
    assert duration(seconds) == text


# A long generation ----------------------------------------------------------------------------------------------------


def test_a_bar_counts_the_tokens_of_a_generation_and_changes_none(monkeypatch):
    model, _ = build("qwen2_5_vl")
    own, counts = model.generate, []

    class Bar:
        def __init__(self, limit):
            counts.append([0, limit])

        def update(self):
            counts[-1][0] += 1

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(sampling, "_bar", Bar)

    def sample(generate):
        torch.manual_seed(0)
        ids = torch.tensor([[40, 41, 42]] * 3)
        return generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5, do_sample=True
        )

    main, off = SimpleNamespace(is_world_process_zero=True), SimpleNamespace(disable_tqdm=True)
    bar = sampling.SamplingBar()
    bar.on_train_begin(off, main, None, model=model)
    sample(model.generate)
    assert counts == []
    bar.on_train_begin(SimpleNamespace(disable_tqdm=False), main, None, model=model)
    assert torch.equal(sample(model.generate), sample(own)) and counts == [[5, 5]]
    bar.on_train_end(off, main, None, model=model)
    sample(model.generate)
    assert len(counts) == 1


def test_a_short_generation_shows_no_bar(capsys, monkeypatch):
    with sampling._bar(7) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sampling, "PATIENCE", 0.01)
    with sampling._bar(7) as bar:
        bar.mininterval = 0
        time.sleep(0.02)
        bar.update()
    assert "sampling 1 of at most 7 tokens" in capsys.readouterr().err


# Warnings -------------------------------------------------------------------------------------------------------------

NOISE = [
    ("`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, "transformers.training_args"),
    ("`is_gradient_checkpointing` is deprecated and will be removed.", FutureWarning, "transformers.modeling_utils"),
    (
        "`gradient_checkpointing_enable` is deprecated and will be removed.",
        FutureWarning,
        "transformers.modeling_utils",
    ),
    ("`gradient_checkpointing_disable` is deprecated.", FutureWarning, "transformers.modeling_utils"),
    ("'pin_memory' argument is set as true but no accelerator is found", UserWarning, "torch.utils.data.dataloader"),
    ("`torch.distributed.all_gather_into_tensor` is deprecated.", FutureWarning, "torch.distributed.c10d_logger"),
    ("`torch.distributed.reduce_scatter_tensor` is deprecated.", FutureWarning, "torch.distributed.c10d_logger"),
]


def test_only_what_nobody_can_act_on_is_left_out(caplog):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        leave_out_noise()
        for message, category, module in NOISE:
            warnings.warn_explicit(message, category, "file.py", 1, module)
        assert seen == []
        for message, category, module in NOISE:  # of others, of another kind, or with other words
            warnings.warn_explicit(message, category, "file.py", 1, "my_rewards")
            warnings.warn_explicit(message, RuntimeWarning, "file.py", 1, module)
            warnings.warn_explicit(f"Beware: {message}", category, "file.py", 1, module)
        assert len(seen) == 3 * len(NOISE)
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addHandler(caplog.handler)
    try:
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
        logger.warning("The compiler is too old")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"The compiler is too old"}


# The end --------------------------------------------------------------------------------------------------------------


def ending(tmp_path, log, script_args, **settings):
    trainer = SimpleNamespace(args=make_config(tmp_path, **settings), state=TrainerState(log_history=log))
    result, where, then = closing_lines(trainer, SimpleNamespace(**script_args))
    assert where.endswith(f"are in {tmp_path}") and "metrics.json" in where and "README.md" in where
    words = shlex.split(then.removeprefix("Next: "))
    assert words[:2] == ["trl-cppo", "report"]
    [arguments] = make_parser("report").parse_args_into_dataclasses(words[2:])  # it can be typed
    return result, arguments


def test_the_end_says_what_came_of_it_and_what_to_type(tmp_path):
    embedded = {"dataset_name": None}
    log = [
        {"step": step, "held_out_accuracy": share, "held_out_questions": 500}
        for step, share in ((0, 0.712), (4, 0.686))
    ]
    result, report = ending(tmp_path, log, embedded)
    assert result == (
        "Held-out accuracy 0.712 (0.671 to 0.750) -> 0.686 (0.644 to 0.725), steps 0 and 4, on 500 questions; in brackets 95 % "
        "intervals of the questions alone"
    )
    assert (report.dataset, report.split, report.model) == ("digits", "test", str(tmp_path))


def test_the_end_without_held_out_questions(tmp_path):
    make_rows([1]).save_to_disk(tmp_path / "my data")
    own = {
        "dataset_name": str(tmp_path / "my data"), "dataset_config": None, "dataset_train_split": "train",
        "dataset_test_split": "validation", "reward_funcs": ["./my_rewards.py:mine", "think_boxed_format_reward"],
    }  # fmt: skip
    log = [{"step": step, "reward": step / 8} for step in range(1, 6)]
    result, report = ending(tmp_path, log, own, max_pixels=50176, information_removing=["zoom_crop"])
    assert result == "Reward 0.188 -> 0.562: the first and the last 2 values logged, in the mean"
    assert (report.split, report.max_pixels, report.information_removing) == ("train", 50176, ["zoom_crop"])
    assert (report.dataset, report.reward_funcs) == (own["dataset_name"], own["reward_funcs"])
    _, report = ending(tmp_path, log, {**own, "reward_funcs": None}, eval_strategy="steps", eval_steps=1)
    assert (report.split, report.reward_funcs) == ("validation", ["boxed_accuracy_reward"])
    prepared = DatasetDict({split: make_rows([1]) for split in ("train", "validation")})
    write(prepared, tmp_path / "prepared", options={})
    shown = [
        {**own, "dataset_name": str(tmp_path / "prepared"), "dataset_test_split": split}
        for split in ("validation", "test")
    ]
    assert [ending(tmp_path, log, script_args)[1].split for script_args in shown] == ["validation", "train"]
    assert "Reward 0.125 -> 0.250: the first and the last value" in ending(tmp_path, log[:2], own)[0]
    assert "Reward 0.125, logged once" in ending(tmp_path, log[:1], own)[0]
    assert "No reward was logged" in ending(tmp_path, [], own)[0]
    for share, said in ((1.0, True), (0.5, False)):
        equal = [{"step": step, "reward": 0.0, "frac_reward_zero_std": share if step == 2 else 1.0} for step in (1, 2)]
        assert ("nothing was learned" in (hint := ending(tmp_path, equal, own)[0])) == said
        assert "log_completions" not in hint and ("--dry_run" in hint) == said  # not hundreds of lines of tables


@pytest.mark.parametrize("name", ["line_every", "eval_every"])
def test_no_steps_between_lines_are_refused_before_anything_is_trained(name):
    with pytest.raises(ValueError, match=f"{name} counts steps and must be at least 1; got 0"):
        CPPOScriptArguments(dataset_name=None, **{name: 0})

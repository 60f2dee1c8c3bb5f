# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A run that was killed or whose disk ran full goes on from its last checkpoint, as if nothing had been."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import helpers_environment, logged, make_rows, make_trainer, weights
from peft import LoraConfig
from tiny_models import build
from transformers import TrainerCallback
from trl import GRPOConfig

from trl_cppo.run.upstream import RepairedGRPOTrainer

COUNTS = [1, 2] * 8  # images a row; six steps of two prompts stay within the first epoch
# Micro-batches of one prompt's four rollouts: two a step; the second setting reuses each generation batch for two steps.
SETTINGS = {
    "accumulation": dict(gradient_accumulation_steps=2, save_steps=2),
    "iterations": dict(gradient_accumulation_steps=2, num_iterations=2, save_steps=2),
}


def resumable(folder, setting, **kwargs):
    # Dropout is off and CPU kernels are deterministic on one thread; the learning rate decays over all six steps.
    common = dict(per_device_train_batch_size=4, max_steps=6, save_strategy="steps")
    return make_trainer(folder, make_rows(COUNTS), **{**common, **SETTINGS[setting], **kwargs})


def assert_same(first, second):
    for name, value in weights(first).items():
        assert torch.equal(value, dict(second.model.named_parameters())[name]), name


def differs_from_initial(trainer):
    initial = dict(build("qwen2_5_vl")[0].named_parameters())
    return any(not torch.equal(value, initial[name]) for name, value in weights(trainer).items())


class Park(TrainerCallback):
    """Says on stdout that it is between the two micro-batches of step 4, one step behind the checkpoint, and stays."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            print("parked", flush=True)
            time.sleep(600)


def run_until_killed(folder, setting):
    """Train in another process, and kill that process, with SIGKILL, in the middle of step 4."""
    program = [sys.executable, __file__, str(folder), setting]
    child = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=helpers_environment())
    try:
        said = any(line.strip() == "parked" for line in child.stdout)
    finally:
        child.kill()
        child.stdout.close()
        status = child.wait()
    assert said and status == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_in_the_middle_of_accumulation_ends_where_the_unbroken_run_does(tmp_path, setting):
    run_until_killed(tmp_path / "killed", setting)
    assert [folder.name for folder in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = resumable(tmp_path / "killed", setting)
    resumed.train(resume_from_checkpoint=True)
    whole = resumable(tmp_path / "whole", setting)
    whole.train()
    assert differs_from_initial(whole)
    assert_same(whole, resumed)
    for name in ("loss", "cpl/loss", "cpl/gated_ratio", "reward"):
        assert logged(whole, name) == logged(resumed, name)


GRPO = dict(trainer_class=RepairedGRPOTrainer, config_class=GRPOConfig)  # plain, it would not even load the weights
REUSED = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_iterations=2)


@pytest.mark.parametrize(
    "settings, exact",
    [
        # Between the two steps that share a generation batch, GRPOTrainer has lost the batch and draws another.
        pytest.param(REUSED, {1: False, 2: True}, id="within a generation batch"),
        # Its sampler starts with the first epoch's order again, whichever epoch (of four steps) is to go on.
        pytest.param({}, {3: True, 4: False}, id="within an epoch"),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize("classes", [{}, GRPO], ids=["CPPO", "GRPO"])
def test_resumes_exactly_from_where_grpo_does(tmp_path, settings, exact, classes):
    whole = make_trainer(tmp_path / "whole", max_steps=6, save_strategy="steps", save_steps=1, **settings, **classes)
    whole.train()
    for step, same in exact.items():
        resumed = make_trainer(tmp_path / "resumed", max_steps=6, **settings, **classes)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 6
        assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items()) == same


class LeaveRoom(TrainerCallback):
    """After the first checkpoint, fills the disk up but for `room` bytes."""

    def __init__(self, folder, room):
        self.folder, self.room = Path(folder), room

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            size = shutil.disk_usage(self.folder).free - self.room
            (self.folder / "filler").write_bytes(bytes(size))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # pytest's traceback holds a half-written file open


@pytest.mark.slow
@pytest.mark.parametrize("fails_at, room", [("model", 500_000), ("optimizer", 2_500_000)])
def test_full_disk_leaves_the_checkpoint_before_it(small_disk, tmp_path, fails_at, room):
    output = small_disk / "out"
    trainer = resumable(output, "accumulation", callbacks=[LeaveRoom(small_disk, room)])
    with pytest.raises(Exception) as caught:  # safetensors and torch have errors of their own for a full disk
        trainer.train()
    frames = [entry.name for entry in caught.traceback]
    assert ("save_model" in frames) == (fails_at == "model")
    assert ("_save_optimizer_and_scheduler" in frames) == (fails_at == "optimizer")
    assert any("checkpoint-4 could not be written whole" in note for note in caught.value.__notes__)
    assert [folder.name for folder in output.glob("checkpoint-*")] == ["checkpoint-2"]

    (small_disk / "filler").unlink()
    resumed = resumable(output, "accumulation")
    resumed.train(resume_from_checkpoint=True)
    whole = resumable(tmp_path / "whole", "accumulation")
    whole.train()
    assert_same(whole, resumed)


def test_checkpoint_cut_short_by_a_kill_is_passed_over(tmp_path):
    whole = resumable(tmp_path / "out", "accumulation")
    whole.train()
    state = tmp_path / "out" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])  # killed while it wrote its last file
    (tmp_path / "out" / "checkpoint-8").mkdir()  # and before its first
    resumed = resumable(tmp_path / "out", "accumulation", save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert len(logged(resumed, "loss")) == 6  # four from the state of checkpoint-4, two of its own
    assert_same(whole, resumed)


def test_no_complete_checkpoint_is_an_error(tmp_path):
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ValueError, match="out holds no complete checkpoint to resume from"):
        resumable(tmp_path / "out", "accumulation").train(resume_from_checkpoint=True)


def test_complete_checkpoint_survives_an_error_behind_it(tmp_path, monkeypatch):
    def fail(**kwargs):
        raise OSError("the Hub is down")

    monkeypatch.setattr("transformers.trainer.rotate_checkpoints", fail)  # comes after the last file
    with pytest.raises(OSError, match="the Hub is down") as caught:
        resumable(tmp_path / "out", "accumulation").train()
    assert json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    assert not hasattr(caught.value, "__notes__")


def told(caplog):
    said = [record for record in caplog.records if "training goes on with its weights" in record.getMessage()]
    assert all(record.levelname == "WARNING" for record in said)
    return [record.getMessage() for record in said]


STATES = {
    ("optimizer.pt",): "optimizer and the learning rate's schedule",
    ("scheduler.pt",): "optimizer and the learning rate's schedule",  # Trainer loads both or none
    ("rng_state.pth",): "random number generators",
    ("optimizer.pt", "rng_state.pth"): "optimizer and the learning rate's schedule and the random number generators",
    (): None,
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_state_that_a_checkpoint_does_not_hold_is_said_once(tmp_path, caplog, lora):
    peft_config = LoraConfig(target_modules=["q_proj"]) if lora else None
    settings = dict(max_steps=2, save_steps=1, peft_config=peft_config)
    whole = resumable(tmp_path / "whole", "accumulation", **settings)
    whole.train()
    for number, (missing, said) in enumerate(STATES.items()):
        shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / str(number))
        for name in missing:
            (tmp_path / str(number) / name).unlink()
        caplog.clear()
        resumed = resumable(tmp_path / "resumed", "accumulation", **settings | {"save_strategy": "no"})
        resumed.train(resume_from_checkpoint=str(tmp_path / str(number)))
        assert resumed.state.global_step == 2
        if said is None:
            assert told(caplog) == []
            assert_same(whole, resumed)
        else:
            [line] = told(caplog)
            assert f"{number} holds no state of the {said} (save_only_model" in line


def test_a_checkpoint_of_weights_alone_says_so(tmp_path, caplog):
    settings = dict(max_steps=2, save_steps=1)
    resumable(tmp_path, "accumulation", **settings, save_only_model=True).train()
    resumable(tmp_path, "accumulation", **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(told(caplog)) == 1


def falling_reward(completion_ids, trainer_state, **kwargs):
    return [i % 2 - 100.0 * trainer_state.global_step for i in range(len(completion_ids))]


def test_a_run_without_a_best_checkpoint_says_so(tmp_path, caplog):
    settings = dict(
        save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="reward",
        greater_is_better=True, eval_dataset=make_rows([1]), num_generations_eval=2, per_device_eval_batch_size=2,
        reward_funcs=falling_reward,
    )  # fmt: skip
    resumable(tmp_path, "accumulation", max_steps=2, **settings).train()
    assert "the best" not in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-1")  # the best
    trainer = resumable(tmp_path, "accumulation", max_steps=3, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint is None
    assert "no checkpoint was the best. The model has its last weights" in caplog.text


if __name__ == "__main__":
    resumable(sys.argv[1], sys.argv[2], callbacks=[Park()]).train()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`trl-cppo train --dry_run`: what it shows is what the run would train on, and nothing is changed."""

import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import hash_reward, make_rows, make_trainer
from fixed_rollouts import FixedRollouts
from PIL import Image
from tiny_models import build

from benchmarks.learning.arms import PAPOTrainer
from trl_cppo.__main__ import main
from trl_cppo.commands.train import command
from trl_cppo.commands.train.dry_run import DryRunTrainer

OWN = [
    "--use_cpu", "--bf16", "False", "--max_steps", "1", "--per_device_train_batch_size", "4", "--num_generations", "2",
    "--max_completion_length", "6", "--report_to", "none", "--output_dir", "out", "--gradient_accumulation_steps", "2",
]  # fmt: skip


class FixedDryRun(FixedRollouts, DryRunTrainer):
    pass


def even_reward(completion_ids, **kwargs):
    return [None if len(ids) == 4 else float(len(ids) % 2 == 0) for ids in completion_ids]


def test_one_batch_is_shown_and_no_weight_moves(tmp_path, capsys, monkeypatch):
    model, processor = build("qwen2_5_vl")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(
        tmp_path / "out", make_rows([0, 1, 2, 0], sizes=[(84, 42)]), FixedDryRun, model=model, reward_funcs=[hash_reward, even_reward],
        reward_weights=[0.5, 2.0], gradient_accumulation_steps=4, per_device_train_batch_size=4, max_steps=9, save_strategy="steps", save_steps=1,
        logging_steps=1, shuffle_dataset=False,
    )  # fmt: skip
    told = []  # to DeepSpeed, which updates where gradients are synchronized
    backward = trainer.accelerator.backward
    monkeypatch.setattr(
        trainer.accelerator,
        "backward",
        lambda *args, **kwargs: (told.append(trainer.accelerator.sync_gradients), backward(*args, **kwargs)),
    )
    trainer.train()
    text = capsys.readouterr().out
    assert told == [False] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(value.grad.abs().sum() for value in model.parameters() if value.grad is not None) > 0
    assert not trainer.optimizer.state and trainer.state.global_step == 0 and not hasattr(trainer, "logged")
    assert [path.name for path in tmp_path.iterdir()] == ["out-dry-run.png"]

    [row] = {int(row) for row in re.findall(r"Prompt \(row (\d) of the training data set\)", text)}
    rollouts = [place for place in range(16) if place // 4 == row]
    shown = re.search(r"Completion:\n    (.*)\n", text)[1]
    [place] = [place for place in rollouts if processor.tokenizer.decode(trainer.completion(0, place)) == shown]
    ids = trainer.completion(0, place)
    [hashed], [even] = hash_reward(None, [ids]), even_reward([ids])
    even = "none" if even is None else f"{even:g}"
    assert f"Rewards: hash_reward {hashed:g}, even_reward {even} (weights 0.5, 2)" in text
    assert f"advantage {trainer._logs['advantages'][place]:+.2f}: with views" in text
    images = {1: 1, 2: 2}[row]  # not a row without
    prompt = len(processor.tokenizer("sum?")["input_ids"])
    sentences = re.search(r"prompt (\d+), of them (\d+) of images; completion (\d+) of at most 6", text)
    assert int(sentences[2]) == 18 * images and int(sentences[3]) == len(ids)
    assert int(sentences[1]) >= 18 * images + prompt
    assert "Batch: 16 rollouts, 4 a prompt, 8 with images" in text and "; 4 micro-batches of 4 rows;" in text
    megabytes = float(re.search(r"Peak so far: ([\d.]+) (?:M|G)iB of resident memory of the process;", text)[1])
    assert megabytes > 0 and "GRPO's peak" not in text
    with Image.open(tmp_path / "out-dry-run.png") as picture:
        kept, *_ = (np.asarray(picture)[:126, start : start + 252] for start in (0, 260, 520))
        assert picture.size == (3 * 252 + 16, 126 * images + 8 * (images - 1))  # 84 x 42, enlarged
    original = trainer.train_dataset[row]["images"][0].convert("RGB").resize((252, 126), Image.Resampling.NEAREST)
    assert np.array_equal(kept, np.asarray(original))


def test_views_are_shown_of_a_rollout_that_is_not_gated(tmp_path, capsys):
    equal = make_trainer(tmp_path / "out", trainer_class=FixedDryRun, reward_funcs=lambda completions, **_: [1.0] * 8)
    equal.train()
    text = capsys.readouterr().out
    assert "advantage +0.00: without a contrastive loss" in text and "would have had" in text
    assert "No rollout had views, so it is GRPO's peak" in text and (tmp_path / "out-dry-run.png").is_file()


def test_out_of_memory_says_what_to_do(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = make_trainer(tmp_path / "out", trainer_class=FixedDryRun, reward_funcs=fail)
    with pytest.raises(ValueError, match="out of GPU memory while computing rewards. Set per_device_train_batch_size"):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_a_real_run_follows_into_the_same_folder(random_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_rows([1, 0, 2, 1]).save_to_disk("data")
    (tmp_path / "own.py").write_text(
        "def own(completion_ids, **kwargs):\n    return [float(sum(ids) % 7) for ids in completion_ids]\n"
    )
    command = [
        "train",
        "--model_name_or_path",
        str(random_model),
        "--dataset_name",
        "data",
        "--reward_funcs",
        "./own.py:own",
        *OWN,
    ]
    main([*command, "--dry_run"])
    text = capsys.readouterr().out
    assert "Batch: 8 rollouts, 2 a prompt, 6 with images" in text and "2 micro-batches" in text
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"data", "own.py", "out-dry-run.png"}
    main(command)
    assert (tmp_path / "out" / "metrics.json").is_file()
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    main([*command, "--dry_run"])
    assert written == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="dry run: the checkpoint has made all steps of this run"):
        main([*command, "--dry_run", "--resume_from_checkpoint", "true"])


@pytest.mark.slow  # two processes
def test_the_main_process_tells_of_several(random_model, tmp_path):
    make_rows([1, 0, 2, 1] * 2).save_to_disk(tmp_path / "data")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "trl_cppo", "train"]
    own = ["--model_name_or_path", str(random_model), "--dataset_name", "data", "--dry_run", *OWN]
    result = subprocess.run(
        [*launch, *own], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Dry run:") == 1 and "Batch: 8 rollouts on the main of 2 processes" in result.stdout
    assert "of the process with the most" in result.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flags", "trained"), [([], PAPOTrainer), (["--dry_run"], DryRunTrainer)])
def test_a_baselines_class_is_trained_by_the_same_command(flags, trained, tmp_path, monkeypatch):
    """As benchmarks/papo.py does it."""
    given = []
    monkeypatch.setattr(command, "job_from_arguments", lambda *arguments: None)
    monkeypatch.setattr(command, "make_trainer", lambda *arguments: given.extend(arguments) or 1 / 0)
    arguments = ["--use_cpu", "--bf16", "False", "--model_name_or_path", "m", "--dataset_name", "d"]
    monkeypatch.setattr(
        sys, "argv", ["papo.py", *arguments, *flags, "--output_dir", str(tmp_path), "--cpl_coef", "0.02"]
    )
    with pytest.raises(ZeroDivisionError):
        runpy.run_module("benchmarks.papo", run_name="__main__")
    assert given[-1] is trained and given[1].cpl_coef == 0.02

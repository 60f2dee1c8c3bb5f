# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-cppo train` does with an output folder in which another run has left something, and with a run that is stopped."""

import os
from types import SimpleNamespace

import pytest
from conftest import make_rows, make_trainer
from peft import LoraConfig
from transformers import TrainerState

from trl_cppo.commands.line import running
from trl_cppo.commands.train.folders import check_output_folder, checkpoint_to_go_on_from, end_interrupted
from trl_cppo.run.checkpoints import last_complete_checkpoint


def checkpoint(folder, step, seconds):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    TrainerState(global_step=step).save_to_json(str(path / "trainer_state.json"))
    os.utime(path / "trainer_state.json", (seconds, seconds))
    return str(path)


def test_what_a_run_goes_on_from(tmp_path):
    first, last = checkpoint(tmp_path, 2, 100), checkpoint(tmp_path, 4, 200)
    assert checkpoint_to_go_on_from(None) is None and checkpoint_to_go_on_from("True") is True
    assert checkpoint_to_go_on_from(first) == first
    with pytest.raises(FileNotFoundError, match="there is no folder none"):
        checkpoint_to_go_on_from("none")
    with pytest.raises(ValueError, match=f"is no checkpoint. Its last one is {last}: name that"):
        checkpoint_to_go_on_from(str(tmp_path))


def test_of_two_runs_in_one_folder_none_is_gone_on_with_unasked(tmp_path):
    checkpoint(tmp_path, 2, 100)
    late = checkpoint(tmp_path, 8, 200)
    assert last_complete_checkpoint(str(tmp_path)) == late
    newer = checkpoint(tmp_path, 4, 300)
    with pytest.raises(ValueError, match=f"{late} is older than {newer}, so they are of two runs"):
        last_complete_checkpoint(str(tmp_path))


@pytest.mark.parametrize("lora", [False, True])
def test_what_an_earlier_run_left_is_told_and_models_of_two_kinds_are_not_mixed(tmp_path, caplog, lora):
    trainer = make_trainer(
        tmp_path, make_rows([1, 1]), peft_config=LoraConfig(target_modules=["q_proj"]) if lora else None
    )
    check_output_folder(trainer, goes_on=False)
    checkpoint(tmp_path, 8, 100)
    check_output_folder(trainer, goes_on=True)
    assert not caplog.records
    check_output_folder(trainer, goes_on=False)
    assert "holds checkpoints of an earlier run, the last at checkpoint-8" in caplog.text
    mine, others = ("adapter_config.json", "model-00001-of-00002.safetensors")[:: 1 if lora else -1]
    (tmp_path / mine).touch()
    check_output_folder(trainer, goes_on=True)
    (tmp_path / others).touch()
    with pytest.raises(ValueError, match=f"of an earlier run \\({others}\\)"):
        check_output_folder(trainer, goes_on=True)


def test_a_stopped_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    trainer = make_trainer(tmp_path, make_rows([1, 1]), max_steps=1, save_strategy="steps", save_steps=1)
    for told in (r"No checkpoint was written", r"checkpoint-1: the same command with --resume_from_checkpoint true"):
        with pytest.raises(SystemExit) as stopped:
            end_interrupted(trainer, "trl-cppo train")
        assert stopped.value.code == 130 and told in capsys.readouterr().err
        trainer.train()
    frozen = make_trainer(tmp_path, make_rows([1, 1]), max_steps=2, freeze=["vision_tower"])
    with pytest.raises(ValueError, match="^loaded state dict"):  # which the command explains
        frozen.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

    def stop(arguments, program):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "import_module", lambda name: SimpleNamespace(main=stop))
    with pytest.raises(SystemExit) as stopped:
        running.run_command("evaluate", [], "trl-cppo evaluate")
    assert stopped.value.code == 130 and capsys.readouterr().err.endswith("trl-cppo evaluate: stopped.\n")

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What stands beside weights and metrics (card, picture, table of completions, upload) may fail; a checkpoint is never lost for it.

Also a program: `torchrun --nproc_per_node 2 tests/run/test_decorations.py FOLDER` trains on two processes, the first of which
cannot write any of it.
"""

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pandas
import pytest
import torch
import torch.distributed as dist
from conftest import helpers_environment, logged, make_trainer, picture, weights
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig
from PIL import Image
from transformers import TrainerState

from trl_cppo.method.views import to_rgb
from trl_cppo.run.card import CardExample
from trl_cppo.run.weights import load_model, restore

SETTINGS = dict(max_steps=2, save_strategy="steps", save_steps=1, log_completions=True)


class Broken(Exception):
    pass


def fail(*args, **kwargs):
    raise Broken("not today")


def make(output, **kwargs):
    trainer = make_trainer(output, **SETTINGS | kwargs)
    trainer.card_example = CardExample(picture(0), "sum?")
    return trainer


def assert_whole(trainer, output):
    """Both checkpoints can be resumed from, and the last one holds the weights that the run ended with."""
    assert trainer.state.global_step == 2 and len(logged(trainer, "loss")) == 2
    for step in (1, 2):
        folder = output / f"checkpoint-{step}"
        assert TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step == step
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {path.name for path in folder.iterdir()}
    expected = weights(trainer)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    restore(trainer.model, output / "checkpoint-2")
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())


# What is replaced by a failure; what the warning names.
FAILURES = {
    "TRL's card": ("trl.trainer.base_trainer.generate_model_card", "the model card"),
    "text of the card": ("trl_cppo.run.card.model_card.quick_start", "the model card"),
    "picture of the card": ("trl_cppo.run.card.model_card.plot_training", "the model card"),
    "example of the card": ("PIL.Image.Image.save", "the model card"),
    "file of the card": ("huggingface_hub.ModelCard.save", "the model card"),
    "table on the screen": ("trl.trainer.grpo_trainer.print_prompt_completions_sample", "the table of completions"),
    "table in a file": ("pandas.DataFrame.to_parquet", "the table of completions"),
    "contents of the table": ("trl_cppo.run.upstream.even_contents", "the table of completions"),
}


CASES = [(name, False) for name in FAILURES] + [(name, True) for name in FAILURES if name.endswith("card")][:2]


@pytest.mark.parametrize(("name", "adapters"), CASES)
def test_a_failed_decoration_loses_no_checkpoint(tmp_path, monkeypatch, caplog, name, adapters):
    replaced, named = FAILURES[name]
    peft_config = LoraConfig(target_modules=["q_proj"]) if adapters else None
    trainer = make(tmp_path, peft_config=peft_config)
    monkeypatch.setattr(replaced, fail)
    trainer.train()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"Failed: {named}" in text and "Broken: not today" in text for text in warnings), warnings
    monkeypatch.undo()
    assert_whole(trainer, tmp_path)
    if "table" not in name:
        monkeypatch.setattr(replaced, fail)
        with pytest.raises(Broken):  # the user asked for it
            trainer.create_model_card()
        trainer.save_model(str(tmp_path / "end"))  # for the weights, in the first place
        monkeypatch.undo()
        restore(trainer.model, tmp_path / "end")
    assert (
        not (tmp_path / "checkpoint-2" / "README.md").exists()
        or "cpl_coef" in (tmp_path / "checkpoint-2" / "README.md").read_text()
    )  # never PEFT's, with the local path of the base model


def test_an_error_of_the_metrics_is_no_failed_decoration(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    monkeypatch.setattr("transformers.Trainer.log", fail)
    with pytest.raises(Broken):
        trainer.train()


def test_a_tracker_that_fails_is_no_failed_decoration(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    monkeypatch.setattr(trainer.callback_handler, "on_log", fail)
    with pytest.raises(Broken):
        trainer.train()


def test_an_older_card_that_cannot_be_read_does_not_keep_adapters_from_being_saved(tmp_path):
    trainer = make_trainer(tmp_path / "out", peft_config=LoraConfig(target_modules=["q_proj"]))
    (tmp_path / "end").mkdir()
    (tmp_path / "end" / "README.md").write_text("---\n: [\n---\n")
    trainer.save_model(str(tmp_path / "end"))
    restore(trainer.model, tmp_path / "end")
    assert ModelCard.load(tmp_path / "end" / "README.md").data.library_name == "peft"
    trainer.model.save_pretrained(tmp_path / "by_hand")  # PEFT's own is back where the user asks for it
    assert (tmp_path / "by_hand" / "README.md").is_file()


# The picture ----------------------------------------------------------------------------------------------------------

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_an_example_of_any_mode_is_shown_as_the_model_sees_it(tmp_path, mode):
    trainer = make_trainer(tmp_path)
    colours = picture(0, 32, 32)
    image = colours.convert(mode) if mode not in ("LAB", "PA", "RGBa", "I;16") else None
    image = (
        image
        or {
            "LAB": lambda: Image.merge("LAB", colours.split()),
            "PA": lambda: Image.merge("LA", colours.split()[:2]).convert("PA"),
            "RGBa": lambda: colours.convert("RGBA").convert("RGBa"),
            "I;16": lambda: colours.convert("I").convert("I;16"),
        }[mode]()
    )
    assert image.mode == mode
    trainer.card_example = CardExample(image, "sum?")
    trainer.create_model_card()
    with Image.open(tmp_path / "example.png") as shown:
        assert shown.mode == "RGB" and shown.tobytes() == to_rgb(image).tobytes()


def test_a_transparent_palette_and_a_picture_of_cmyk_in_a_run(tmp_path):
    image = Image.new("P", (56, 56), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.info["transparency"] = 1
    for example in (image, picture(1).convert("CMYK")):
        trainer = make(tmp_path)
        trainer.card_example = CardExample(example, "sum?")
        trainer.train()
        with Image.open(tmp_path / "checkpoint-2" / "example.png") as shown:
            assert shown.tobytes() == to_rgb(example).tobytes()
        assert_whole(trainer, tmp_path)


# Uploads --------------------------------------------------------------------------------------------------------------


class Repository(str):
    repo_id = "someone/out"


@pytest.mark.parametrize("later", [False, True], ids=["at once", "in the background"])
def test_an_upload_that_fails_is_told_and_the_run_goes_on(tmp_path, monkeypatch, caplog, later):
    def upload(self, run_as_future=False, **kwargs):
        if not (later and run_as_future):
            fail()
        job = Future()
        job.set_exception(Broken("not today"))
        return job

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: Repository("url"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    trainer = make(tmp_path, push_to_hub=True, hub_model_id="out", hub_strategy="all_checkpoints")
    trainer.train()
    assert_whole(trainer, tmp_path)
    with pytest.raises(Broken):
        trainer.push_to_hub()
    load_model(tmp_path)  # which was written first
    told = [record.getMessage() for record in caplog.records if "Failed:" in record.getMessage()]
    # Each once: in the background two a checkpoint, the folder's and the checkpoint's own.
    assert len(told) == (4 if later else 2) and all("upload" in text and "not today" in text for text in told), told


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_do_not_wait_for_the_one_that_decorates(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    environment = helpers_environment()
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and "both ended" in done.stdout, done.stderr[-3000:]
    assert "Failed: the model card" in done.stderr and "Failed: the table of completions" in done.stderr
    assert "Failed: the upload" in done.stderr
    assert TrainerState.load_from_json(str(tmp_path / "checkpoint-2" / "trainer_state.json")).global_step == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    load_model(tmp_path / "checkpoint-2")


def main(folder):
    HfApi.create_repo = lambda *args, **kwargs: Repository("url")
    trainer = make(Path(folder), push_to_hub=True, hub_model_id="out", per_device_train_batch_size=4)
    if trainer.accelerator.is_main_process:
        HfApi.upload_folder = ModelCard.save = pandas.DataFrame.to_parquet = fail
    trainer.train()
    steps = torch.tensor(trainer.state.global_step)
    dist.all_reduce(steps)
    if trainer.accelerator.is_main_process and steps == 4:
        print("both ended", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo may abort an interpreter that winds up


if __name__ == "__main__":
    main(sys.argv[1])

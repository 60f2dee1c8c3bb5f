# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Every documented command runs as it stands in the documentation, with the stand-ins of stand_ins.py and no others.

They run in the order of the pages, in one folder, as somebody would who follows them: a command may need what those
before it made, so run the whole file.
"""

import json
import math
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from conftest import free_port
from documented import Command, nodes_of, to_rehearse
from hub import Hub
from stand_ins import (
    HAS_VLLM,
    MADE_BY,
    STEPS,
    environment,
    fake_hub,
    processes_of,
    recipe_file,
    rehearsed,
    started,
    working_folder,
)
from transformers import AutoModelForImageTextToText

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 1500)]
GROUPS = nodes_of(to_rehearse())
LIMIT = 1500  # seconds for one command, which takes 5 to 60; only a guard against hanging


@dataclass
class Sandbox:
    """A folder in which documented commands run, and what their processes need."""

    folder: Path
    cache: Path
    pushed: Path
    ops: Path

    def run(self, *commands: list[str]) -> None:
        """Start the commands at once, and fail with what they printed unless all end well."""
        logs = [self.folder / f"log-{place}.txt" for place in range(len(commands))]
        uploads = any("--push_to_hub" in command or command[0].endswith("/hf") for command in commands)
        with Hub(self.pushed, self.cache) as hub:
            variables = environment(self.cache, hub.address if uploads else None) | {
                "TORCH_EXTENSIONS_DIR": str(self.ops)
            }
            processes = []
            for command, log in zip(commands, logs, strict=True):
                with log.open("w") as output:
                    options = dict(cwd=self.folder, env=variables, stdout=output, stderr=output)
                    processes.append(subprocess.Popen(command, **options))
            try:
                codes = [process.wait(LIMIT) for process in processes]
            finally:
                for process in processes:
                    process.terminate()  # torchrun passes it on; nothing happens to what has ended
        texts = [log.read_text() for log in logs]
        assert not any(codes), "\n".join(f"{code}: {text[-5000:]}" for code, text in zip(codes, texts, strict=True))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, deepspeed_ops):
    root = tmp_path_factory.mktemp("rehearsals")
    return Sandbox(working_folder(root / "checkout"), fake_hub(root / "cache"), root / "pushed", deepspeed_ops)


def option(words: list[str], name: str, default: str | None = None) -> str | None:
    return words[words.index(name) + 1] if name in words else default


def case(commands: list[Command]):
    """A rehearsal, marked where vLLM samples or the data for it are made."""
    marks = [pytest.mark.vllm] if "virl39k" in commands[0].text.lower() else []
    return pytest.param(commands, id=str(commands[0]), marks=marks)


@pytest.mark.parametrize("commands", map(case, GROUPS))
def test_the_command_runs(sandbox, commands):
    port = free_port()
    for file in commands[0].words:
        if file in MADE_BY:
            sandbox.run(rehearsed(shlex.split(MADE_BY[file]), port))
    runs = [rehearsed(command.words, port) for command in commands]
    words = runs[0]
    trains = started(words) == "train" and "--dry_run" not in words
    if trains and "--resume_from_checkpoint" not in words:
        for left in (sandbox.folder / output_of(words)).glob("checkpoint-*"):  # by a command before this one
            shutil.rmtree(left)
    left = kept_by(sandbox.folder / output_of(words)) if "--dry_run" in words else {}
    sandbox.run(*runs)
    if trains:
        check_training(sandbox.folder / output_of(words), commands, int(option(words, "--max_steps")))
        if (
            commands[0].place.startswith("examples/configs/") and not HAS_VLLM
        ):  # a recipe also goes on from its checkpoint
            more = [word for word in words if word != "--push_to_hub"]
            sandbox.run([*more, "--max_steps", str(STEPS + 1), "--resume_from_checkpoint", "true"])
            check_training(sandbox.folder / output_of(words), commands, STEPS + 1)
    if "--push_to_hub" in words or "upload" in words:
        pushed = sandbox.pushed / option(words, "--hub_model_id", option(words, "upload"))
        assert (pushed / "README.md").is_file()
        AutoModelForImageTextToText.from_pretrained(pushed)
    if "--dry_run" in words:
        output = sandbox.folder / output_of(words)
        assert output.with_name(f"{output.name}-dry-run.png").is_file() and kept_by(output) == left
    if "--output" in words:
        assert (sandbox.folder / option(words, "--output")).exists()


def kept_by(folder: Path) -> dict[Path, int]:
    """The files of a folder and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def output_of(words: list[str]) -> str:
    recipe = recipe_file(option(words, "--config", "digits"))
    return option(words, "--output_dir", yaml.safe_load(recipe.read_text())["output_dir"])


def check_training(output: Path, commands: list[Command], steps: int) -> None:
    """It trained with the CPL on as many processes as asked for, and left a model that loads, and its card."""
    report = json.loads((output / "metrics.json").read_text())
    is_baseline = (
        "benchmarks.papo" in commands[0].words
    )  # of another loss: no card that would call it CPPO, and no CPL
    assert report["steps"] == steps and (output / "README.md").is_file() == (not is_baseline)
    checkpoint = output / f"checkpoint-{steps}"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(range(1, steps + 1))
    assert all(math.isfinite(float(entry[name])) for entry in logged for name in ("loss", "grad_norm"))
    if option(commands[0].words, "--cpl_coef") != "0" and not is_baseline:
        assert max(float(entry["cpl/gated_ratio"]) for entry in logged) > 0  # else the rehearsal shows nothing
    if float(report["settings"].get("beta", 0)):
        assert all("kl" in entry for entry in logged)
    processes = max(processes_of(command.words) for command in commands)
    assert len(list(checkpoint.glob("rng_state*.pth"))) == processes
    text = commands[0].text
    if "zero" in text:
        assert len(list(checkpoint.glob("global_step*/*_optim_states.pt"))) == processes
    if "--use_fsdp" in text:
        assert list(checkpoint.glob("pytorch_model_fsdp*"))  # else it was DDP
    adapter = (output / "adapter_config.json").is_file()
    assert adapter == ("use_peft" in text or "lora" in text)
    if not adapter:
        model, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert all(value.numel() and torch.isfinite(value).all() for value in model.parameters())

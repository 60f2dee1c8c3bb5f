# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The README's command that shows sharding on any machine, on a small batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "examples" / "accelerate_configs"


def test_embedded_run_under_zero3(tmp_path, warm_model, deepspeed_ops):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu_zero3.yaml")]
    command += ["--main_process_port", "0", str(ROOT / "examples" / "train_cppo.py"), "--use_cpu", "--max_steps", "2"]
    command += ["--per_device_train_batch_size", "16", "--eval_canvases", "8", "--save_steps", "2"]
    command += ["--output_dir", str(tmp_path)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(deepspeed_ops)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]

    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 2
    assert (tmp_path / "training.png").exists()
    shards = list((tmp_path / "checkpoint-2").glob("global_step*/zero_pp_rank_*_optim_states.pt"))
    assert len(shards) == 2  # ZeRO-3 was used, by two processes
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(value.numel() and torch.isfinite(value).all() for value in model.parameters())


@pytest.mark.parametrize(("name", "stage"), [("deepspeed_zero2", 2), ("deepspeed_zero3", 3)])
def test_gpu_configs_are_what_their_names_say(name, stage):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert config["deepspeed_config"]["zero_stage"] == stage
    assert (config["num_processes"], config["mixed_precision"]) == (8, "bf16")

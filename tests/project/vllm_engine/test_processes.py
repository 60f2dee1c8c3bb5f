# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Two processes under DDP, each with an engine of its own. (One engine over two: the recipes, tests/project/rehearsals.)"""

import os
import subprocess
import sys
from pathlib import Path

import engine  # noqa: F401  (skips this file where vLLM is not installed)
import pytest
from transformers import TrainerState

from trl_cppo.run.sampler_check import DIFFERENCE

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def test_two_processes_sample_each_with_an_engine(tmp_path, vllm_models):
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", "0", str(ROOT / "examples" / "train_cppo.py"), "--use_cpu", "--bf16", "False",
        "--model_name_or_path", str(vllm_models("qwen2_5_vl")), "--dataset_name", "digits", "--use_vllm", "True",
        "--vllm_max_model_length", "512", "--max_completion_length", "12", "--num_generations", "4",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1", "--learning_rate", "1e-2",
        "--max_steps", "3", "--save_steps", "3", "--logging_steps", "1", "--report_to", "none", "--output_dir",
        str(tmp_path), "--reward_funcs", "think_boxed_format_reward",
    ]  # fmt: skip
    left = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # by engines of this process
    environment = {name: value for name, value in os.environ.items() if name not in left}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-5000:]
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-3" / "trainer_state.json"))
    apart = [float(entry[DIFFERENCE]) for entry in state.log_history if DIFFERENCE in entry]
    assert len(apart) == 3 and max(apart) < 0.1  # the ban on placeholders renormalises much in 47 tokens

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
How far vLLM's log-probabilities lie from the trainer's where all is right, and where something is wrong.

    PYTHONPATH=$PWD:$PWD/tests/project/vllm_engine/site TINY_HEAD_SIZE=32 python tests/project/vllm_engine/noise.py

in the environment that `.ci/run` makes for these tests. A digits model of 0.36 M parameters is trained first, as the
embedded run's warm start but with heads that vLLM's attention on a CPU has (a few minutes). Each line is the mean and the largest
difference in nats over 512 rollouts of 16 held-out canvases, sampled at temperature 1.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parent))

import engine
import torch
from tiny_models import build
from trl.generation.vllm_generation import VLLMGeneration

from trl_cppo import digits
from trl_cppo.digits import pretraining
from trl_cppo.run import upstream_vllm
from trl_cppo.run.upstream_vllm import RepairedVLLMGeneration

CANVASES, ROLLOUTS = 16, 512


def measure(name: str, folder: Path, rows, model=None, dtype: str = "float32", bf16: bool = False, turn=None) -> float:
    """Print and return the mean difference."""
    canvases = len(rows)
    settings = {
        "num_generations": ROLLOUTS // CANVASES, "per_device_train_batch_size": canvases * ROLLOUTS // CANVASES,
        "max_completion_length": 40, "bf16": bf16, "model": model,
    }  # fmt: skip
    engine.forget()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = engine.make_vllm_trainer(scratch, folder, dataset=rows, engine={"dtype": dtype}, **settings)
        if turn is not None:
            turn(trainer)
        batch = engine.generate(trainer)
    mask = batch["completion_mask"].bool()
    difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()[mask]
    print(f"{name:58} {difference.mean():.2g} {difference.max():.2g}", flush=True)
    return difference.mean().item()


def update(trainer) -> None:
    """Sample once, then change the vision tower."""
    engine.generate(trainer)
    with torch.no_grad():
        for weight in trainer.model.model.visual.parameters():
            weight.mul_(0.8)
    trainer.state.global_step += 1


def main(steps: int = pretraining.STEPS, canvases: int = CANVASES) -> list[float]:
    """All lines, of so many warm-start steps and canvases; the means."""
    folder = Path(tempfile.mkdtemp())
    model, processor = build("qwen2_5_vl")
    pretraining._train(model, processor, 0, steps, False, None)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rows = digits.make_dataset("held_out", canvases, 1)
    half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    means = [
        measure("float32", folder, rows),
        measure("vLLM in bfloat16, the trainer in float32", folder, rows, dtype="bfloat16"),
        measure("both in bfloat16", folder, rows, dtype="bfloat16", bf16=True),
        measure("both in bfloat16, weights too", folder, rows, model=half, dtype="bfloat16"),
        measure("after an update of the vision tower", folder, rows, turn=update),
    ]
    with mock.patch.object(RepairedVLLMGeneration, "sync_weights", VLLMGeneration.sync_weights):
        means.append(measure("the same, with the old tower's features", folder, rows, turn=update))
    with mock.patch.object(upstream_vllm, "keep_expanded_prompts", lambda mm_processor: None):
        means.append(measure("image tokens expanded twice", folder, rows))
        means.append(measure("the same, in bfloat16", folder, rows, dtype="bfloat16", bf16=True))
    shutil.rmtree(folder)
    return means


if __name__ == "__main__":
    main()

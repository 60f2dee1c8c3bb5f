# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
How far vLLM's log-probabilities lie from the trainer's where all is right, and where something is wrong.

    TINY_HEAD_SIZE=32 python tests/vllm_engine/noise.py

in the environment that `.ci/run` makes for these tests. A digits model of 0.36 M parameters is trained first, as the
embedded run's warm start but with heads that vLLM's attention on a CPU has (two minutes). Each line is the mean and the largest
difference in nats over 512 rollouts of 16 held-out canvases, sampled at temperature 1.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import engine
import torch
from tiny_models import build
from trl.generation.vllm_generation import VLLMGeneration

from trl_cppo import digits, upstream_vllm
from trl_cppo.digits import pretraining
from trl_cppo.upstream_vllm import RepairedVLLMGeneration

CANVASES, ROLLOUTS = 16, 512


def measure(name: str, folder: Path, rows, model=None, dtype: str = "float32", bf16: bool = False, turn=None) -> None:
    settings = {
        "num_generations": ROLLOUTS // CANVASES,
        "bf16": bf16,
        "per_device_train_batch_size": ROLLOUTS,
        "max_completion_length": 40,
        "model": model,
    }
    engine._engines.clear()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = engine.make_vllm_trainer(scratch, folder, dataset=rows, engine={"dtype": dtype}, **settings)
        if turn is not None:
            turn(trainer)
        batch = engine.generate(trainer)
    mask = batch["completion_mask"].bool()
    difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()[mask]
    print(f"{name:58} {difference.mean():.2g} {difference.max():.2g}", flush=True)


def without(repair: str):
    """Run with one of the repairs taken out."""
    if repair == "prompts":
        upstream_vllm.keep_expanded_prompts = lambda mm_processor: None
    elif repair == "features":
        RepairedVLLMGeneration.sync_weights = VLLMGeneration.sync_weights


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    model, processor = build("qwen2_5_vl")
    pretraining._train(model, processor, 0, pretraining.STEPS, False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rows = digits.make_dataset("held_out", CANVASES, 1)
    measure("float32", folder, rows)
    measure("vLLM in bfloat16, the trainer in float32", folder, rows, dtype="bfloat16")
    measure("both in bfloat16", folder, rows, dtype="bfloat16", bf16=True)
    half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    measure("both in bfloat16, weights too", folder, rows, model=half, dtype="bfloat16")

    def update(trainer):
        engine.generate(trainer)
        with torch.no_grad():
            for weight in trainer.model.model.visual.parameters():
                weight.mul_(0.8)
        trainer.state.global_step += 1

    measure("after an update of the vision tower", folder, rows, turn=update)
    without("features")
    measure("the same, with the old tower's features", folder, rows, turn=update)
    without("prompts")
    measure("image tokens expanded twice", folder, rows)
    measure("the same, in bfloat16", folder, rows, dtype="bfloat16", bf16=True)


if __name__ == "__main__":
    main()

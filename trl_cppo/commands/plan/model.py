# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A model from its configuration alone, and what its weights, gradients and optimizer states take."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from ...config import CPPOConfig
from ...scoring.families import FAMILIES
from ...scoring.parts import adapter_by_part, explaining_no_match, freeze
from ..loading import check_folder

FLOAT32 = 4  # bytes
MOMENTS = 2  # of Adam, for each weight
LORA_DROPOUT = 0.05  # the default of `--lora_dropout`


@dataclass(frozen=True)
class Lora:
    """Adapters of rank `r` on the modules of these names, as `--lora_r` and `--lora_target_modules` say; `None`: as PEFT chooses."""

    r: int
    targets: list[str] | None


def load_config(source: str) -> PretrainedConfig:
    """
    A model's configuration: `config.json` is all that is read.

    Args:
        source (`str`): Hub id or local folder.

    Raises:
        `ValueError`, `OSError`: if there is none, or of a family that CPPOTrainer does not know or that was not checked here.
    """
    check_folder("--model", source)
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:  # which names no model where the Hub cannot be reached
        raise OSError(f"--model {source}: {error}") from error
    if config.model_type not in FAMILIES:
        raise ValueError(f"{source} is a {config.model_type}; known model types: {', '.join(FAMILIES)}.")
    if FAMILIES[config.model_type].unpackable is not None:
        checked = [name for name, family in FAMILIES.items() if family.unpackable is None]
        raise ValueError(
            f"{source} is a {config.model_type}, whose counts were not held to real tensors; plan knows {', '.join(checked)}."
        )
    return config


def build_model(
    config: PretrainedConfig,
    dtype: torch.dtype = torch.bfloat16,
    lora: Lora | None = None,
    checkpointing: bool = False,
    device: str = "meta",
    parts: CPPOConfig | None = None,
) -> PreTrainedModel:
    """
    The model in training mode with TRL's fused head, as GRPOTrainer prepares it.

    Args:
        config (`PretrainedConfig`): see [`load_config`].
        dtype (`torch.dtype`): of all weights, adapters included, as DeepSpeed has them.
        lora (`Lora`, *optional*): `None` trains every weight.
        checkpointing (`bool`): blocks keep their inputs alone and are run again in the backward.
        device (`str`): `"meta"`: weights have a shape and no data.
        parts ([`CPPOConfig`], *optional*): its `freeze` and `lora_on` say which parts are trained.

    Raises:
        `ValueError`: if these leave nothing to train.
    """
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        model = model.to(dtype)
        adapters = None
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            adapters = LoraConfig(r=lora.r, target_modules=lora.targets, lora_dropout=LORA_DROPOUT)
        if parts is not None:
            adapters = adapter_by_part(adapters, model, parts)
        if adapters is not None:
            with explaining_no_match(parts, adapters) if parts is not None else nullcontext():
                model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
    if parts is not None:
        freeze(model, parts.freeze or [])
    add_fused_lm_head(
        model.get_base_model() if lora else model, temperature=1.0, outputs=("log_probs", "entropy")
    )  # as GRPOTrainer does
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()
    return model.train()


@dataclass(frozen=True)
class States:
    """
    What a GPU holds whatever the batch is, in bytes.

    Attributes:
        weights, gradients, optimizer (`int`): the first trained or not, the others of what is trained.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """How many weights there are, and how many of them are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def states_of(
    model: PreTrainedModel, dtype: torch.dtype, zero_stage: int, gpus: int, is_lora: bool, reached: int | None = None
) -> States:
    """
    What weights, gradients and Adam's states take on each GPU.

    Stage 0 is plain PyTorch (one GPU, or DDP): Adam's two moments have the dtype of the weight, and PEFT keeps adapters in
    float32. Stages 1 to 3 are DeepSpeed's: all weights in one dtype, and where that is narrower than float32, a third float32
    copy beside the moments.

    Args:
        reached (`int`, *optional*): the weights that get a gradient, where not all that are trained do; DeepSpeed has states of
            the others too.
    """
    total, trained = count_parameters(model)
    width = dtype.itemsize
    if zero_stage == 0:
        own = FLOAT32 if is_lora else width
        moved = trained if reached is None else reached
        return States((total - trained) * width + trained * own, moved * own, MOMENTS * moved * own)
    copies = MOMENTS if width == FLOAT32 else MOMENTS + 1
    weights, gradients, optimizer = (gpus if zero_stage >= stage else 1 for stage in (3, 2, 1))
    return States(total * width // weights, trained * width // gradients, copies * trained * FLOAT32 // optimizer)

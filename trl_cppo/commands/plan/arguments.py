# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `plan` is told. Flags that training has too are named as there."""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import HfArgumentParser

from ...config import CPPOConfig, as_in_training
from ...method.image_size import limited_size
from ..line import ShortErrors
from .counts.batch import Rollout
from .model import Lora
from .rows import RowShape

GIB = 2**30


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _flags(default: list[str], text: str) -> Any:
    return field(default_factory=lambda: list(default), metadata={"help": text})


@dataclass
class PlanArguments:
    """Model, rollouts, GPUs."""

    model: str = field(metadata={"help": "Hub id or local folder; its config.json is read, and no weights."})
    prompt_tokens: int = _flag(
        128, "Tokens of the longest prompt, chat template and system prompt included, images not."
    )
    image_size: list[str] = _flags(
        ["448x448"], "Width x height, in pixels, of each image of a prompt, the largest that occurs."
    )
    dataset_name: str | None = _flag(
        None, "A prepared data set, in place of the two above and of --num_prompts: 64 of its rows are looked at."
    )
    dataset_train_split: str = _flag("train", "Its split.")
    max_pixels: int | None = as_in_training("max_pixels")
    min_pixels: int | None = as_in_training("min_pixels")
    max_completion_length: int = _flag(512, "Tokens of the longest completion: memory is counted for them.")
    mean_completion_length: int | None = _flag(
        None, "Tokens of the usual completion: FLOPs are counted for them. Default: the longest."
    )
    num_generations: int = _flag(8, "Rollouts of a prompt.")
    gated_share: float = _flag(0.5, "Share f of the rollouts that are gated: the metric cpl/gated_ratio.")
    cpl_rollouts_per_prompt: int | None = as_in_training("cpl_rollouts_per_prompt")
    prompts_per_step: int = _flag(32, "Prompts of an optimizer step, on all GPUs.")
    num_prompts: int | None = _flag(None, "Rows of the data set, for the hours of an epoch.")
    num_gpus: int = _flag(1, "GPUs of the run.")
    gpu_memory: float = _flag(80.0, "GiB of each.")
    reserve: float = _flag(0.1, "Share of a GPU's memory that is kept free for what is not counted.")
    zero_stage: int | None = _flag(None, "DeepSpeed's ZeRO stage, 1 to 3, or 0 for none. Default: suggested.")
    per_device_train_batch_size: int | None = _flag(None, "Rows of a micro-batch. Default: suggested.")
    share_prefix: str = as_in_training("share_prefix")
    cpl_divergence: str = as_in_training("cpl_divergence")
    router_aux_loss_coef: float | None = _flag(None, "Of a mixture of experts. Default: the model's own.")
    use_peft: bool = _flag(False, "Train LoRA adapters.")
    lora_r: int = _flag(16, "Rank of the adapters.")
    lora_target_modules: list[str] | None = _flag(
        None,
        "Modules that get adapters. Default: q_proj k_proj v_proj o_proj; with --lora_on or --freeze, all linear layers of the parts "
        "that are left.",
    )
    lora_on: list[str] | None = as_in_training("lora_on")
    freeze: list[str] | None = as_in_training("freeze")
    dtype: str = _flag("bfloat16", "Of the weights: bfloat16 or float32.")
    gradient_checkpointing: bool = _flag(
        True, "Whether blocks keep their inputs alone and are run again in the backward."
    )
    beta: float = _flag(
        0.0, "Coefficient of the KL to the reference model; above 0 there is one, and it scores each rollout."
    )
    use_vllm: bool = _flag(False, "Sample with vLLM, in the training processes.")
    vllm_gpu_memory_utilization: float = _flag(0.3, "vLLM's share of each GPU's memory.")
    vllm_enable_sleep_mode: bool = _flag(False, "vLLM gives its memory back during the update.")
    peak_tflops: float = _flag(
        312.0, "TFLOP a second of a GPU at its peak, dense, in bf16: 312 is an A100's, 989 an H100's."
    )
    utilisation: float = _flag(0.35, "Share of that peak that the updates reach: a guess until you measure it.")

    def __post_init__(self):
        self.share_prefix = {"true": True, "false": False}.get(str(self.share_prefix).lower(), self.share_prefix)
        shares = ("gated_share", "reserve", "vllm_gpu_memory_utilization", "utilisation")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share from 0 to 1; got {getattr(self, name)}.")
        counts = (
            "max_completion_length",
            "prompts_per_step",
            "num_gpus",
            "gpu_memory",
            "lora_r",
            "peak_tflops",
            "utilisation",
        )
        for name in counts:
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0; got {getattr(self, name)}.")
        if self.cpl_rollouts_per_prompt is not None and self.cpl_rollouts_per_prompt < 1:
            raise ValueError(f"--cpl_rollouts_per_prompt must be 1 or more; got {self.cpl_rollouts_per_prompt}.")
        if self.num_generations < 2:
            raise ValueError(f"--num_generations must be 2 or more; got {self.num_generations}.")
        for name, known in (("zero_stage", (None, 0, 1, 2, 3)), ("dtype", ("bfloat16", "float32"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"--{name} must be one of {', '.join(map(str, known[-4:]))}; got {getattr(self, name)}."
                )

        if self.lora_target_modules is None and not (self.lora_on or self.freeze):
            self.lora_target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]

    def parts(self) -> CPPOConfig:
        """
        Which parts are trained. To be asked before there is a trainer, for a configuration resets what accelerate remembers.

        Raises:
            `ValueError`: for a part that is none.
        """
        return CPPOConfig("none", use_cpu=True, bf16=False, report_to="none", lora_on=self.lora_on, freeze=self.freeze)

    @property
    def lora(self) -> Lora | None:
        return Lora(self.lora_r, self.lora_target_modules) if self.use_peft else None

    @property
    def budget(self) -> int:
        """The most rollouts of a prompt that have views."""
        return min(self.cpl_rollouts_per_prompt or self.num_generations, self.num_generations)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.dtype]

    @property
    def rows_per_step(self) -> int:
        return self.prompts_per_step * self.num_generations

    @property
    def vllm_bytes(self) -> int:
        """Of each GPU during the update."""
        return 0 if self.vllm_enable_sleep_mode else self.vllm_share

    @property
    def vllm_share(self) -> int:
        """Bytes of each GPU while it samples."""
        return round(self.use_vllm * self.vllm_gpu_memory_utilization * self.gpu_memory * GIB)

    @property
    def extra_scorings(self) -> int:
        """Forwards of every rollout before the update: the reference's, and the old policy's for vLLM's correction."""
        return int(self.beta != 0) + int(self.use_vllm)

    def rollout(self, completion: int) -> Rollout:
        """
        A rollout of the largest prompt, as the flags describe it.

        Raises:
            `ValueError`: for an image size that is none.
        """
        return Rollout(self.prompt_tokens, tuple(map(self._size, self.image_size)), completion)

    def rollout_of(self, row: RowShape, completion: int) -> Rollout:
        """A rollout of a row of a data set; without a tokenizer its text is as long as `--prompt_tokens` says."""
        limited = tuple(limited_size(size, self.max_pixels, self.min_pixels) for size in row.sizes)
        return Rollout(self.prompt_tokens if row.text is None else row.text, limited, completion)

    def _size(self, text: str) -> tuple[int, int]:
        width, cross, height = text.lower().partition("x")
        if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise ValueError(f"--image_size takes width x height such as 448x448; got {text!r}.")
        return limited_size((int(width), int(height)), self.max_pixels, self.min_pixels)


DESCRIPTION = """
Whether a run fits and what it costs, before it runs. Nothing is downloaded but the model's configuration.

    trl-cppo plan --model Qwen/Qwen2.5-VL-3B-Instruct --image_size 640x480 --max_completion_length 1024 --num_gpus 8
"""


class _Parser(ShortErrors, HfArgumentParser):
    """With errors of one line."""


def make_parser(program: str) -> HfArgumentParser:
    raw = RawDescriptionHelpFormatter
    return _Parser(PlanArguments, prog=program, description=DESCRIPTION, formatter_class=raw)

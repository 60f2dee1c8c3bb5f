# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What to evaluate on what, and how: the flags of `trl-cppo evaluate`."""

import os
from dataclasses import dataclass, field

from trl import TrlParser

from ...config import as_in_training
from ...method.image_size import check_limits
from ..line import ShortErrors


@dataclass
class EvaluationArguments:
    """What to evaluate on what, and how."""

    model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a model or PEFT adapter; digits: the embedded model before training."},
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a data set; digits: the embedded task."}
    )
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    num_rows: int | None = field(default=None, metadata={"help": "Evaluate the first rows only."})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "A reward's name or dotted import path; a score from 0.5 on counts as right. Default: sum_reward for "
            "digits, else boxed_accuracy_reward."
        },
    )
    num_samples: int = field(default=8, metadata={"help": "Sampled completions a question; 0: none."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the samples."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the samples."})
    greedy: bool = field(default=True, metadata={"help": "Also complete greedily."})
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest completion in tokens. Default: 2048; 20 for digits."}
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Prompts completed at once, on each process. Changes no result in float32. Default: 16; 128 with vLLM."
        },
    )
    use_vllm: bool = field(
        default=False,
        metadata={"help": "Complete with vLLM in this process in place of transformers; faster on GPUs."},
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.9, metadata={"help": "Share of each GPU's memory that vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of prompt and completion in vLLM; less takes less memory. Default: the model's."
        },
    )
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that vLLM splits the model over."})
    max_pixels: int | None = as_in_training("max_pixels")
    min_pixels: int | None = as_in_training("min_pixels")
    seed: int = field(default=0, metadata={"help": "Of the samples and of the bootstrap."})
    compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "With --model: the results to compare the model's with. Without: two results, first and second, or two folders of "
            "results with the same names."
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "JSON file. Default: evaluation.json in the model's folder, or evaluation-NAME.json here."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Drop results of other settings that the output holds."})
    dtype: str = field(
        default="auto", metadata={"help": "auto (the checkpoint's), float32, bfloat16 or float16: the weights' type."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Such as sdpa or flash_attention_2."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a Hub model."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave GPUs alone."})

    def __post_init__(self) -> None:
        self.model = self.model and os.path.expanduser(self.model).rstrip("/")
        if self.model and os.path.isdir(self.model):
            self.model = os.path.normpath(self.model)  # model, model/ and ./model are one
        lowest_values = {"num_rows": 1, "num_samples": 0, "batch_size": 1, "seed": 0}
        for name, lowest in {**lowest_values, "vllm_max_model_length": 2, "vllm_tensor_parallel_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"--{name} must be at least {lowest}, got {value}.")
        if self.max_completion_length is not None and self.max_completion_length < 1:
            raise ValueError(f"--max_completion_length must be at least 1, got {self.max_completion_length}.")
        if not self.temperature > 0:
            raise ValueError(
                f"--temperature must be above 0, got {self.temperature}. For greedy alone: --num_samples 0."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p must be above 0 and at most 1, got {self.top_p}.")
        check_limits(self.max_pixels, self.min_pixels)
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype must be auto, float32, bfloat16 or float16, got {self.dtype}.")
        self._check_vllm()
        if self.batch_size is None:
            self.batch_size = 128 if self.use_vllm else 16
        if not self.greedy and self.num_samples == 0:
            raise ValueError("--no_greedy with --num_samples 0 leaves nothing to do.")

    def _check_vllm(self) -> None:
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(
                f"--vllm_gpu_memory_utilization must be above 0 and at most 1, got {self.vllm_gpu_memory_utilization}."
            )
        for flag in ("attn_implementation", "use_cpu"):
            if self.use_vllm and getattr(self, flag):
                raise ValueError(f"--{flag} is for transformers: vLLM chooses by itself. Leave it out, or --use_vllm.")


EPILOG = "--config FILE: a YAML file of settings by the flags' names, below those that are given."


class _Parser(ShortErrors, TrlParser):
    """TRL's, with errors of one line."""


def make_parser(program: str) -> TrlParser:
    return _Parser((EvaluationArguments,), prog=program, epilog=EPILOG)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Completions of a batch of data set rows by vLLM, from the token ids and images that the trainer would hand to it.

Whatever stops it is said before the weights are read, or at least before the engine starts, which takes a minute.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin
from transformers.utils.peft_utils import find_adapter_config_file
from trl.import_utils import is_vllm_available

from ...run.rows.checks import images_of, row_name
from ...run.upstream_vllm import bare, keep_expanded_prompts
from ...scoring.families import FAMILIES, placeholder_ids, rgb_reader, vllm_obstacle
from ..loading import DIGITS
from .arguments import EvaluationArguments
from .errors import EvaluationError
from .generation import Codec, Completion

logger = logging.getLogger(__name__)

# Compiling takes minutes there, and a prompt in parts fails with a seed of its own ("CPU Generator does not use offset").
_ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}


def check_engine(args: EvaluationArguments, state: PartialState) -> None:
    """
    Refuse what vLLM cannot do, without reading weights.

    Args:
        args (`EvaluationArguments`): with `use_vllm`.
        state (`PartialState`): of the processes.

    Raises:
        `ImportError`: without vLLM.
        `ValueError`: for several processes and for families whose prompts vLLM does not take as the trainer does.
    """
    if not is_vllm_available():
        raise ImportError('--use_vllm needs vLLM: pip install "trl-cppo[vllm]", or leave --use_vllm out.')
    if state.num_processes > 1:
        raise ValueError(
            "--use_vllm runs in one process and spreads over GPUs by itself: start it without a launcher, with "
            "--vllm_tensor_parallel_size."
        )
    family = "qwen2_5_vl" if args.model == DIGITS else _model_type(args, args.model)
    obstacle = vllm_obstacle(family, "colocate", state.device.type)
    if obstacle is not None:
        raise ValueError(f"--use_vllm is not supported for {family}: {obstacle}. Leave --use_vllm out.")
    doubt = FAMILIES[family].no_vllm_on_cpus
    if doubt is not None:
        logger.warning(
            f"vLLM was not checked on GPUs for {family}, and on CPUs it is not right: {doubt}. Compare a few rows with an "
            "evaluation without --use_vllm."
        )


def _model_type(args: EvaluationArguments, source: str) -> str:
    revision = args.revision
    adapter = find_adapter_config_file(source, revision=revision)
    if adapter is not None:
        config = json.loads(Path(adapter).read_text())
        source, revision = config["base_model_name_or_path"], config.get("revision")
    options = {"revision": revision, "trust_remote_code": args.trust_remote_code}
    return AutoConfig.from_pretrained(source, **options).model_type


class EngineGenerator:
    """
    Completes prompts by vLLM as [`CompletionGenerator`] does by transformers. Greedy completions are the same but for
    rounding; samples are others, each drawn with a seed of its own.

    Args:
        args (`EvaluationArguments`): sampling and engine.
        source (`str`): where vLLM reads weights and processor; an adapter is merged and handed over in a folder.
        model (`PreTrainedModel`): what was read from there, on the CPU. Not kept; an adapter is merged into it.
        processor (`ProcessorMixin`): its processor.
        max_completion_length (`int`): in tokens.

    Raises:
        `EvaluationError`: if the engine does not start.
    """

    def __init__(
        self,
        args: EvaluationArguments,
        source: str,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        max_completion_length: int,
    ):
        self._codec, self._to_rgb = Codec(model, processor), rgb_reader(processor)
        self._temperature, self._top_p, self._seed = args.temperature, args.top_p, args.seed
        self._length = max_completion_length
        # vLLM bans by text, as in training; it has no `suppress_tokens`.
        self._banned = processor.tokenizer.convert_ids_to_tokens(placeholder_ids(model))
        with _as_vllm_reads(source, model, processor) as folder:
            self._engine = _start(args, folder, model.dtype)

    def encode(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        vLLM's prompts of B rows: the token ids that the trainer scores, image tokens expanded, and the images.

        Args:
            examples (`list[dict]`): B rows of conversational `prompt` and `images`, `image` or images in the prompt.

        Raises:
            `ValueError`: naming row and column, also for a prompt that leaves no room for a completion.
        """
        inputs = self._codec.encode(examples)
        prompts = []
        for place, example in enumerate(examples):
            ids = inputs["input_ids"][place][inputs["attention_mask"][place].bool()].tolist()
            self._check_length(row_name(example, place), len(ids))
            # As the processor sees them: vLLM decodes other modes and orientations in another way.
            images = [bare(self._to_rgb(image)) for image in images_of(example)[1] or []]
            prompts.append({"prompt_token_ids": ids, **({"multi_modal_data": {"image": images}} if images else {})})
        return prompts

    def _check_length(self, name: str, length: int) -> None:
        longest = self._engine.model_config.max_model_len
        if length + self._length > longest:
            raise ValueError(
                f"{name}: its prompt has {length} tokens, and with --max_completion_length {self._length} that is more "
                f"than the {longest} that vLLM was started for. Lower --max_completion_length or --max_pixels, or raise "
                "--vllm_max_model_length if the model reads more."
            )

    def complete(
        self, inputs: list[dict[str, Any]], rows: list[int], samples: list[int | None]
    ) -> list[list[Completion]]:
        """All samples of all B rows at once, so that the engine has enough to do."""
        sampling = [self._sampling(row, sample) for sample in samples for row in rows]
        try:
            outputs = self._engine.generate(inputs * len(samples), sampling, use_tqdm=False)
        except (ValueError, RuntimeError) as error:  # its own, and of image tokens that differ
            raise _engine_error("fails", error) from error
        written = [self._codec.completion(list(output.outputs[0].token_ids)) for output in outputs]
        return [written[start : start + len(rows)] for start in range(0, len(written), len(rows))]

    def _sampling(self, row: int, sample: int | None) -> Any:
        from vllm import SamplingParams

        common = {"max_tokens": self._length, "stop_token_ids": self._codec.end_ids, "bad_words": self._banned}
        if sample is None:
            return SamplingParams(temperature=0.0, **common)
        seed = int(np.random.default_rng([self._seed, row, sample]).integers(2**31))
        return SamplingParams(temperature=self._temperature, top_p=self._top_p, seed=seed, **common)


@contextmanager
def _as_vllm_reads(source: str, model: PreTrainedModel, processor: ProcessorMixin) -> Iterator[str]:
    """Where vLLM reads the model: an adapter, which it takes of few kinds, merged in a folder that lasts while this is open."""
    if not is_peft_model(model):
        yield source
        return
    from peft.tuners.tuners_utils import BaseTuner

    if not isinstance(model.base_model, BaseTuner):
        raise EvaluationError(
            f"--use_vllm cannot merge the adapter {source} into its base model. Leave --use_vllm out."
        )
    with tempfile.TemporaryDirectory() as folder:
        model.merge_and_unload().save_pretrained(folder)
        processor.save_pretrained(folder)
        yield folder


def _start(args: EvaluationArguments, folder: str, dtype: torch.dtype) -> Any:
    """The engine: in this process where it has one GPU, so that its errors are ours and it orders requests alike each time."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(args.vllm_tensor_parallel_size > 1)))
    from vllm import LLM
    from vllm.platforms import current_platform

    try:
        engine = LLM(
            model=folder,
            revision=None if Path(folder).is_dir() else args.revision,
            trust_remote_code=args.trust_remote_code,
            dtype=str(dtype).removeprefix("torch."),  # "auto" would round float32
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_len=args.vllm_max_model_length,
            generation_config="vllm",  # not the model's own: a repetition penalty and the like
            **(_ON_CPU if current_platform.is_cpu() else {}),
            seed=args.seed,
        )
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise _engine_error("does not start", error) from error
    if engine.renderer.mm_processor is not None:
        keep_expanded_prompts(engine.renderer.mm_processor)
    return engine


def _engine_error(what: str, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"vLLM {what}: {' '.join(str(error).split())} (Memory is a matter of --vllm_gpu_memory_utilization and "
        "--vllm_max_model_length. Without --use_vllm transformers samples.)"
    )

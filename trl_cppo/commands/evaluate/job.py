# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation made ready: model, rows, reward, and the output opened."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from ...digits.task import MAX_RESPONSE_TOKENS as DIGITS_LENGTH
from ...rewards import boxed_accuracy_reward
from ...run import weights
from ...run.rows.checks import LocatedRows
from ...run.rows.images import RowImages
from ...scoring.families import converts_to_rgb, rgb_reader
from ..loading import DIGITS, check_folder, load_rewards, load_split
from .arguments import EvaluationArguments
from .errors import EvaluationError
from .generation import CompletionGenerator, Generator
from .results.identity import check_same_settings, weights_hash
from .results.records import Records
from .results.summary import load_result
from .runner import find_changed_row

SETTINGS = ["model", "revision", "dataset", "dataset_config", "split", "greedy", "num_samples", "temperature", "top_p"]
SETTINGS += ["seed", "dtype", "attn_implementation", "max_pixels", "min_pixels"]
# What results depend on, besides what `prepare` adds.


@dataclass
class Job:
    """An evaluation, ready to run."""

    rows: LocatedRows
    generator: Generator
    row_images: RowImages
    reward: Callable[..., Any]
    records: Records
    pending: list[int]
    settings: dict[str, Any]
    output: Path
    compare_with: dict[str, Any] | None


def find_source(args: EvaluationArguments) -> str:
    """The Hub id or folder of the model or adapter."""
    if args.model != DIGITS:
        return args.model
    from ... import digits

    return str(digits.warm_start(seed=0))


def load_model(args: EvaluationArguments, source: str, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, or an adapter on its base model, and its processor (the base's where an adapter has none)."""
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    model = weights.load_model(source, args.dtype, attn_implementation=args.attn_implementation, **options)
    adapter = Path(source) / "adapter_config.json"
    has_processor = any(
        (Path(source) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
    )
    if adapter.is_file() and not has_processor:
        source = json.loads(adapter.read_text())["base_model_name_or_path"]
    return model.to(device), AutoProcessor.from_pretrained(source, **options)


def load_reward(args: EvaluationArguments) -> tuple[str, Callable[..., Any]]:
    """The reward's name, with its module where it has one, and its function."""
    if args.reward is None:
        args.reward = "trl_cppo.digits.sum_reward" if args.dataset == DIGITS else "boxed_accuracy_reward"
    [function], _ = load_rewards([args.reward])
    return args.reward, function


def load_rows(args: EvaluationArguments, reward: Callable[..., Any]) -> tuple[Dataset, str]:
    """The rows to evaluate, and what errors call their data set."""
    required = ("prompt", "solution") if "solution" in inspect.signature(reward).parameters else ("prompt",)
    graded = reward is boxed_accuracy_reward
    dataset = load_split(args.dataset, args.split, required=required, config=args.dataset_config, graded=graded)
    return dataset.select(range(min(len(dataset), args.num_rows or len(dataset)))), f"{args.dataset} ({args.split})"


def output_path(args: EvaluationArguments) -> Path:
    if args.output:
        return Path(args.output)
    if Path(args.model).is_dir():
        return Path(args.model) / "evaluation.json"
    return Path(f"evaluation-{args.model.replace('/', '-')}.json")


def prepare(args: EvaluationArguments, state: PartialState) -> Job:
    for flag, value in [("--model", args.model), ("--dataset", args.dataset)]:
        if value is None:
            raise ValueError(f"{flag} is missing. Give a model and a data set, or --compare two results.")
    check_folder("--model", args.model)
    if state.device.type == "mps":
        raise ValueError("Sampling needs float64, which Apple's GPUs do not have. Add --use_cpu.")
    if args.use_vllm:
        from .engine import check_engine

        check_engine(args, state)
    if args.compare and len(args.compare) != 1:
        raise ValueError("--compare takes one file when a model is evaluated, and two when none is.")
    compare_with = load_result(args.compare[0]) if args.compare else None
    reward_name, reward = load_reward(args)
    dataset, name = load_rows(args, reward)
    source = find_source(args)
    model, processor = load_model(args, source, torch.device("cpu") if args.use_vllm else state.device)
    length = args.max_completion_length or (DIGITS_LENGTH if args.dataset == DIGITS else 2048)

    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {"num_rows": len(dataset), "max_completion_length": length, "reward": reward_name}
    settings["weights"] = weights_hash(model)
    if args.use_vllm:  # not among those that older results have
        settings["use_vllm"] = True
    limits, convert = (args.max_pixels, args.min_pixels), not converts_to_rgb(processor)
    row_images = RowImages(*limits, rgb_reader(processor), convert=convert)
    output, rows = output_path(args), LocatedRows(dataset, name)
    records = Records(output, settings, state.process_index)
    if state.is_main_process:
        open_output(args, output, records, rows, settings)
    state.wait_for_everyone()
    done = records.read()
    state.wait_for_everyone()  # no process appends while another one reads
    pending = [row for row in range(len(dataset)) if row not in done][state.process_index :: state.num_processes]
    generator = make_generator(args, source, model, processor, length, bool(pending))
    return Job(rows, generator, row_images, reward, records, pending, settings, output, compare_with)


def make_generator(
    args: EvaluationArguments,
    source: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    length: int,
    has_work: bool,
) -> Generator:
    """What completes the prompts. An engine is not started for nothing."""
    if args.use_vllm and has_work:
        from .engine import EngineGenerator

        return EngineGenerator(args, source, model, processor, length)
    return CompletionGenerator(model, processor, length, args.temperature, args.top_p, args.seed)


def open_output(
    args: EvaluationArguments, output: Path, records: Records, rows: LocatedRows, settings: dict[str, Any]
) -> None:
    """Make sure, before the work starts, that the output can be written and that what it holds is of this evaluation."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        records.remove()
    elif output.exists():
        check_same_settings(str(output), load_result(output)["settings"], settings)
    records.mend()
    changed = find_changed_row(rows, records.read())
    if changed is not None:
        raise EvaluationError(f"{changed} has changed since it was evaluated. Give another --output, or --overwrite.")
    records.append([])

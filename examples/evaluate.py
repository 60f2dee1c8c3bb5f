# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["trl-cppo[digits,math,peft]"]
# ///
r"""
Evaluate a vision-language model: greedy accuracy, avg@N, pass@N, each with an interval; compare two models.

The embedded task (any machine, without the Hub), after `accelerate launch examples/train_cppo.py`:

    python examples/evaluate.py --model cppo-digits --dataset digits

A model and a data set (Hub ids or local folders; columns `prompt`, `image` or `images`, `solution`), on eight GPUs;
`data/geometry3k` is what prepare_dataset.py makes:

    accelerate launch --num_processes 8 examples/evaluate.py \
        --model Qwen2.5-VL-3B-CPPO --dataset data/geometry3k --split test --num_samples 8

Two evaluations of the same questions:

    python examples/evaluate.py --compare before.json after.json

The same command again goes on where an interrupted one stopped. `--config file.yaml` sets several flags.
"""

import inspect
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from trl import TrlParser

from trl_cppo.commands.evaluate import (
    CompletionGenerator,
    Records,
    compare,
    comparison_table,
    evaluate_rows,
    summarize,
    table,
)
from trl_cppo.commands.evaluate.errors import EvaluationError
from trl_cppo.commands.evaluate.identity import check_same_settings, weights_hash
from trl_cppo.commands.evaluate.runner import find_changed_row
from trl_cppo.commands.evaluate.summary import load_result, to_json
from trl_cppo.commands.loading import DIGITS, RewardCountError, check_folder, leave, load_rewards, load_split, stop
from trl_cppo.config import as_in_training
from trl_cppo.digits.task import MAX_RESPONSE_TOKENS as DIGITS_LENGTH
from trl_cppo.method.image_size import check_limits
from trl_cppo.rewards import boxed_accuracy_reward
from trl_cppo.run import weights
from trl_cppo.run.card import add_evaluation
from trl_cppo.run.rows.checks import LocatedRows
from trl_cppo.run.rows.images import RowImages
from trl_cppo.scoring.families import converts_to_rgb, rgb_reader

SETTINGS = ["model", "revision", "dataset", "dataset_config", "split", "greedy", "num_samples", "temperature", "top_p"]
SETTINGS += ["seed", "dtype", "attn_implementation", "max_pixels", "min_pixels"]
# What results depend on, besides what `prepare` adds.


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
        default=None, metadata={"help": "Longest completion in tokens. Default: 2048; 28 for digits."}
    )
    batch_size: int = field(
        default=16, metadata={"help": "Prompts completed at once, on each process. Changes no result in float32."}
    )
    max_pixels: int | None = as_in_training("max_pixels")
    min_pixels: int | None = as_in_training("min_pixels")
    seed: int = field(default=0, metadata={"help": "Of the samples and of the bootstrap."})
    compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "With --model: the results to compare the model's with. Without: two results, first and second."
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
        for name, lowest in [("num_rows", 1), ("num_samples", 0), ("batch_size", 1), ("seed", 0)]:
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
        if not self.greedy and self.num_samples == 0:
            raise ValueError("--no_greedy with --num_samples 0 leaves nothing to do.")


@dataclass
class Job:
    """An evaluation, ready to run."""

    rows: LocatedRows
    generator: CompletionGenerator
    row_images: RowImages
    reward: Callable[..., Any]
    records: Records
    pending: list[int]
    settings: dict[str, Any]
    output: Path
    compare_with: dict[str, Any] | None


def load_model(args: EvaluationArguments, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, or an adapter on its base model, and its processor (the base's where an adapter has none)."""
    source = args.model
    if source == DIGITS:
        from trl_cppo import digits

        source = str(digits.warm_start(seed=0))
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
    if args.compare and len(args.compare) != 1:
        raise ValueError("--compare takes one file when a model is evaluated, and two when none is.")
    compare_with = load_result(args.compare[0]) if args.compare else None
    reward_name, reward = load_reward(args)
    dataset, name = load_rows(args, reward)
    model, processor = load_model(args, state.device)
    length = args.max_completion_length or (DIGITS_LENGTH if args.dataset == DIGITS else 2048)
    generator = CompletionGenerator(model, processor, length, args.temperature, args.top_p, args.seed)

    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {"num_rows": len(dataset), "max_completion_length": length, "reward": reward_name}
    settings["weights"] = weights_hash(model)
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
    return Job(rows, generator, row_images, reward, records, pending, settings, output, compare_with)


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


def run(job: Job, args: EvaluationArguments, state: PartialState) -> None:
    start = time.perf_counter()
    batches = evaluate_rows(
        job.rows, job.pending, job.generator, job.reward,
        greedy=args.greedy, num_samples=args.num_samples, batch_size=args.batch_size, row_images=job.row_images,
    )  # fmt: skip
    with tqdm(total=len(job.pending), unit="question", disable=not state.is_main_process) as bar:
        for batch in batches:
            job.records.append(batch)
            bar.update(len(batch))
    state.wait_for_everyone()
    if state.is_main_process:
        finish(job, time.perf_counter() - start)


def finish(job: Job, seconds: float) -> None:
    """Write the results and show them; compare last, for a comparison may be refused."""
    job.records.merge()
    result = summarize(list(job.records.read().values()), job.settings)
    write(job.output, to_json(result))
    card = " and in the model's card" if update_card(job, result) else ""
    print(table(result))
    print(f"\nResults are in {job.output}{card}, completions in {job.records.path}; {seconds:.0f} s.")
    if job.compare_with is not None:
        result["comparison"] = compare(job.compare_with, result)
        write(job.output, to_json(result))
        print(f"\n{comparison_table(result['comparison'])}")


def update_card(job: Job, result: dict[str, Any]) -> bool:
    """Put the results into the card beside the model, if there is one that can be read."""
    folder = Path(job.settings["model"])
    if not (folder / "README.md").is_file() or job.output.parent != folder:
        return False
    try:
        add_evaluation(folder, result)
    except (ValueError, yaml.YAMLError) as error:
        print(f"{folder / 'README.md'} is left as it is, for it cannot be read: {' '.join(str(error).split())}")
        return False
    return True


def write(path: Path, text: str) -> None:
    """All or nothing: a reader never meets half a file."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def compare_files(args: EvaluationArguments) -> None:
    if args.compare is None or len(args.compare) != 2:
        raise ValueError("Give --model and --dataset, or --compare with two results.")
    if args.output and Path(args.output).resolve() in [Path(path).resolve() for path in args.compare]:
        raise ValueError(f"--output {args.output} would replace the results that are compared. Choose another.")
    comparison = compare(*map(load_result, args.compare))
    print(comparison_table(comparison))
    if args.output:
        write(Path(args.output), json.dumps(comparison, indent=2) + "\n")


def main() -> None:
    try:
        [args] = TrlParser((EvaluationArguments,)).parse_args_and_config()
        if args.model is None and args.dataset is None:
            return compare_files(args)
        # A process that has finished waits for the slowest, for hours if need be.
        state = PartialState(cpu=args.use_cpu, timeout=timedelta(days=7))
        job = prepare(args, state)
    except (ValueError, OSError, ImportError, AttributeError) as error:
        stop("evaluate.py", error)
    try:
        run(job, args, state)
    except (EvaluationError, RewardCountError) as error:
        stop("evaluate.py", error)
    except torch.OutOfMemoryError as error:
        stop(
            "evaluate.py",
            RuntimeError(
                f"{error} Lower --batch_size, or --max_pixels with another --output: finished questions are kept."
            ),
        )
    state.wait_for_everyone()
    state.destroy_process_group()
    leave(state.num_processes, state.device.type)


if __name__ == "__main__":
    record(main)()  # torchrun's page then ends with the error that stopped a run

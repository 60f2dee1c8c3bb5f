# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Evaluate a vision-language model, or compare two evaluations: `trl-cppo evaluate`."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from tqdm import tqdm

from ...run.card import add_evaluation
from ..line import leave, stop
from ..loading import RewardCountError
from .arguments import EvaluationArguments, make_parser
from .errors import EvaluationError
from .job import Job, prepare
from .results.comparison import compare, comparison_table
from .results.several import compare_folders, folders_table
from .results.summary import load_result, summarize, table, to_json
from .runner import evaluate_rows


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
    if any(Path(path).is_dir() for path in args.compare):
        comparison = compare_folders(*args.compare)
        print(folders_table(comparison))
    else:
        comparison = compare(*map(load_result, args.compare))
        print(comparison_table(comparison))
    if args.output:
        write(Path(args.output), json.dumps(comparison, indent=2) + "\n")


def main(arguments: list[str], program: str = "trl-cppo evaluate") -> None:
    """Evaluate what the command line's arguments ask for."""
    try:
        [args] = make_parser(program).parse_args_and_config(arguments)
        if args.model is None and args.dataset is None:
            return compare_files(args)
        # A process that has finished waits for the slowest, for hours if need be.
        state = PartialState(cpu=args.use_cpu, timeout=timedelta(days=7))
        job = prepare(args, state)
    except (ValueError, OSError, ImportError, AttributeError, yaml.YAMLError) as error:
        stop(program, error)
    try:
        run(job, args, state)
    except (EvaluationError, RewardCountError) as error:
        stop(program, error)
    except torch.OutOfMemoryError as error:
        stop(
            program,
            RuntimeError(
                f"{error} Lower --batch_size, or --max_pixels with another --output: finished questions are kept."
            ),
        )
    state.wait_for_everyone()
    if not args.use_vllm:  # whose engine has made the group, and ends it
        state.destroy_process_group()
    leave(state.num_processes, state.device.type)

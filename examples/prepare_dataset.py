# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["trl-cppo"]
# ///
r"""
Bring hiyouga/geometry3k, TIGER-Lab/ViRL39K, lmms-lab/multimodal-open-r1-8k-verified or a data set of their columns into
what CPPOTrainer and GRPOTrainer read.

    python examples/prepare_dataset.py --dataset hiyouga/geometry3k --output data/geometry3k \
        --model Qwen/Qwen2.5-VL-3B-Instruct --max_prompt_length 512

Or files of your own: jsonl, json, csv, tsv, parquet, a folder of photos with metadata (docs/data.md).

    python examples/prepare_dataset.py mine.jsonl --question q --answer a --image path --output data/mine

The output is a folder of parquet files for `load_dataset(folder)` and `examples/train_cppo.py --dataset_name folder`. The
same command again does nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetGenerationError

from trl_cppo.commands.loading import check_folder, stop
from trl_cppo.commands.prepare import PROMPT_SUFFIX, prepare, write
from trl_cppo.commands.prepare.build import is_made_with
from trl_cppo.commands.prepare.flags import add_flags, content_of, name_of, own_options
from trl_cppo.commands.prepare.summary import describe


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="Hub id, local folder, or a jsonl, json, csv, tsv or parquet file.")
    add_flags(parser)
    parser.add_argument("--output", required=True, help="Folder to make.")
    parser.add_argument("--split", nargs="+", help="Splits to prepare. Default: all.")
    parser.add_argument(
        "--model", help="Hub id or local folder of the processor that counts tokens. Default: no limit."
    )
    parser.add_argument("--max_prompt_length", type=int, default=512, help="Tokens, images included. Default: 512.")
    limits = [("max", "The most", "larger ones are scaled down"), ("min", "The fewest", "smaller ones are enlarged")]
    for name, which, what in limits:
        help = f"{which} pixels of an image, width times height: {what}. Default: as they are."
        parser.add_argument(f"--{name}_pixels", type=int, help=help)
    parser.add_argument(
        "--prompt_suffix", "--suffix", default=PROMPT_SUFFIX, help="Behind each question. Default: the authors'."
    )
    parser.add_argument("--skip_broken", action="store_true", help="Leave out rows that cannot be used, do not stop.")
    parser.add_argument("--num_proc", type=int, help="Processes. Default: 1.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the output folder.")
    return parser.parse_args(arguments)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the content of the output depends on, by the names of `prepare`'s arguments."""
    limits = {"max_pixels": args.max_pixels, "min_pixels": args.min_pixels}
    return {
        # Only where they are set: the records of folders that were made without limits have no such entry.
        **{name: value for name, value in limits.items() if value is not None},
        **own_options(args),
        "name": name_of(args),
        "splits": args.split,
        "model": args.model,
        "max_prompt_length": args.max_prompt_length,
        "prompt_suffix": args.prompt_suffix,
        "skip_broken": args.skip_broken,
    }


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    try:
        options = options_of(args)
        record = options | content_of(options["name"])
        if is_made_with(args.output, record) and not args.overwrite:
            print(f"{args.output} is there already, made by this command: nothing to do.")
            return
        for name in ("max_prompt_length", "num_proc"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
        check_folder("--model", args.model)
        if Path(args.output).expanduser().exists() and not args.overwrite:  # known before the work, not after it
            raise FileExistsError(
                f"{args.output} exists, and was not made by this very command. Choose another --output, or --overwrite."
            )
        source = Path(options["name"])
        if source.is_dir() and Path(args.output).resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f"{args.output} is inside of {source}, which would then hold both. Choose another --output."
            )
        dataset, counts = prepare(**options, num_proc=args.num_proc)
        write(dataset, args.output, args.overwrite, record, counts)
    except (ValueError, OSError, DatasetGenerationError) as error:
        stop("prepare_dataset.py", error)
    print(describe(dataset, counts))
    if args.model is None:
        print("No prompt was too long, for none was measured: give --model and --max_prompt_length.")
    print(f"Written to {args.output}. Train on it: --dataset_name {args.output}")


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The flags of `trl-cppo prepare`."""

import argparse
from typing import Any

from ..line import ShortErrors
from .own_flags import add_flags, name_of, own_options
from .rows import PROMPT_SUFFIX

DESCRIPTION = """
Bring hiyouga/geometry3k, TIGER-Lab/ViRL39K, lmms-lab/multimodal-open-r1-8k-verified or a data set of their columns into
what CPPOTrainer and GRPOTrainer read: a folder of parquet files for `load_dataset(folder)` and `trl-cppo train
--dataset_name folder`. The same command again does nothing.

    trl-cppo prepare --dataset hiyouga/geometry3k --output data/geometry3k \\
        --model Qwen/Qwen2.5-VL-3B-Instruct --max_prompt_length 512

Or files of your own: jsonl, json, csv, tsv, parquet, a folder of photos with metadata.

    trl-cppo prepare mine.jsonl --question q --answer a --image path --output data/mine
"""


class _Parser(ShortErrors, argparse.ArgumentParser):
    """With errors of one line."""


def make_parser(program: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(program, description=DESCRIPTION, formatter_class=raw)
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
    return parser


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

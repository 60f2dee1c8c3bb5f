# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The flags of `trl-cppo prepare`."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from ..line import ShortErrors
from .formats.benchmarks import BENCHMARKS
from .rows import PROMPT_SUFFIX
from .sources import TEXT_FILES

_OWN = ("question", "answer", "image", "system_prompt", "split_test")  # of data of one's own
_NOT_OF_BENCHMARKS = ("question", "answer", "image", "split_test")
DESCRIPTION = """
Bring hiyouga/geometry3k, TIGER-Lab/ViRL39K, lmms-lab/multimodal-open-r1-8k-verified or a data set of their columns into
what CPPOTrainer and GRPOTrainer read: a folder of parquet files for `load_dataset(folder)` and `trl-cppo train
--dataset_name folder`. The same command again does nothing.

    trl-cppo prepare --dataset hiyouga/geometry3k --output data/geometry3k \\
        --model Qwen/Qwen2.5-VL-3B-Instruct --max_prompt_length 512

Or files of your own: jsonl, json, csv, tsv, parquet, a folder of photos with metadata.

    trl-cppo prepare mine.jsonl --question q --answer a --image path --output data/mine

Or one of the paper's benchmarks, to measure on:

    trl-cppo prepare --benchmark mathvista --output data/mathvista
"""


class _Parser(ShortErrors, argparse.ArgumentParser):
    """With errors of one line."""


def make_parser(program: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(program, description=DESCRIPTION, formatter_class=raw)
    parser.add_argument("--dataset", help="Hub id, local folder, or a jsonl, json, csv, tsv or parquet file.")
    parser.add_argument(
        "--benchmark", choices=BENCHMARKS,
        help="A benchmark in its own columns, to evaluate on. --dataset: a local folder of its files. Default: the Hub's.",
    )  # fmt: skip
    _add_own_flags(parser)
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


def _add_own_flags(parser: argparse.ArgumentParser) -> None:
    """Those of data of one's own; the data set may stand in front without a flag."""
    parser.add_argument("name", nargs="?", metavar="DATASET", help="The data set, without the flag --dataset.")
    parser.add_argument("--question", metavar="COLUMN", help="Of the question. Default: question or problem.")
    parser.add_argument("--answer", metavar="COLUMN", help="Of the final answer. Default: answer or solution.")
    parser.add_argument(
        "--image", metavar="COLUMN", nargs="+",
        help="Of an image, a list of images, or their paths from the file's folder. Default: images, image or file_name.",
    )  # fmt: skip
    parser.add_argument("--system_prompt", metavar="TEXT", help="A system message in front of each question.")
    parser.add_argument(
        "--split_test", metavar="SHARE", type=float,
        help="Hold out this share of the training rows as the split 'test', such as 0.05; no image is on both sides.",
    )  # fmt: skip


def name_of(args: argparse.Namespace) -> str:
    """
    The data set's name.

    Raises:
        `ValueError`: if it is missing, or there are two.
    """
    if args.benchmark:
        refused = next((flag for flag in _NOT_OF_BENCHMARKS if getattr(args, flag) is not None), None)
        if refused:
            raise ValueError(f"--{refused} does not go with --benchmark, whose columns are known. Leave it out.")
    if args.benchmark and args.name is None and args.dataset is None:
        return BENCHMARKS[args.benchmark].hub
    if (args.name is None) == (args.dataset is None):
        given = "is missing" if args.name is None else f"is given twice, {args.name} and {args.dataset}"
        raise ValueError(f"the data set {given}: name one Hub id, folder or file.")
    return args.name or args.dataset


def own_options(args: argparse.Namespace) -> dict[str, Any]:
    """By the names of `prepare`'s arguments, only those that are set: records of older folders have no such entry."""
    return {name: getattr(args, name) for name in _OWN if getattr(args, name) is not None}


def content_of(name: str) -> dict[str, str]:
    """For the record: a digest of the file, or of a folder's text files, since one's own change; of parquet folders and the Hub nothing."""
    path = Path(name).expanduser()
    paths = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in TEXT_FILES)
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"sha256": digest.hexdigest()} if paths else {}


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the content of the output depends on, by the names of `prepare`'s arguments."""
    limits = {"max_pixels": args.max_pixels, "min_pixels": args.min_pixels}
    return {
        # Only where they are set: the records of folders that were made without limits have no such entry.
        **{name: value for name, value in limits.items() if value is not None},
        **own_options(args),
        **({"benchmark": args.benchmark} if args.benchmark else {}),
        "name": name_of(args),
        "splits": args.split,
        "model": args.model,
        "max_prompt_length": args.max_prompt_length,
        "prompt_suffix": args.prompt_suffix,
        "skip_broken": args.skip_broken,
    }

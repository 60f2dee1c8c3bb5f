# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The flags of `prepare` for data of one's own."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

_OWN = ("question", "answer", "image", "system_prompt", "split_test")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add them; the data set may stand in front without a flag."""
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
    if (args.name is None) == (args.dataset is None):
        given = "is missing" if args.name is None else f"is given twice, {args.name} and {args.dataset}"
        raise ValueError(f"the data set {given}: name one Hub id, folder or file.")
    return args.name or args.dataset


def own_options(args: argparse.Namespace) -> dict[str, Any]:
    """By the names of `prepare`'s arguments, only those that are set: records of older folders have no such entry."""
    return {name: getattr(args, name) for name in _OWN if getattr(args, name) is not None}


def content_of(name: str) -> dict[str, str]:
    """For the record: a file's digest, since a file of one's own changes; of folders and the Hub nothing."""
    path = Path(name).expanduser()
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

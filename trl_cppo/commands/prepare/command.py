# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Bring a data set into what the trainers read: `trl-cppo prepare`."""

from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetGenerationError

from ..line import changes, stop
from ..loading import check_folder
from .arguments import content_of, make_parser, options_of
from .build import is_made_with, options_made_with, prepare, write
from .summary import describe


def main(arguments: list[str], program: str = "trl-cppo prepare") -> None:
    """Prepare what the command line's arguments ask for."""
    args = make_parser(program).parse_args(arguments)
    try:
        options = options_of(args)
        record = options | content_of(options["name"])
        if is_made_with(args.output, record) and not args.overwrite:
            print(
                f"{args.output} is there already, made by this command: nothing to do (--overwrite makes it anew, such as after "
                "a photo has changed)."
            )
            return
        for name in ("max_prompt_length", "num_proc"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
        check_folder("--model", args.model)
        if Path(args.output).expanduser().exists() and not args.overwrite:  # known before the work, not after it
            raise FileExistsError(_exists(args.output, record))
        source = Path(options["name"])
        if source.is_dir() and Path(args.output).resolve().is_relative_to(source.resolve()):
            raise ValueError(
                f"{args.output} is inside of {source}, which would then hold both. Choose another --output."
            )
        dataset, counts = prepare(**options, num_proc=args.num_proc)
        write(dataset, args.output, args.overwrite, record, counts)
    except (ValueError, OSError, DatasetGenerationError) as error:
        stop(program, error)
    print(describe(dataset, counts))
    if args.model is None and not args.benchmark:
        print("No prompt was too long, for none was measured: give --model and --max_prompt_length.")
    if args.benchmark:
        print(f"Written to {args.output}. Measure on it: trl-cppo evaluate --model MODEL --dataset {args.output}")
    else:
        print(f"Written to {args.output}. Train on it: --dataset_name {args.output}")


def _exists(output: str, record: dict[str, Any]) -> str:
    made_with = options_made_with(output)
    differs = (
        "It was not made by prepare" if made_with is None else f"It was made otherwise: {changes(made_with, record)}"
    )
    return (
        f"{output} exists, and was not made by this very command. {differs}. Choose another --output, or --overwrite."
    )

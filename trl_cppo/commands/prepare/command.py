# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Bring a data set into what the trainers read: `trl-cppo prepare`."""

from pathlib import Path

from datasets.exceptions import DatasetGenerationError

from ..line import stop
from ..loading import check_folder
from .arguments import make_parser, options_of
from .build import is_made_with, prepare, write


def main(arguments: list[str], program: str = "trl-cppo prepare") -> None:
    """Prepare what the command line's arguments ask for."""
    args = make_parser(program).parse_args(arguments)
    options = options_of(args)
    if is_made_with(args.output, options) and not args.overwrite:
        print(f"{args.output} is there already, made by this command: nothing to do.")
        return
    try:
        for name in ("max_prompt_length", "num_proc"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
        check_folder("--model", args.model)
        if Path(args.output).expanduser().exists() and not args.overwrite:  # known before the work, not after it
            raise FileExistsError(
                f"{args.output} exists, and was not made by this very command. Choose another --output, or --overwrite."
            )
        if Path(args.dataset).is_dir() and Path(args.output).resolve().is_relative_to(Path(args.dataset).resolve()):
            raise ValueError(
                f"{args.output} is inside of {args.dataset}, which would then hold both. Choose another --output."
            )
        dataset, counts = prepare(**options, num_proc=args.num_proc)
        write(dataset, args.output, args.overwrite, options)
    except (ValueError, OSError, DatasetGenerationError) as error:
        stop(program, error)
    for split, reasons in counts.items():
        dropped = [f"{count} left out ({reason})" for reason, count in reasons.items() if reason != "kept"]
        print(f"{split}: {', '.join([f'{len(dataset[split])} rows', *dropped])}")
    if args.model is None:
        print("No prompt was too long, for none was measured: give --model and --max_prompt_length.")
    print(f"Written to {args.output}.")

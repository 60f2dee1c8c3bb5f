# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A command by its name, with all that it prints named after the program that the user typed."""

import os
import sys
from importlib import import_module

from ...versions import FITTING_TRL, is_of_trl
from .ending import stop
from .flags import answer_early, split_config
from .quiet import leave_out_noise


def run_command(name: str, arguments: list[str], program: str) -> None:
    """
    Run a command.

    Args:
        name (`str`): a folder of `trl_cppo/commands` whose `command.py` has a `main`.
        arguments (`list[str]`): of the command line, behind the command's name.
        program (`str`): what errors and the help begin with, such as "trl-cppo train" or "train_cppo.py".
    """
    arguments = split_config(arguments, program)
    answer_early(name, arguments, program)
    leave_out_noise()
    try:
        command = import_module(f"trl_cppo.commands.{name}.command")
    except ImportError as error:
        stop(program, ImportError(f"{error}. {FITTING_TRL}") if is_of_trl(error) else error)
    main = command.main
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun's page then ends with the error that stopped a run
        from torch.distributed.elastic.multiprocessing.errors import record

        main = record(main)
    try:
        main(arguments, program)
    except KeyboardInterrupt:
        print(f"{program}: stopped.", file=sys.stderr)
        sys.exit(130)  # as shells have it for Ctrl-C

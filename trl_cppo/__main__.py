# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The command line, `trl-cppo` or `python -m trl_cppo`: a command's name, then its flags."""

import difflib
import sys

from .commands.line import run_command

COMMANDS = {
    "train": "train a model with CPPO; without arguments, a tiny one on handwritten digits",
    "prepare": "bring a data set into the columns that training reads",
    "plan": "whether a run fits and what it costs, before it runs",
    "evaluate": "greedy accuracy, avg@N and pass@N of a model; compare two",
    "report": "a page that shows what a model sees: images, views, perception tokens",
    "recipes": "settings of whole runs and of launchers: list them, copy one",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names, with the others; by default those of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        commands = "".join(f"\n  {name:10}{what}" for name, what in COMMANDS.items())
        usage = f"usage: trl-cppo COMMAND ...; see trl-cppo COMMAND --help.\n{commands}"
        if arguments in ([], ["-h"], ["--help"]):
            print(usage)
            return
        meant = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(arguments[0], COMMANDS, n=1))
        sys.exit(f"{usage}\n\ntrl-cppo: error: there is no command {arguments[0]!r}.{meant}")
    run_command(arguments[0], arguments[1:], f"trl-cppo {arguments[0]}")


if __name__ == "__main__":
    main()

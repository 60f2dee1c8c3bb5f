# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m trl_cppo report --help`."""

import sys
from importlib import import_module

COMMANDS = {
    "plan": "whether a run fits and what it costs, before it runs",
    "report": "a page that shows what a model sees: images, views, perception tokens",
}


def main(arguments: list[str]) -> None:
    """Run the command that the first argument names, with the others."""
    if not arguments or arguments[0] not in COMMANDS:
        commands = "".join(f"\n  {name:10}{what}" for name, what in COMMANDS.items())
        usage = f"usage: python -m trl_cppo COMMAND ...; see COMMAND --help.\n{commands}"
        if arguments in (["-h"], ["--help"]):
            print(usage)
            return
        sys.exit(usage)
    import_module(f"trl_cppo.commands.{arguments[0]}.command").main(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
`--help` and wrong flags, answered in a fraction of a second: the classes whose fields are flags take seconds to import.

`flags.json` has the flags of each command as their parsers had them with the versions of transformers and TRL that it names
(`record.py` writes it, and a test holds it against the parsers). With other versions it is not used, and the parsers answer.
"""

import argparse
import difflib
import functools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from .ending import stop

RECORD = Path(__file__).with_name("flags.json")
RECORDED_WITH = ("transformers", "trl")  # whose fields are flags
FORMATTERS = {
    cls.__name__: cls for cls in (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter)
}
TYPES = {"int": int, "float": float}


class ShortErrors:
    """For a parser: its errors in one line, for the usage of two hundred flags would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        stop(self.prog, ValueError(f"{message}.{self._nearest(message)} All flags: {self.prog} --help"))

    def _nearest(self, message: str) -> str:
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if not message.startswith("unrecognized arguments") or not wrong:
            return ""
        near = difflib.get_close_matches(wrong[0], self._option_string_actions, n=1)
        return f" Did you mean {near[0]}?" if near else ""


class RecordedParser(ShortErrors, argparse.ArgumentParser):
    """
    A parser that knows the flags, and refuses a value where it has to be a number or one of a list. What it lets pass, such
    as a number that may be none, the command's own parser reads.
    """


def answer_early(command: str, arguments: list[str], program: str) -> None:
    """End with the help, or with what is wrong with the flags, if the record is of the installed versions and shows it."""
    commands = recorded_commands()
    if command in commands:
        parser = build_parser(commands[command], program)
        if commands[command]["reads_config"] and "--config" in arguments:
            place = arguments.index("--config")
            arguments = arguments[:place] + arguments[place + 2 :]
            for action in parser._actions:
                action.required = False  # the file may have it
        parser.parse_args(arguments)


def split_config(arguments: list[str], program: str) -> list[str]:
    """The arguments, with `--config=FILE` as the two words that TrlParser looks for."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if words[-1:] == ["--config"]:
        stop(program, ValueError("argument --config: expected one argument."))
    return words


def recorded_commands() -> dict[str, Any]:
    """The recorded flags of each command; nothing if other versions are installed."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return record["commands"] if record["versions"] == installed_versions() else {}


def installed_versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_WITH}


def build_parser(recorded: dict[str, Any], program: str) -> RecordedParser:
    parser = RecordedParser(
        program,
        description=recorded["description"],
        epilog=recorded["epilog"],
        formatter_class=FORMATTERS[recorded["formatter"]],
    )
    for flag in recorded["flags"]:
        options = {name: value for name, value in flag.items() if name not in ("names", "type")}
        if "choices" in flag:
            options["type"] = functools.partial(_chosen, {str(choice): choice for choice in flag["choices"]})
        elif "type" in flag:
            options["type"] = TYPES[flag["type"]]
        parser.add_argument(*flag["names"], **options)
    return parser


def _chosen(choices: dict[str, Any], value: str) -> Any:
    return choices.get(value, value)

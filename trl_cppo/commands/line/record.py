# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Writes `flags.json` anew: `python -m trl_cppo.commands.line.record`, after a change of flags or another TRL."""

import argparse
import json
from importlib import import_module
from typing import Any

from trl import TrlParser

from .flags import RECORD, TYPES, installed_versions

PARSERS = {  # the modules that make them
    "train": "train.arguments",
    "prepare": "prepare.arguments",
    "plan": "plan.arguments",
    "evaluate": "evaluate.arguments",
    "report": "report.command",
}
ACTIONS = {
    argparse._StoreAction: "store",
    argparse._StoreTrueAction: "store_true",
    argparse._StoreFalseAction: "store_false",
}


def make_record() -> str:
    """The content of `flags.json`, of the parsers as they are with the installed versions: a line for each flag."""
    commands = {name: _parser_record(real_parser(name, name)) for name in PARSERS}
    flags = {f'"flags of {name}"': record["flags"] for name, record in commands.items()}
    frame = {name: record | {"flags": f"flags of {name}"} for name, record in commands.items()}
    text = json.dumps({"versions": installed_versions(), "commands": frame}, indent=1, ensure_ascii=False)
    for place, lines in flags.items():
        listed = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        text = text.replace(place, f"[\n{listed}\n]")
    return text + "\n"


def real_parser(command: str, program: str) -> argparse.ArgumentParser:
    """A command's own parser, which takes seconds to import."""
    return import_module(f"trl_cppo.commands.{PARSERS[command]}").make_parser(program)


def _parser_record(parser: argparse.ArgumentParser) -> dict[str, Any]:
    return {
        "description": parser.description,
        "epilog": parser.epilog,
        "formatter": parser.formatter_class.__name__,
        "reads_config": isinstance(parser, TrlParser),
        "flags": [_flag_record(action) for action in parser._actions if action.dest != "help"],
    }


def _flag_record(action: argparse.Action) -> dict[str, Any]:
    """The arguments of `add_argument` that make the flag, less those that have argparse's own default."""
    kind = ACTIONS[type(action)]
    record = {"names": action.option_strings or [action.dest], "action": kind, "default": action.default}
    if action.option_strings:
        record |= {"dest": action.dest, "required": action.required}
    record["help"] = action.help
    if kind == "store":
        names = {cls: name for name, cls in TYPES.items()}
        record |= {
            "nargs": action.nargs,
            "const": action.const,
            "choices": action.choices and list(action.choices),
            "metavar": action.metavar,
        }
        record["type"] = names.get(action.type)
    return {name: value for name, value in record.items() if value not in (None, False) or name == "default"}


if __name__ == "__main__":
    RECORD.write_text(make_record(), encoding="utf-8")

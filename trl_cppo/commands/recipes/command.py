# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""List the recipes and accelerate configurations of the package, or copy one: `trl-cppo recipes`."""

import argparse
import shutil
from pathlib import Path

from ..line import ShortErrors, stop
from . import ACCELERATE_CONFIGS, CONFIGS, recipe_named

GROUPS = {
    "Recipes, for trl-cppo train --config NAME": CONFIGS,
    "Accelerate configurations, for accelerate launch --config_file; copy one first": ACCELERATE_CONFIGS,
}
DESCRIPTION = """
Without arguments: list the recipes and accelerate configurations that come with the package. With `copy`: put one into a
folder, to be read and changed.

    trl-cppo recipes copy deepspeed_zero2
    accelerate launch --config_file deepspeed_zero2.yaml -m trl_cppo train --config qwen2_5_vl_3b_virl39k
"""


class _Parser(ShortErrors, argparse.ArgumentParser):
    """With errors of one line."""


def make_parser(program: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(program, description=DESCRIPTION, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", metavar="copy")
    copy = actions.add_parser("copy", help="copy a recipe or configuration into a folder")
    copy.add_argument("name", metavar="NAME", help="As the list has it.")
    copy.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="Default: the working folder.")
    return parser


def what_it_is(path: Path) -> str:
    """The first sentence of its first comment."""
    line = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    return line.partition(". ")[0].removesuffix(".")


def show() -> None:
    for title, folder in GROUPS.items():
        print(f"{title}:")
        for path in sorted(folder.glob("*.yaml")):
            print(f"  {path.stem:26}{what_it_is(path)}")


def copy_recipe(name: str, folder: str) -> Path:
    """
    Raises:
        `ValueError`: if nothing has that name. `FileExistsError`: if the folder has a file of that name.
    """
    source = recipe_named(name, *GROUPS.values())
    if source is None:
        raise ValueError(f"there is no recipe {name!r}. Their names: trl-cppo recipes.")
    target = Path(folder).expanduser() / source.name
    if target.exists():
        raise FileExistsError(f"{target} exists. Move it away, or give another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def main(arguments: list[str], program: str = "trl-cppo recipes") -> None:
    """List the recipes, or copy the one that the command line's arguments name."""
    args = make_parser(program).parse_args(arguments)
    if args.action is None:
        return show()
    try:
        print(f"Copied to {copy_recipe(args.name, args.folder)}.")
    except (ValueError, OSError) as error:
        stop(program, error)

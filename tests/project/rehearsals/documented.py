# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The commands that the documentation tells people to type, in the order in which a reader meets them."""

import re
import shlex
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from doc_pages import PAGES, ROOT, commands_of, named_commands, spans_of, tables_below

from trl_cppo.commands.prepare.formats.benchmarks import BENCHMARKS as BENCHMARKS_OF_THE_PAPER

RECIPES = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
ORDER = (
    "README.md",
    "docs/data.md",
    "examples/configs",
    "docs/distributed.md",
    "docs/plan.md",
    "docs/evaluation.md",
    "docs/reproduce.md",
    "docs/report.md",
)
# Set-up and repository work: .ci/run does the first kind, tests/project/test_install.py resolves what pip is told.
SET_UP = ("python3 -m venv", ". ", "pip install", "pytest", "cd ", "git ")
# Those in tests/project/benchmarks/ run their short versions, tests/project/vllm_engine/test_runs.py that of the last.
BENCHMARKS = ("python -m benchmarks.", "python -m timeit", "python tests/project/vllm_engine/noise.py")
NAMES = ("python -m trl_cppo report",)  # mentioned in prose, not to be typed so


@dataclass(frozen=True)
class Command:
    text: str
    place: str

    def __str__(self):
        return f"{self.place}: {self.text[:60]}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def header_commands(recipe: Path) -> list[list[str]]:
    """Those that a recipe's first comment gives, indented."""
    header = re.match(r"(?:#.*\n)+", recipe.read_text())[0]
    return commands_of("\n".join(line[4:] for line in header.splitlines() if line.startswith("#   ")))


def documented_commands() -> list[Command]:
    """Each command once, at the first place where it stands."""
    found = {}
    sources = [(page, named_commands(page)) for page in PAGES] + [(path, header_commands(path)) for path in RECIPES]
    names = {source: str(source.relative_to(ROOT)) for source, _ in sources}

    def rank(source: Path) -> int:
        return next((i for i, start in enumerate(ORDER) if names[source].startswith(start)), len(ORDER))

    for source, commands in sorted(sources, key=lambda item: rank(item[0])):
        for words in commands:
            found.setdefault(shlex.join(words), names[source])
    return [Command(text, place) for text, place in found.items()]


def not_rehearsed() -> list[str]:
    """How the commands begin that docs/distributed.md lists as not run, with what stood in for them."""
    rows = tables_below(ROOT / "docs" / "distributed.md", "### Commands that have not run")
    return [spans_of(row[0])[0] for row in rows]


def to_rehearse() -> list[Command]:
    exempt = (*SET_UP, *BENCHMARKS, *not_rehearsed())
    commands = [command for command in documented_commands() if command.text not in NAMES]
    return of_loops_one([command for command in commands if not command.text.startswith(exempt)])


def of_loops_one(commands: list[Command]) -> list[Command]:
    """Of evaluations that differ in the benchmark alone the first: what differs is read by `prepare`, which runs for all."""
    names = re.compile(rf"\b(?:{'|'.join(BENCHMARKS_OF_THE_PAPER)})\b")
    seen: set[str] = set()
    kept = []
    for command in commands:
        kind = names.sub("NAME", command.text) if " evaluate " in command.text else command.text
        if kind not in seen:
            kept.append(command)
        seen.add(kind)
    return kept


def nodes_of(commands: list[Command]) -> list[list[Command]]:
    """The commands, those of one run on several nodes together."""
    return [list(group) for _, group in groupby(commands, lambda it: re.sub(r"--machine_rank \d+", "", it.text))]

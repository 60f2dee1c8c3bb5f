# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Taking the Markdown pages apart, for test_docs.py."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    run: bool

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
        before = text[: match.start()].rstrip().splitlines()
        run = not (before and before[-1].lstrip().startswith("<!-- not run: "))
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3], run))
    return found


def prose_of(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans_of(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def tables_below(page: Path, heading: str) -> list[list[str]]:
    """The cells of each table row below a heading, up to the next one of its rank or above, without the tables' heads."""
    rank = len(heading.split(" ")[0])
    _, text = prose_of(page).split(f"\n{heading}\n")
    text = re.split(rf"^#{{1,{rank}}} ", text, flags=re.MULTILINE)[0]
    lines = text.splitlines()
    rows = [
        line for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not set(line) <= set("|-: ") and not (set(following) <= set("|-: ") and following)
    ]  # fmt: skip
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def unrolled(text: str) -> str:
    """Shell text with each loop over words written out: `for name in a b; do`, its body, `done`."""

    def written_out(loop: re.Match) -> str:
        name, values, body = loop.groups()
        return "\n".join(re.sub(rf"\${name}\b", value, body) for value in values.split())

    return re.sub(r"^for (\w+) in ([^;\n]+); do\n(.*?)\ndone$", written_out, text, flags=re.DOTALL | re.MULTILINE)


def commands_of(text: str) -> list[list[str]]:
    """The words of each command, without variables in front."""
    found = []
    for line in unrolled(text).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = [[]]
        for word in lexer:
            words[-1].append(word) if set(word) - set("&|;()") else words.append([])
        found += [command[next((i for i, word in enumerate(command) if not re.match(r"\w+=", word)), 0) :]
                  for command in words if command]  # fmt: skip
    return found


SHELLS = ("bash", "sh", "shell", "console")
LAUNCHERS = ("python", "python3", "accelerate", "torchrun", "deepspeed", "srun", "uv", "hf", "trl", "vllm", "ray")
_STARTS = re.compile(rf"(?:\w+=\S+ )*(?:{'|'.join(LAUNCHERS)}) ")


def named_commands(page: Path) -> list[list[str]]:
    """Those of the page's shell blocks, and those in its prose that start a script, a module or a server; as they stand."""
    text = page.read_text()
    found = [(block.line, block.text) for block in blocks_of(page) if block.language in SHELLS]
    blank = re.sub(r"^ *```.*?^ *```", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    for match in re.finditer(r"`([^`]+)`", blank):
        span = " ".join(match[1].split())
        server = span.startswith(("trl ", "vllm ", "hf ", "trl-cppo ")) and "--" in span
        if server or (_STARTS.match(span) and re.search(r"\.py\b| -m ", span)):
            found.append((blank.count("\n", 0, match.start()) + 1, span))
    commands = commands_of("\n".join(text for _, text in sorted(found, key=lambda item: item[0])))
    return [[word for word in command if word not in ("…", "...")] for command in commands]


def anchors_of(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}

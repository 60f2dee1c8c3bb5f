# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Text from outside (names, prompts, settings) made harmless in Markdown, in YAML and in Python code."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

# An underscore between letters or digits is only itself.
_SPECIAL = re.compile(r"[\\`*{}\[\]<>#&|!~$^@\"']|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LONGEST = 300  # characters; a card is no place for longer names


def one_line(text: Any) -> str:
    """The text without line breaks, control characters and invisible ones, cut to 300 characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"


def escape(text: Any) -> str:
    """
    The text on one line, to be shown as it is in Markdown, in a table cell and in HTML alike.

    Character references rather than backslashes: they can neither begin a construct of Markdown nor end a cell, and
    KaTeX, which the Hub runs before Markdown, does not read them.
    """
    escaped = _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", one_line(text))
    # Bare addresses would become links.
    return re.sub(r"(?i)www\.", lambda match: match[0][:3] + "&#46;", escaped.replace("://", "&#58;//"))


def python_string(text: str) -> str:
    """A Python literal of one line, in double quotes where that needs no further escape."""
    literal = repr(text)
    return literal if '"' in text or "'" in text else f'"{literal[1:-1]}"'


def link(text: str, url: str | None) -> str:
    """A Markdown link, or the text alone where the address is none of the web's."""
    if url is None or not re.match(r"https?://", url):
        return escape(text)
    return f"[{escape(text)}]({quote(url, safe=':/?&=%+,;@~#')})"


def is_hub_id(name: Any) -> bool:
    """Whether this reads as `owner/name` on the Hub and is no path on this machine. Nothing is asked from the Hub."""
    if not isinstance(name, str) or name.count("/") != 1 or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def looks_local(name: str) -> bool:
    """Whether a name is that of a file or folder, here or elsewhere."""
    return os.path.exists(name) or name.startswith((".", "~")) or "\\" in name or os.path.isabs(name)


def public_name(name: str) -> str:
    """What may be shown of a data set's name: of a path only its last part, for folders tell who and where one is."""
    if is_hub_id(name) or not (looks_local(name) or "/" in name):
        return one_line(name)
    return one_line(Path(name.replace("\\", "/")).expanduser().resolve().name)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Markdown of what others wrote: names, paths and numbers that a card shows as they are."""

import html
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def one_line(text: Any) -> str:
    """Without line ends, which could end the metadata, and without what changes the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def escape(text: Any) -> str:
    """A text that Markdown and HTML show as it is, on one line."""
    line = one_line(text)
    return re.sub(r"([\\`*_\[\]#|!~{}$])", r"\\\1", html.escape(line, quote=False))


def table(rows: Iterable[Iterable[Any]], head: Iterable[str]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float) -> str:
    return f"{value:.4g}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_hub_id(name: str | None) -> bool:
    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name

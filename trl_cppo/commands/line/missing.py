# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Names that lead nowhere on this machine."""

import difflib
from pathlib import Path


def nothing_here(name: str) -> str:
    """That there is no such file or folder, with the name beside it that is most like it, in brackets."""
    path = Path(name).expanduser()
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    meant = f" (did you mean {Path(name).with_name(close[0])}?)" if close else ""
    return f"there is no file or folder {name} here{meant}"

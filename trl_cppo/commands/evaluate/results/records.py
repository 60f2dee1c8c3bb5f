# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Finished questions on disk, one JSON object a line, so that an interrupted evaluation goes on.

The main process appends to `_<name>.records.jsonl`, process number r > 0 to `_<name>.records.<r>.jsonl`: no two processes
write to one file, which shared file systems do not keep in order. The first line of each holds the settings. Trainer does
not upload files whose names begin with `_`: what a model wrote on somebody's data need not be public.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .identity import check_same_settings

# row, question (its hash), greedy (a completion or None), samples (list of completions), group where it belongs to one
Record = dict[str, Any]


class Records:
    """
    The record files beside an evaluation's output.

    Args:
        output (`Path`): the JSON file of the results; its name without the suffix names the record files.
        settings (`dict`): what the records depend on, JSON values only.
        process (`int`, *optional*, defaults to `0`): number of this process.
    """

    def __init__(self, output: Path, settings: dict[str, Any], process: int = 0):
        self._base = output.parent / f"_{output.stem}.records"
        self._settings = settings
        self.path = self._file(process)

    def _file(self, process: int) -> Path:
        return Path(f"{self._base}.jsonl" if process == 0 else f"{self._base}.{process}.jsonl")

    def files(self) -> list[Path]:
        """All existing record files, of whatever number of processes."""
        name = re.compile(re.escape(self._base.name) + r"(\.\d+)?\.jsonl")  # no copies that a user made
        return sorted(path for path in self._base.parent.glob("*.jsonl") if name.fullmatch(path.name))

    def remove(self) -> None:
        """Forget all records."""
        for path in self.files():
            path.unlink()

    def mend(self) -> None:
        """Cut half-written last lines off. For one process, before the others read."""
        for path in self.files():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole == 0:
                path.unlink()
            elif whole < len(content):
                os.truncate(path, whole)

    def read(self) -> dict[int, Record]:
        """
        The records by their row, ordered.

        Raises:
            `EvaluationError`: if a file was written with other settings or a line is damaged.
        """
        records = {}
        for path in self.files():
            header, *rest = self._lines(path)
            check_same_settings(str(path), header.get("settings", {}), self._settings)
            records.update({record["row"]: record for record in rest})
        return dict(sorted(records.items()))

    @staticmethod
    def _lines(path: Path) -> list[Any]:
        lines = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise EvaluationError(
                    f"{path}, line {number} is damaged. Delete the line, or --overwrite all."
                ) from error
        return lines

    def append(self, records: list[Record]) -> None:
        """Add finished questions to this process's file; they survive the end of the process from here on."""
        is_new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text([{"settings": self._settings}] * is_new + records))

    def merge(self) -> None:
        """Bring all records into the main process's file, by row. For one process, when the others have finished."""
        draft = self._base.with_suffix(".draft")
        draft.write_text(_text([{"settings": self._settings}, *self.read().values()]), encoding="utf-8")
        others = [path for path in self.files() if path != self._file(0)]
        draft.replace(self._file(0))
        for path in others:
            path.unlink()


def _text(lines: Iterable[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)

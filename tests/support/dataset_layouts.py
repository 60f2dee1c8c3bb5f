# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Folders in the true layouts of the Hub's data sets that the documentation names, for machines without the Hub.

`layouts/ORG--NAME.json` holds what is public of each: columns, splits, the files' names, and one row made up in its
style, whose images are given by their sizes `[width, height]`. Those in `layouts/benchmarks/` have a row of each kind, and the
columns by which rows belong together: `rows` of them have one value ("block"), or the same row of each split ("row").
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

FOLDER = Path(__file__).parent / "layouts"


def layout_names() -> list[str]:
    return sorted(path.stem.replace("--", "/") for path in FOLDER.glob("*.json"))


def benchmark_names() -> list[str]:
    return sorted(path.stem.replace("--", "/") for path in (FOLDER / "benchmarks").glob("*.json"))


def read_layout(name: str) -> dict[str, Any]:
    folder = FOLDER / "benchmarks" if name in benchmark_names() else FOLDER
    return json.loads((folder / f"{name.replace('/', '--')}.json").read_text())


def features_of(name: str) -> Features:
    return Features({column: _feature(kind) for column, kind in read_layout(name)["features"].items()})


def _feature(kind: str | list[str] | dict[str, Any]) -> Any:
    if isinstance(kind, list):
        return List(_feature(kind[0]))
    if isinstance(kind, dict):
        return {name: _feature(inner) for name, inner in kind.items()}
    return Image() if kind == "image" else Value(kind)


def write_layout(name: str, folder: Path, rows: int = 8) -> Path:
    """The folder, made as the data set's on the Hub, with that many rows in each split; the rows differ."""
    layout, archived = read_layout(name), {}
    for place, split in enumerate(layout["splits"]):
        numbers = range(place * rows, (place + 1) * rows)
        values = [{column: _vary(layout, column, i, archived) for column in layout["features"]} for i in numbers]
        path = folder / layout["file"].format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(values, features=features_of(name)).to_parquet(path)
    if archived:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for path, data in archived.items():
                archive.writestr(path, data)
    return folder


def write_benchmark(name: str, folder: Path, rows: int | None = None) -> Path:
    """The same of a benchmark: the rows of the layout, over again, with other pixels; by default each once."""
    layout = read_layout(name)
    kinds, images = layout["rows"], [column for column, kind in layout["features"].items() if kind == "image"]
    for place, split in enumerate(layout["splits"]):
        values = []
        for i in range(rows or len(kinds)):
            row = kinds[i % len(kinds)] | {
                column: str(i // len(kinds) if by == "block" else i) for column, by in layout.get("keys", {}).items()
            }
            pixels = {column: {"bytes": noise_png(place * 1000 + i, *row[column]), "path": None} for column in images}
            values.append(row | pixels)
        path = folder / layout["file"].format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(values, features=features_of(name)).to_parquet(path)
    return folder


def _vary(layout: dict[str, Any], column: str, number: int, archived: dict[str, bytes]) -> Any:
    """The value of row `number`: other pixels, numbers and choices. What a path names goes into `archived`."""
    kind, value = layout["features"][column], layout["row"][column]
    if kind == "image":
        return {"bytes": noise_png(number, *value), "path": None}
    if kind == ["image"]:
        return [{"bytes": noise_png(number + 1000 * i, *size), "path": None} for i, size in enumerate(value)]
    if isinstance(value, list) and isinstance(value[0], list):
        files = {f"images/{number}-{i}.png": noise_png(number + 1000 * i, *size) for i, size in enumerate(value)}
        archived |= files
        return list(files)
    if isinstance(value, list):
        return [_vary_text(text, number) for text in value]
    return _vary_text(value, number) if isinstance(value, str) else value


def _vary_text(text: str, number: int) -> str:
    text = re.sub(r"\d+", lambda match: str(int(match[0]) + number), text)
    return re.sub(
        r"(?<=answer is )[A-C]|(?<=Answer:)[A-C]|(?<=choice )[A-C]|(?<=boxed\{)[A-C]",
        lambda match: "ABC"[("ABC".index(match[0]) + number) % 3], text,
    )  # fmt: skip


def noise_png(seed: int, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

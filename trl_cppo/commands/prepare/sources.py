# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What `prepare` reads: a data set of the Hub, a folder, a file; its splits, their rows, and where images that are paths lie."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet
from datasets import Dataset, Image, LargeList, List, Value, load_dataset
from datasets.table import InMemoryTable
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ...run.rows.layouts import ANSWERS, IMAGES, QUESTIONS, Layout, about_conversations, find_layout
from ..line import nothing_here
from .formats.benchmarks import BENCHMARKS, MADE, Benchmark
from .formats.text_files import as_dataset, columns_in, read_rows

TEXT_FILES = (".jsonl", ".csv", ".tsv", ".json")  # where a folder has several kinds, the first
_TEXTS = ("string", "large_string", "string_view")  # the latter two as pandas and polars write them
_BYTES = ("binary", "large_binary", "binary_view")
_SPLIT = re.compile(r"(?:^|[-_./])(train|validation|valid|val|dev|test|eval)(?:[-_./]|$)")
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}


@dataclass(frozen=True)
class Places:
    """
    Where the images lie that a split names by paths.

    Attributes:
        root (`str`): the folder of the whole.
        folders (`tuple[str, ...]`): that of each file of the split.
        starts (`tuple[int, ...]`): the first row of each.
        confined (`bool`): whether paths must stay inside of the root: not those of a file that the user names.
    """

    root: str
    folders: tuple[str, ...]
    starts: tuple[int, ...]
    confined: bool

    def folder(self, row: int) -> str:
        """The folder that a row's paths start from."""
        return self.folders[bisect_right(self.starts, row) - 1]


@dataclass(frozen=True)
class Source:
    """
    A data set that was found.

    Attributes:
        name (`str`): as the user calls it.
        root (`Path`): its folder.
        files (`dict[str, list[Path]]`): of each split: parquet or text files, or one folder of `save_to_disk`.
        is_file (`bool`): whether the user named a file.
        benchmark (`Benchmark`, *optional*): whose columns it has.
    """

    name: str
    root: Path
    files: dict[str, list[Path]]
    is_file: bool = False
    benchmark: Benchmark | None = None

    def stamped(self) -> list[Path]:
        """The files whose change makes another data set."""
        return sum(self.files.values(), []) if self.is_file else sorted(self.root.rglob("*"))

    def read(
        self,
        split: str,
        question: str | None,
        answer: str | None,
        images: Sequence[str] | None,
        skip_broken: bool = False,
    ) -> tuple[Dataset, Layout, Places]:
        """
        A split's rows. `skip_broken`: those of a benchmark that cannot be read have no answer, which leaves them out.

        Returns:
            `tuple[Dataset, Layout, Places]`: images are embedded, undecoded, or paths.

        Raises:
            `ValueError`: for columns that are not there.
        """
        files, name = self.files[split], f"{self.name} ({split})"
        if files[0].suffix.lower() in TEXT_FILES:
            tables = [read_rows(path) for path in files]
            counts, rows = [len(table) for table in tables], sum(tables, [])
            layout = _layout(columns_in(rows), name, question, answer, images)
            used = dict.fromkeys([layout.question, layout.answer, *layout.images, *layout.extras])
            dataset = as_dataset(rows, list(used), name)
        else:
            dataset, counts = _stored(files, split)
            dataset = dataset if self.benchmark is None else self.benchmark.rows(dataset, name, skip_broken)
            layout = _layout(dataset.column_names, name, question, answer, images)
            if self.benchmark is not None:
                layout = replace(layout, extras=tuple(column for column in MADE if column in dataset.column_names))
            dataset = _undecoded(dataset, layout, name)
            if self.is_file and any(_holds_paths(dataset, column) for column in layout.images):
                # In memory, so that nothing is cached: `datasets` would not see that a photo elsewhere has changed.
                dataset = Dataset(InMemoryTable(dataset.with_format("arrow")[:]))
        starts = tuple(sum(counts[:place]) for place in range(len(counts)))
        return (
            dataset,
            layout,
            Places(str(self.root), tuple(str(path.parent) for path in files), starts, not self.is_file),
        )


def find_source(name: str) -> Source:
    """
    A data set by its name: a file, a local folder, or a Hub id (from the Hub's cache if need be).

    Raises:
        `FileNotFoundError`, `ValueError`: if it is not there or holds nothing that can be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in (".parquet", *TEXT_FILES):
            raise ValueError(f"{name} is none of the files that can be read: .parquet, {', '.join(TEXT_FILES)}.")
        split = path.stem if _SPLIT.fullmatch(path.stem) else "train"
        return Source(name, path.parent, {_SPLIT_NAMES.get(split, split): [path]}, is_file=True)
    if path.is_dir():
        files = _files_of(path)
        return Source(name, path, files) if files else _nothing(name, path)
    if name.startswith((".", "/", "~")) or path.suffix in (".parquet", *TEXT_FILES):
        raise FileNotFoundError(f"{nothing_here(name)}.")
    root = _download(name, ["*.parquet", "images.zip"])  # not the pictures one by one, where a repository has them too
    files = _by_split(root, root.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{name} holds no parquet file. Download it (hf download --repo-type dataset {name} --local-dir FOLDER) and "
            "name the folder, or the file in it that has the questions."
        )
    return Source(name, root, files)


def _download(name: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{nothing_here(name)}, and it cannot be had from the Hub: {error}") from error


def find_benchmark(benchmark: str, name: str | None = None) -> Source:
    """
    A benchmark by its name in [`BENCHMARKS`], as the split `test`.

    Args:
        benchmark (`str`): which.
        name (`str`, *optional*): a local folder of the same files, or another Hub id; by default the benchmark's own.

    Raises:
        `FileNotFoundError`, `ValueError`: if there is none of that name, or its files are not there.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {benchmark!r}, only {', '.join(BENCHMARKS)}.")
    found = BENCHMARKS[benchmark]
    name = name or found.hub
    root = Path(name).expanduser()
    root = root if root.is_dir() else _download(name, [found.files])
    files = sorted(root.glob(found.files))
    if not files:
        raise FileNotFoundError(f"{name} holds no {found.files}, where {found.hub} has the rows of {benchmark}.")
    return Source(name, root, {"test": files}, benchmark=found)


def columns_of(name: str) -> list[str]:
    """
    The columns that [`prepare`] finds in a file or a folder, those of its first split.

    Raises:
        `FileNotFoundError`, `ValueError`: as [`find_source`].
    """
    source = find_source(name)
    first = next(iter(source.files.values()))[0]
    if first.suffix.lower() in TEXT_FILES:
        return columns_in(read_rows(first))
    return (
        Dataset.load_from_disk(str(first)).column_names if first.is_dir() else pyarrow.parquet.read_schema(first).names
    )


def _files_of(root: Path) -> dict[str, list[Path]]:
    if (root / "dataset_dict.json").is_file():  # of save_to_disk
        return {split: [root / split] for split in json.loads((root / "dataset_dict.json").read_text())["splits"]}
    if (root / "state.json").is_file():
        return {"train": [root]}
    metadata = [f"metadata{kind}" for kind in (".parquet", *TEXT_FILES)]  # beside the photos of an image folder
    for pattern in (*metadata, "*.parquet", *(f"*{kind}" for kind in TEXT_FILES)):
        files = _by_split(root, root.rglob(pattern))
        if files:
            return files
    return {}


def _by_split(root: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(paths):
        inside = path.relative_to(root)
        if any(part.startswith(".") for part in inside.parts):
            continue
        match = _SPLIT.search(inside.as_posix())
        split = match[1] if match else "train"
        files.setdefault(_SPLIT_NAMES.get(split, split), []).append(path)
    return files


def _nothing(name: str, root: Path) -> NoReturn:
    pictures = next(
        (path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")), None
    )
    way_out = "" if pictures is None else (
        " There are pictures: write their questions and answers into a metadata.jsonl beside them, a line a row such as "
        f'{{"file_name": "{pictures.name}", "question": "…", "answer": "…"}}.'
    )  # fmt: skip
    raise FileNotFoundError(f"{name} holds no parquet file, nor one of {', '.join(TEXT_FILES)}.{way_out}")


def _layout(
    columns: list[str], name: str, question: str | None, answer: str | None, images: Sequence[str] | None
) -> Layout:
    layout = find_layout(columns, question, answer, images)
    if layout is not None:
        return layout
    named = [column for column in (question, answer, *(images or [])) if column]
    unknown = [column for column in named if column not in columns]
    if unknown:
        raise ValueError(f"{name} has no column {unknown[0]!r}; its columns are {columns}.")
    known = "; ".join(" or ".join(names) for names in (QUESTIONS, ANSWERS, IMAGES))
    raise ValueError(
        f"{name} has the columns {columns}. Needed are {known}: name yours, --question COLUMN --answer COLUMN --image "
        f"COLUMN.{about_conversations(columns)}"
    )


def _stored(files: list[Path], split: str) -> tuple[Dataset, list[int]]:
    """Rows of parquet files or of one folder of `save_to_disk`, and how many each holds."""
    if files[0].is_dir():
        dataset = Dataset.load_from_disk(str(files[0]))
        return dataset, [len(dataset)]
    dataset = load_dataset("parquet", data_files={split: [str(path) for path in files]}, split=split)
    return dataset, [pyarrow.parquet.read_metadata(path).num_rows for path in files]


def _undecoded(dataset: Dataset, layout: Layout, name: str) -> Dataset:
    """With embedded images as their bytes."""
    for column in layout.images:
        images, image = dataset.features[column], _image_feature(dataset, column)
        kind = image.dtype if isinstance(image, Value) else None
        if kind not in (*_TEXTS, *_BYTES) and not isinstance(image, (Image, dict)):  # a dict: Image's struct, nameless
            raise ValueError(
                f"{name}, column {column!r}: expected an image or a list of images, embedded or as paths, got {images}."
            )
        wanted = Value("string") if kind in _TEXTS else Image(decode=False)
        wanted = List(wanted) if isinstance(images, (List, LargeList)) else wanted
        dataset = dataset if images == wanted else dataset.cast_column(column, wanted)
    return dataset


def _image_feature(dataset: Dataset, column: str) -> Any:
    images = dataset.features[column]
    return images.feature if isinstance(images, (List, LargeList)) else images


def _holds_paths(dataset: Dataset, column: str) -> bool:
    return _image_feature(dataset, column) == Value("string")

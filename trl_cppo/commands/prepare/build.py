# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A whole data set: found, mapped, filtered, written."""

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tqdm import tqdm

from ...method.image_size import check_limits
from ...run.rows.layouts import ANSWERS, IMAGES, QUESTIONS, Layout, find_layout
from .rows import PROMPT_SUFFIX, build_row

_RECORD = ".prepared.json"  # in the folder that is made; `load_dataset` passes over hidden files
_SHARD_ROWS = 2000  # some 150 MB of ViRL39K
_SPLIT = re.compile(r"(?:^|[-_./])(train|validation|valid|val|dev|test|eval)(?:[-_./]|$)")
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test"}


def prepare(
    name: str,
    splits: list[str] | None = None,
    model: str | None = None,
    max_prompt_length: int = 512,
    prompt_suffix: str = PROMPT_SUFFIX,
    skip_broken: bool = False,
    num_proc: int | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
) -> tuple[DatasetDict, dict[str, Counter]]:
    """
    A data set in the columns that TRL's GRPO and CPPO trainers read.

    A `prompt` is one user message of content parts, for a question shows its images where its `<image>` marks are, or in
    front if it has none. Images keep their bytes, but those of a short side below 28 px are enlarged to it,
    and those beyond a limit of pixels are scaled and encoded anew (JPEG of quality 95 from JPEG, else PNG). Rows of several images and of none are kept. The work is cached by `datasets`: a second call reads its files.

    Args:
        name (`str`): a Hub id, or a local folder of the same layout: parquet files and, for images that are paths, the
            files that they name, or an `images.zip` that holds them. Columns: `question` or `problem`; `answer`, or a
            `solution` that marks its final answer by `\\boxed{}` or `<answer></answer>`; `images` or `image`.
        splits (`list[str]`, *optional*): all by default.
        model (`str`, *optional*): Hub id or local folder of the processor that counts a prompt's tokens, those of the
            images included, as TRL does. Without it no prompt is too long.
        max_prompt_length (`int`, *optional*, defaults to `512`): tokens.
        prompt_suffix (`str`, *optional*): written behind each question.
        skip_broken (`bool`, *optional*, defaults to `False`): leave out rows that cannot be used, and count them.
        num_proc (`int`, *optional*): processes.
        max_pixels (`int`, *optional*): the most pixels of an image, width times height (see [`limit_pixels`]). Tokens are
            counted after the scaling.
        min_pixels (`int`, *optional*): the fewest.

    Returns:
        `tuple[DatasetDict, dict[str, Counter]]`: columns `prompt`, `images`, `solution` (in `\\boxed{}`), the source's
        own, and `num_tokens` with a `model`; for each split how many rows were kept and left out, and why.

    Raises:
        `FileNotFoundError`, `ValueError`: for a data set, split or columns that are not there; for a row that cannot be
            used, naming row and column.
    """
    check_limits(max_pixels, min_pixels)
    root, files = _find_files(name)
    unknown = sorted(set(splits or []) - set(files))
    if unknown:
        raise ValueError(f"{name} has no split {unknown[0]!r}, only {sorted(files)}.")
    prepared, counts = DatasetDict(), {}
    for split in splits or sorted(files):
        source = load_dataset("parquet", data_files={split: [str(path) for path in files[split]]}, split=split)
        settings = dict(
            name=f"{name} ({split})", root=str(root), model=model, suffix=prompt_suffix, skip_broken=skip_broken,
            max_pixels=max_pixels, min_pixels=min_pixels,
            # Not read, but a part of the cache's key: the map function's own key holds no file that it opens.
            stamps=[version("trl-cppo"), _stamp(root), _stamp(Path(model)) if model else None],
        )  # fmt: skip
        rows = _map_rows(source, settings, num_proc)
        lengths = rows["num_tokens"] if model else [0] * len(rows)
        outcomes = [
            fault or (f"prompt of more than {max_prompt_length} tokens" if length > max_prompt_length else "kept")
            for fault, length in zip(rows["fault"], lengths, strict=True)
        ]
        kept = [index for index, outcome in enumerate(outcomes) if outcome == "kept"]
        prepared[split], counts[split] = rows.remove_columns("fault").select(kept), Counter(outcomes)
    return prepared, counts


def _map_rows(source: Dataset, settings: dict[str, Any], num_proc: int | None) -> Dataset:
    layout = _find_layout(source, settings["name"])
    part = {"type": Value("string"), "text": Value("string")}
    features = {
        "prompt": List({"role": Value("string"), "content": List(part)}),
        "images": List(Image()),
        "solution": Value("string"),
        **{column: source.features[column] for column in layout.extras},
        **({"num_tokens": Value("int32")} if settings["model"] else {}),
        "fault": Value("string"),
    }
    images = source.features[layout.images]
    image = images.feature if isinstance(images, List) else images
    if not isinstance(image, (Image, dict)) and image != Value("string"):  # a dict: Image's struct, without its name
        raise ValueError(
            f"{settings['name']}, column {layout.images!r}: expected an image or a list of images, embedded or as paths, "
            f"got {images}."
        )
    if image != Value("string"):  # embedded: their bytes, not decoded
        undecoded = Image(decode=False)
        source = source.cast_column(layout.images, List(undecoded) if isinstance(images, List) else undecoded)
    return source.map(
        build_row, with_indices=True, fn_kwargs={"layout": layout, **settings}, features=Features(features),
        remove_columns=source.column_names, num_proc=num_proc, writer_batch_size=100, desc=f"Preparing {settings['name']}",
    )  # fmt: skip


def _find_layout(source: Dataset, name: str) -> Layout:
    layout = find_layout(source.column_names)
    if layout is None:
        known = "; ".join(" or ".join(names) for names in (QUESTIONS, ANSWERS, IMAGES))
        raise ValueError(f"{name} has the columns {source.column_names}. Needed are {known}: rename yours.")
    return layout


def _find_files(name: str) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of a data set, from the Hub's cache if need be, and its parquet files by split."""
    root = Path(name).expanduser()
    if not root.is_dir():
        if name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no folder {name}.")
        try:
            patterns = ["*.parquet", "images.zip"]  # not the pictures one by one, where a repository has them too
            root = Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(f"{name} is no local folder and cannot be had from the Hub: {error}") from error
    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        match = _SPLIT.search(path.relative_to(root).as_posix())
        split = match[1] if match else "train"
        files.setdefault(_SPLIT_NAMES.get(split, split), []).append(path)
    if not files:
        raise FileNotFoundError(f"{name} holds no parquet file.")
    return root, files


def _stamp(folder: Path) -> str:
    """A digest of the names, sizes and times of a folder's files: changes when one of them does."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def is_made_with(folder: str | Path, options: dict[str, Any]) -> bool:
    """Whether [`write`] made the folder and was given these options."""
    record = Path(folder).expanduser() / _RECORD
    return record.is_file() and record.read_bytes() == _record(options)


def _record(options: dict[str, Any]) -> bytes:
    return (json.dumps(options, indent=2, sort_keys=True) + "\n").encode()


def write(
    dataset: DatasetDict, folder: str | Path, overwrite: bool = False, options: dict[str, Any] | None = None
) -> None:
    """
    Write parquet files that `load_dataset(folder)` reads, all or none of them.

    They are written into a hidden folder beside, which then gets the name: what an interruption leaves does not load as
    if it were whole.

    Args:
        dataset (`DatasetDict`): what [`prepare`] returns.
        folder (`str` or `Path`): the folder to make.
        overwrite (`bool`, *optional*, defaults to `False`): replace an older one.
        options (`dict`, *optional*): what it was made with, for [`is_made_with`]; kept in the folder's `.prepared.json`.

    Raises:
        `FileExistsError`: if it exists.
        `ValueError`: if a split has no row.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists. Choose another folder, or overwrite=True.")
    empty = [split for split, rows in dataset.items() if len(rows) == 0]
    if empty:
        raise ValueError(f"the split {empty[0]!r} has no row left.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new = Path(scratch, "new", "data")
        new.mkdir(parents=True)
        for split, rows in dataset.items():
            shards = -(-len(rows) // _SHARD_ROWS)
            for i in tqdm(range(shards), desc=f"Writing {split}"):
                shard = rows.shard(shards, i, contiguous=True)
                shard.to_parquet(new / f"{split}-{i:05d}-of-{shards:05d}.parquet", batch_size=100)
        if options is not None:
            (new.parent / _RECORD).write_bytes(_record(options))
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        new.parent.rename(folder)
        shutil.rmtree(Path(scratch, "old"), ignore_errors=True)

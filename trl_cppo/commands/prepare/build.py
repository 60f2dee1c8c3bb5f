# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A whole data set: found, mapped, filtered, written."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from tqdm import tqdm

from ...method.image_size import check_limits
from ...run.rows.layouts import LEFT_OUT, RECORD
from .advice import advice
from .rows import PROMPT_SUFFIX, RowSettings, build_row
from .sources import find_benchmark, find_source
from .splitting import check_share, held_out
from .summary import Outcomes, left_out, too_long

_SHARD_ROWS = 2000  # some 150 MB of ViRL39K


def prepare(
    name: str | None = None,
    splits: list[str] | None = None,
    model: str | None = None,
    max_prompt_length: int = 512,
    prompt_suffix: str = PROMPT_SUFFIX,
    skip_broken: bool = False,
    num_proc: int | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    *,
    question: str | None = None,
    answer: str | None = None,
    image: list[str] | None = None,
    system_prompt: str | None = None,
    split_test: float | None = None,
    benchmark: str | None = None,
) -> tuple[DatasetDict, dict[str, Outcomes]]:
    """
    A data set in the columns that TRL's GRPO and CPPO trainers read.

    A `prompt` is one user message of content parts, for a question shows its images where its `<image>` marks are, or in
    front if it has none. Images keep their bytes, but those of a short side below 28 px are enlarged to it,
    and those beyond a limit of pixels are scaled and encoded anew (JPEG of quality 95 from JPEG, else PNG). Rows of several images and of none are kept. The work is cached by `datasets`: a second call reads its files.

    Args:
        name (`str`): a Hub id, or a local folder of the same layout: parquet files and, for images that are paths, the
            files that they name, or an `images.zip` that holds them. Or a jsonl, json, csv, tsv or parquet file, a folder of
            them, of photos with a metadata file beside them, or of `save_to_disk`; paths are relative to the file that names them.
            Of a benchmark: by default its own Hub id.
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
        question (`str`, *optional*): the column of the question; by default `question` or `problem`.
        answer (`str`, *optional*): that of the final answer; by default `answer`, or a `solution` that marks it by
            `\\boxed{}` or `<answer></answer>`.
        image (`list[str]`, *optional*): those of images, lists of images or paths; by default `images`, `image` or `file_name`.
        system_prompt (`str`, *optional*): a system message in front.
        split_test (`float`, *optional*): the share of `train` to hold out as `test`; see [`held_out`].
        benchmark (`str`, *optional*): one of [`BENCHMARKS`], whose own columns are read; `question`, `answer`, `image` and
            `split_test` do not go with it.

    Returns:
        `tuple[DatasetDict, dict[str, Outcomes]]`: columns `prompt`, `images`, `solution` (in `\\boxed{}`), the source's
        own, and `num_tokens` with a `model`; for each split how many rows were kept and left out, and why.

    Raises:
        `FileNotFoundError`, `ValueError`: for a data set, split or columns that are not there; for a row that cannot be
            used, naming row and column; for a split of which no row is left.
    """
    check_limits(max_pixels, min_pixels)
    check_share(split_test)
    source = find_benchmark(benchmark, name) if benchmark else find_source(name)
    name = source.name
    unknown = sorted(set(splits or []) - set(source.files))
    if unknown:
        raise ValueError(f"{name} has no split {unknown[0]!r}, only {sorted(source.files)}.")
    splits = splits or sorted(source.files)
    if split_test and ("test" in source.files or "train" not in splits):
        raise ValueError(f"--split_test makes a 'test' of the split 'train', but {name} has {splits}. Leave it out.")
    # Not read, but a part of the cache's key: the map function's own key holds no file that it opens.
    stamps = (version("trl-cppo"), _stamp(source.stamped()), _stamp(Path(model).rglob("*")) if model else None)
    prepared, counts = DatasetDict(), {}
    for split in splits:
        rows, layout, places = source.read(split, question, answer, image, skip_broken)
        settings = RowSettings(
            f"{name} ({split})", layout, places, model, prompt_suffix, system_prompt, skip_broken, max_pixels, min_pixels,
            stamps,
        )  # fmt: skip
        made = _map_rows(rows, settings, num_proc)
        prepared[split], counts[split] = _without_faults(made, settings, max_prompt_length)
    if split_test:
        _hold_out(prepared, counts, split_test)
    return prepared, counts


def _without_faults(made: Dataset, settings: RowSettings, max_prompt_length: int) -> tuple[Dataset, Outcomes]:
    lengths = made["num_tokens"][:] if settings.model else [0] * len(made)
    reasons = [
        fault or (too_long(max_prompt_length) if length > max_prompt_length else "kept")
        for fault, length in zip(made["fault"], lengths, strict=True)
    ]
    long = made.select([row for row, reason in enumerate(reasons) if reason == too_long(max_prompt_length)])
    outcomes = Outcomes(reasons, advice(long, max_prompt_length, settings.model))
    if not outcomes["kept"]:
        raise ValueError(f"no row of {settings.name} is left: {left_out(outcomes)}. {outcomes.advice}".rstrip())
    return made.remove_columns("fault").select(outcomes.rows["kept"]), outcomes


def _hold_out(prepared: DatasetDict, counts: dict[str, Outcomes], share: float) -> None:
    rows = prepared["train"]
    chosen = held_out(rows, share)
    for split, side in (("test", True), ("train", False)):
        prepared[split] = rows.select([row for row, is_held_out in enumerate(chosen) if is_held_out == side])
    counts["test"] = Outcomes(["kept"] * sum(chosen))
    counts["train"]["kept"] -= sum(chosen)


def _map_rows(source: Dataset, settings: RowSettings, num_proc: int | None) -> Dataset:
    part = {"type": Value("string"), "text": Value("string")}
    features = {
        "prompt": List({"role": Value("string"), "content": List(part)}),
        "images": List(Image()),
        "solution": Value("string"),
        **{column: source.features[column] for column in settings.layout.extras},
        **({"num_tokens": Value("int32")} if settings.model else {}),
        "fault": Value("string"),
    }
    return source.map(
        build_row, with_indices=True, fn_kwargs={"settings": settings}, features=Features(features),
        remove_columns=source.column_names, num_proc=num_proc, writer_batch_size=100, desc=f"Preparing {settings.name}",
    )  # fmt: skip


def _stamp(paths: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of files: changes when one of them does."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def is_made_with(folder: str | Path, options: dict[str, Any]) -> bool:
    """Whether [`write`] made the folder and was given these options."""
    record = Path(folder).expanduser() / RECORD
    return record.is_file() and record.read_bytes() == _record(options)


def options_made_with(folder: str | Path) -> dict[str, Any] | None:
    """The options that [`write`] was given for the folder; `None` where it did not make it."""
    try:
        options = json.loads((Path(folder).expanduser() / RECORD).read_bytes())
    except (OSError, ValueError):  # none, or not ours
        return None
    return options if isinstance(options, dict) else None


def _record(options: dict[str, Any]) -> bytes:
    return (json.dumps(options, indent=2, sort_keys=True) + "\n").encode()


def write(
    dataset: DatasetDict,
    folder: str | Path,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
    counts: dict[str, Outcomes] | None = None,
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
        counts (`dict[str, Outcomes]`, *optional*): what [`prepare`] returns beside it, so that training can say what was left out.

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
            (new.parent / RECORD).write_bytes(_record(options))
        if counts is not None:
            (new.parent / LEFT_OUT).write_text(json.dumps({split: left_out(found) for split, found in counts.items()}))
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        new.parent.rename(folder)
        shutil.rmtree(Path(scratch, "old"), ignore_errors=True)

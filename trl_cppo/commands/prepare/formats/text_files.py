# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rows of jsonl, json and csv files, every value as the text that stands there: an answer of 5.0 is not 5, nor 007 a 7."""

import csv
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

_loads = functools.partial(json.loads, parse_int=str, parse_float=str, parse_constant=str)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """
    The rows of a file: JSON objects, one a line or in one list, or the lines of a table with a header.

    Args:
        path (`Path`): ends with `.jsonl`, `.json`, `.csv` or `.tsv`; UTF-8.

    Raises:
        `ValueError`: naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    rows = _table(path, text) if path.suffix.lower() in (".csv", ".tsv") else _objects(path, text)
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _table(path: Path, text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    reader = csv.DictReader(
        text.splitlines(keepends=True), delimiter=max(",;\t", key=header.count), skipinitialspace=True
    )
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        rows = list(reader)
    except csv.Error as error:  # such as a cell of more than 131,072 characters
        raise ValueError(f"{path}, line {reader.line_num + 1}, cannot be read: {error}. Mend the line.") from error
    twice = next((name for name, count in Counter(reader.fieldnames).items() if name and count > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns {twice!r}, and one would hide the other. Rename one.")
    for number, row in enumerate(rows):
        if None in row:  # what DictReader files the surplus under
            raise ValueError(
                f"Row {number} of {path} has more cells than the header ({', '.join(reader.fieldnames)}). Put texts that "
                f"hold {reader.reader.dialect.delimiter!r} into double quotes."
            )
    return rows


def _objects(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        found = _loads(text) if path.suffix.lower() == ".json" or text.lstrip().startswith("[") else None
    except ValueError:
        found = None  # lines, under the other name
    if isinstance(found, dict):  # {"data": [...]}
        lists = [
            value for value in found.values() if isinstance(value, list) and isinstance((value or [None])[0], dict)
        ]
        found = lists[0] if len(lists) == 1 else [found]
    rows = _lines(path, text) if found is None else found
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"Row {number} of {path} is no JSON object, {{'column': value, …}}, but {str(row)[:80]!r}."
            )
    return rows


def _lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand in a JSON string
        try:
            rows += [_loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no JSON ({error}): {line[:80]!r}. Mend the line.") from error
    return rows


def columns_in(rows: list[dict[str, Any]]) -> list[str]:
    """All columns, in the order in which they appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def as_dataset(rows: list[dict[str, Any]], columns: list[str], name: str) -> Dataset:
    """
    Some columns of rows as a data set of texts, or of lists of texts where a row has a list.

    Args:
        rows (`list[dict]`): what [`read_rows`] gives.
        columns (`list[str]`): which.
        name (`str`): how errors call the rows.

    Raises:
        `ValueError`: naming row and column, for a value that is no text.
    """
    data, features = {}, {}
    for column in columns:
        values = [row.get(column) for row in rows]
        several = any(isinstance(value, list) for value in values)
        data[column] = [_texts(value, name, row, column) for row, value in enumerate(values)]
        if several:
            data[column] = [value if isinstance(value, list) else [value] if value else [] for value in data[column]]
        features[column] = List(Value("string")) if several else Value("string")
    return Dataset.from_dict(data, features=Features(features))


def _texts(value: Any, name: str, row: int, column: str) -> str | list[str] | None:
    if isinstance(value, list):
        return [_texts(entry, name, row, column) for entry in value]
    if isinstance(value, bool):
        return str(value).lower()
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"Row {row} of {name}, column {column!r}: expected text, got {str(value)[:80]}. Mend the row."
        )
    return value

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A held-out part of a data set that has none. No image is on both sides."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

from datasets import Dataset

_BATCH = 100  # rows


def check_share(share: float | None) -> None:
    """
    Raises:
        `ValueError`: if it is no share.
    """
    if share is not None and not 0 < share < 1:
        raise ValueError(f"--split_test is the share of rows that is held out, such as 0.05; got {share:g}.")


def held_out(rows: Dataset, share: float) -> list[bool]:
    """
    Which rows are held out: a share of them, at least one, drawn by a hash of what the rows show. So the same rows give the
    same part in any order, and a row that is added moves few others.

    Rows that share an image (to the byte) are on the same side, since a model that has seen it is not tested by it.

    Args:
        rows (`Dataset`): with `prompt` and embedded `images`.
        share (`float`): between 0 and 1.

    Raises:
        `ValueError`: if all rows show one image.
    """
    groups = _groups(rows)
    sizes, chosen, wanted = Counter(groups), [], max(1, round(share * len(groups)))
    for group in sorted(sizes):
        fits = sum(sizes[other] for other in chosen) + sizes[group] <= wanted if chosen else sizes[group] <= wanted
        chosen += [group] if fits else []
    chosen = chosen or sorted(sizes)[:1]
    if len(chosen) == len(sizes):
        raise ValueError(
            f"all {len(groups)} rows are of one image, so that none can be held out. Leave --split_test out, or add rows "
            "with other images."
        )
    return [group in set(chosen) for group in groups]


def _groups(rows: Dataset) -> list[str]:
    """Of each row the least key of the rows that it is linked to by common images."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    firsts = []
    for keys in _keys(rows):
        roots = sorted({root(parents.setdefault(key, key)) for key in keys})
        parents |= dict.fromkeys(roots, roots[0])
        firsts.append(keys[0])
    return [root(key) for key in firsts]


def _keys(rows: Dataset) -> Iterator[list[str]]:
    """A digest of each image of a row; of a row without one, of its prompt."""
    for batch in rows.select_columns(["prompt", "images"]).with_format("arrow").iter(_BATCH):
        for prompt, images in zip(batch["prompt"].to_pylist(), batch["images"].to_pylist(), strict=True):
            shown = [image["bytes"] for image in images] or [json.dumps(prompt).encode()]
            yield [hashlib.sha256(content).hexdigest() for content in shown]

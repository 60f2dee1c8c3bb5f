# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a data set must hold, checked before anything is loaded or trained."""

from typing import Any

from datasets import Dataset


def images_of(example: dict[str, Any]) -> tuple[str, list[Any]]:
    """
    The images of one row and the column they come from, in the order in which the prompt shows them.

    TRL's rule: the column `images`, else `image`, else the image parts of the conversational `prompt`.
    """
    if "images" in example:
        return "images", list(example["images"] or [])
    if "image" in example:
        return "image", [] if example["image"] is None else [example["image"]]
    prompt = example["prompt"]
    contents = [] if isinstance(prompt, str) else [message["content"] for message in prompt]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return "prompt", [part["image"] for part in parts if part["type"] == "image" and part.get("image") is not None]


def check_dataset(dataset: Any, name: str, required: tuple[str, ...] = ("prompt",)) -> None:
    """
    Check that a data set has rows, the required columns and images.

    Args:
        dataset: what is passed to the trainer; only a map-style [`~datasets.Dataset`] can be looked into.
        name (`str`): how the error calls it.
        required (`tuple[str, ...]`): the columns that must exist.

    Raises:
        `ValueError`: in one line that says what is missing and what to do.
    """
    if not isinstance(dataset, Dataset):
        return
    columns = dataset.column_names
    if len(dataset) == 0:
        raise ValueError(f"{name} has no rows. Check the split and any filter that was applied to it.")
    for column in required:
        if column not in columns:
            raise ValueError(
                f"{name} has no column {column!r}; its columns are {columns}. "
                f"Rename one: dataset.rename_column(..., {column!r})."
            )
    if "image" in columns or "images" in columns:
        return
    if not images_of(dataset[0])[1]:
        raise ValueError(
            f"{name} has no column 'image' or 'images', and its first prompt holds no image; its columns are {columns}. "
            "CPPO contrasts views of images: rename the image column, or train with GRPOTrainer."
        )

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a data set must hold, and which row and column is at fault where it does not."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data
from datasets import ClassLabel, Dataset, List, Value
from PIL import Image as PILImage
from transformers import BaseImageProcessor
from trl import prepare_multimodal_messages

from ...rewards.grading import check_solution
from .layouts import ANSWERS, QUESTIONS, find_layout, prepare_command
from .prompts import can_be_looked_into, has_image_in_a_prompt, prompt_fault

_BATCH = 1000  # rows
UNNAMED = "NAME"  # in a command, for a data set that is in memory
ROW_PLACE = "_trl_cppo_row"  # an entry of each row that was read from a Dataset: its RowPlace


@dataclass(frozen=True)
class RowPlace:
    """Where a row stands. As a string it is what errors call the row."""

    row: int
    dataset: str

    def __str__(self) -> str:
        return f"Row {self.row} of {self.dataset}"


def image_column(example: dict[str, Any]) -> str:
    """The column that a row's images come from, by TRL's rule: `images`, else `image`, else the `prompt`'s parts."""
    return next((column for column in ("images", "image") if column in example), "prompt")


def images_of(example: dict[str, Any]) -> tuple[str, list[Any]]:
    """
    The images of one row and the column they come from, in the order in which the prompt shows them.

    Raises:
        `TypeError`: if the column `images` holds something other than a list.
    """
    column = image_column(example)
    if column == "images":
        images = [] if example["images"] is None else example["images"]
        if not isinstance(images, (list, tuple)):
            raise TypeError(f"expected a list of images, got {type(images).__name__}.")
        return column, list(images)
    if column == "image":
        return column, [] if example["image"] is None else [example["image"]]
    prompt = example.get("prompt")  # with environments, TRL takes rows without one
    contents = [message.get("content") for message in prompt] if isinstance(prompt, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return column, [part["image"] for part in parts if part["type"] == "image" and part.get("image") is not None]


def check_dataset(
    dataset: Any,
    name: str,
    required: tuple[str, ...] = ("prompt",),
    source: str = UNNAMED,
    source_columns: list[str] | None = None,
) -> None:
    """
    Check that a data set has rows, the required columns and images.

    Args:
        dataset: what is passed to the trainer; only a map-style [`~datasets.Dataset`] can be looked into.
        name (`str`): how the error calls it.
        required (`tuple[str, ...]`): the columns that must exist.
        source (`str`): its Hub id or folder, for a command that the error names.
        source_columns (`list[str]`, *optional*): the columns that this command will find; the data set's by default.

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
            found = source_columns or columns
            way_out = (
                _way_to_prompts(dataset, source, found) if column == "prompt" else _way_to_answers(dataset, column)
            )
            raise ValueError(f"{name} has no column {column!r}; its columns are {found}. {way_out}")
    if "image" in columns or "images" in columns:
        _check_conversations(dataset, name, source)
        return
    if not has_image_in_a_prompt(dataset):
        raise ValueError(
            f"{name} has no column 'image' or 'images', and no prompt holds an image; its columns are {columns}. "
            "CPPO contrasts views of images: rename the image column, or train with GRPOTrainer."
        )


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """The trainer's two arguments, of which the second may be a dictionary, through [`check_dataset`]."""
    check_dataset(train_dataset, "train_dataset")
    for key, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
        check_dataset(dataset, f"eval_dataset[{key!r}]" if key else "eval_dataset")


def _check_conversations(dataset: Dataset, name: str, source: str) -> None:
    """TRL takes no texts beside images, and would say so after the model is loaded. What a transform makes is not known."""
    feature = dataset.features.get("prompt")
    is_text = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")
    if not is_text or dataset.format["type"] == "custom":
        return
    way_out = (
        _conversation_of("prompt") if source == UNNAMED else
        f"Prepare it: {prepare_command(source, dataset.column_names)}, and train on that folder."
    )  # fmt: skip
    raise ValueError(f"{name}, column 'prompt': holds texts, and beside images a prompt is a conversation. {way_out}")


def _conversation_of(question: str) -> str:
    """What makes prompts of a column of texts; images are put in front."""
    return (
        "Make it of the question: dataset.map(lambda row: "
        f"{{'prompt': [{{'role': 'user', 'content': row[{question!r}].replace('<image>', '')}}]}})."
    )


def _way_to_prompts(dataset: Dataset, source: str, columns: list[str]) -> str:
    """What makes a `prompt`. A string under that name would be no conversation, so only messages are renamed."""
    conversations = _conversation_columns(dataset)
    if conversations:
        return f"Rename the conversations: dataset.rename_column({conversations[0]!r}, 'prompt')."
    if source != UNNAMED or find_layout(columns) is not None:
        return (
            f"Prepare it: {prepare_command(source, columns)}, and train on that folder; in Python: "
            "trl_cppo.commands.prepare.prepare."
        )
    question = next((column for column in (*QUESTIONS, "query") if column in dataset.column_names), None)
    if question is None:
        return "A prompt is a conversation, [{'role': 'user', 'content': …}]. Make it of your question column."
    return f"A prompt is a conversation. {_conversation_of(question)}"


def _conversation_columns(dataset: Dataset) -> list[str]:
    """The columns of messages, the likeliest prompt first; not the two of a preference, which end with the answers."""
    columns = []
    for column, feature in dataset.features.items():
        message = feature.feature if isinstance(feature, List) else None
        if isinstance(message, dict) and {"role", "content"} <= message.keys():
            columns.append(column)
    columns = [column for column in columns if column not in ("chosen", "rejected")]
    return sorted(columns, key=lambda column: (column != "messages", column != "conversations"))


def _way_to_answers(dataset: Dataset, column: str) -> str:
    """What makes a `solution`, which the rewards take as strings only."""
    answer = next((name for name in ANSWERS if name in dataset.column_names), None)
    feature = None if answer is None else dataset.features[answer]
    if not isinstance(feature, (Value, ClassLabel)):
        return "The reward needs the right answers, as strings: add them, or choose a reward that needs none."
    if feature == Value("string"):
        return f"Rename the right answers: dataset.rename_column({answer!r}, {column!r})."
    text = f"str(row[{answer!r}])"
    if isinstance(feature, ClassLabel):  # rows hold the class's number, which is no answer
        text = f"dataset.features[{answer!r}].int2str(row[{answer!r}])"
    return f"Make strings of the right answers: dataset.map(lambda row: {{{column!r}: {text}}})."


def check_solutions(dataset: Any, name: str) -> None:
    """
    Check that each row's `solution` can be graded: before the training, not after hours of it. No image is decoded.

    Args:
        dataset: as for [`check_dataset`]; one without a column `solution` is passed over.
        name (`str`): how the error calls it.

    Raises:
        `ValueError`: in one line that names the first such row and says what to do.
    """
    if not can_be_looked_into(dataset) or "solution" not in dataset.column_names:
        return
    index = 0
    for batch in dataset.select_columns(["solution"]).with_format("arrow").iter(_BATCH):
        for solution in batch["solution"].to_pylist():
            fault = _solution_fault(solution)
            if fault is not None:
                raise ValueError(f"Row {index} of {name}, {fault}")
            index += 1


def find_solution_fault(examples: Sequence[dict[str, Any]]) -> str | None:
    """Which row of a generation batch has a solution that cannot be graded, and why; `None` if there is none."""
    faults = (
        (row_name(example, place), _solution_fault(example.get("solution"))) for place, example in enumerate(examples)
    )
    return next((f"{name}, {fault}" for name, fault in faults if fault is not None), None)


def _solution_fault(solution: Any) -> str | None:
    try:
        check_solution(solution)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(entry) for name, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


class LocatedRows(torch.utils.data.Dataset):
    """
    A data set whose rows know their place, and whose reading errors name row and column.

    Images are decoded where the data loader reads a row, long before CPPO sees it, and `datasets` and PIL say neither
    which row nor which column they could not read.

    Args:
        dataset ([`~datasets.Dataset`]): the rows; each gets the entry `ROW_PLACE` on top of its columns.
        name (`str`): how errors call the data set.
        decode_once (`bool`, *optional*, defaults to `False`): whether the rollouts of a row, asked for together, share its images,
            the very same objects; their lists and dictionaries are their own. Not where a transform makes the rows, for it may draw.
    """

    def __init__(self, dataset: Dataset, name: str, decode_once: bool = False):
        self._dataset = dataset
        self._name = name
        self._decode_once = decode_once and dataset.format["type"] is None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """
        Raises:
            `ValueError`: naming the first row that cannot be read and its column.
        """
        try:
            rows = self._read(indices)
        except Exception as error:  # PIL raises SyntaxError and its own DecompressionBombError too
            raise ValueError(self._find_fault(indices) or str(error)) from error
        places = [RowPlace(index, self._name) for index in indices]
        return [{**row, ROW_PLACE: place} for place, row in zip(places, rows, strict=True)]

    def _read(self, indices: list[int]) -> list[dict[str, Any]]:
        distinct = list(dict.fromkeys(indices))
        if not self._decode_once or len(distinct) == len(indices):
            return self._dataset.__getitems__(indices)
        read = dict(zip(distinct, self._dataset.__getitems__(distinct), strict=True))
        return [_copied(read[index]) for index in indices]

    def _find_fault(self, indices: list[int]) -> str | None:
        for index in dict.fromkeys(indices):
            error = self._reading_error(self._dataset, index)
            if error is not None:
                return f"{RowPlace(index, self._name)}, {self._blame_column(index)} cannot be read: {error}"
        return None

    def _blame_column(self, index: int) -> str:
        columns = self._dataset.column_names
        if self._dataset.format["type"] != "custom":  # a transform may need all columns, so none can be read alone
            for column in columns:
                if self._reading_error(self._dataset.select_columns([column]), index) is not None:
                    return f"column {column!r}"
        return f"one of the columns {columns}"

    @staticmethod
    def _reading_error(dataset: Dataset, index: int) -> str | None:
        try:
            dataset[index]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None


def row_name(example: dict[str, Any], position: int) -> str:
    """What errors call a row: its place in the data set if it is known (not for a stream), else in the batch."""
    return str(example.get(ROW_PLACE, f"Row {position} of the generation batch"))


def row_names(examples: Sequence[dict[str, Any]], limit: int = 8) -> str:
    """What errors call the rows of a batch, each named once, and at most `limit` of them."""
    names = list(dict.fromkeys(row_name(example, position) for position, example in enumerate(examples)))
    return "; ".join(names[:limit]) + (f"; and {len(names) - limit} more" if len(names) > limit else "")


def may_be_a_rows_fault(error: Exception) -> bool:
    """Whether an error can come from what a row holds; not if memory, a device or another process failed."""
    return not isinstance(error, (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, dist.DistError))


def find_row_fault(
    examples: Sequence[dict[str, Any]], image_processor: BaseImageProcessor, placeholders: Collection[str] = ()
) -> str | None:
    """
    Look for the row that broke a batch: at each row's prompt, then tries each row's images again, alone. For use after an
    error only, one that [`may_be_a_rows_fault`].

    Args:
        examples (`list[dict]`): the rows of a generation batch.
        image_processor (`BaseImageProcessor`): what the images must pass.
        placeholders (`Collection[str]`): the texts that no prompt may hold, see [`~trl_cppo.scoring.families.placeholder_texts`].

    Returns:
        `str` or `None`: a sentence that names row and column and says what is wrong; `None` if every row is fine.
    """
    rows = {
        row_name(example, position): example for position, example in enumerate(examples)
    }  # one of a prompt's rollouts
    for name, example in rows.items():
        fault = prompt_fault(example["prompt"], placeholders) if "prompt" in example else None
        if fault is not None:
            return f"{name}, column 'prompt': {fault}"
    for name, example in rows.items():
        fault = _image_fault(example, image_processor)
        if fault is not None:
            return f"{name}, column {image_column(example)!r}{fault}"
    return None


def _image_fault(example: dict[str, Any], image_processor: BaseImageProcessor) -> str | None:
    try:
        column, images = images_of(example)
        if isinstance(example.get("prompt"), list):
            prepare_multimodal_messages(example["prompt"], [] if column == "prompt" else images)
    except Exception as error:
        return f": {error}"
    for place, image in enumerate(images):
        try:
            image_processor(images=[[image]], return_tensors="pt")
        except Exception as error:
            return f", image {place} ({describe_image(image)}): {error}"
    return None


def describe_image(image: Any) -> str:
    """What errors call an image: its path, its size or its type."""
    if isinstance(image, (str, type(None))):
        return repr(image)
    return f"{image.width}x{image.height}" if isinstance(image, PILImage.Image) else type(image).__name__

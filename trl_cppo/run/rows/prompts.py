# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a prompt must not hold, looked for in whole data sets without decoding an image."""

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset

_BATCH = 1000  # rows
_BYTES = {"bytes", "path"}  # the fields of an image that is stored in a data set


def prompt_fault(prompt: Any, placeholders: Collection[str] = ()) -> str | None:
    """
    What is wrong with one prompt, and what to do; `None` if nothing is.

    Args:
        prompt: a row's `prompt`: a list of messages, or a string.
        placeholders (`Collection[str]`): the texts that the model's processor takes for images, videos or sounds, see
            [`~trl_cppo.scoring.families.placeholder_texts`]. Parts such as `{"type": "image"}` show images; these are for texts.
    """
    if prompt is None:
        return "is None. Give the row a list of messages, or leave it out."
    if isinstance(prompt, str):
        return _text_fault(prompt, placeholders)
    for place, message in enumerate(prompt if isinstance(prompt, list) else []):
        fault = _message_fault(message, placeholders) if isinstance(message, dict) else None
        if fault is not None:
            return f"message {place} {fault}"
    return None


def _message_fault(message: dict[str, Any], placeholders: Collection[str]) -> str | None:
    content = message.get("content")
    if content is None:
        return None if message.get("tool_calls") else "has no content (None). Mend the row, or leave it out."
    texts = [content]
    if not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if None in texts:
        return "has a part of type 'text' without text (None). Mend the row, or leave it out."
    return next((fault for text in texts if (fault := _text_fault(text, placeholders)) is not None), None)


def _text_fault(text: str, placeholders: Collection[str]) -> str | None:
    typed = next((placeholder for placeholder in placeholders if placeholder in text), None)
    if typed is None:
        return None
    return (
        f"holds {typed!r} as text, which stands for an image, video or sound that the row does not bring. Take it out: images "
        "are put in front, or stand where the content has parts {'type': 'image'}."
    )


def check_prompts(dataset: Any, name: str, placeholders: Collection[str]) -> None:
    """
    Find the first row whose prompt cannot be trained. No image is decoded.

    Args:
        dataset: only a map-style [`~datasets.Dataset`] without a transform can be looked into; others are passed over.
        name (`str`): how the error calls it.
        placeholders (`Collection[str]`): as for [`prompt_fault`].

    Raises:
        `ValueError`: in one line that names row and column and says what to do.
    """
    if not any(_holds_fault(column, placeholders) for column in _stored_prompts(dataset)):
        return
    for start, column in _prompts_in_order(dataset):
        if not _is_suspicious(column, placeholders):
            continue
        prompts = column.to_pylist()  # images stay bytes
        if _has_extension(column):
            rows = dataset.select_columns(["prompt"]).with_format(None)
            prompts = rows[start : start + len(column)]["prompt"]
        for row, prompt in enumerate(prompts, start):
            fault = prompt_fault(prompt, placeholders)
            if fault is not None:
                raise ValueError(f"Row {row} of {name}, column 'prompt': {fault}")


def check_all_prompts(training: Any, evaluation: Any, placeholders: Collection[str]) -> None:
    """
    [`check_prompts`] of a trainer's data sets, of which the one for evaluation may be a dictionary. For every process: one that
    stopped alone would leave the others waiting for it.
    """
    several = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    check_prompts(training, "the training data set", placeholders)
    for key, dataset in several.items():
        name = f"the evaluation data set {key!r}" if key else "the evaluation data set"
        check_prompts(dataset, name, placeholders)


def has_image_in_a_prompt(dataset: Dataset) -> bool:
    """Whether some prompt holds an image among its parts, or nobody can tell, as the data set has a transform."""
    if not can_be_looked_into(dataset):
        return True
    if not any(_holds_image(column) for column in _stored_prompts(dataset)):
        return False
    return any(_holds_image(column) for _, column in _prompts_in_order(dataset))


def can_be_looked_into(dataset: Any) -> bool:
    """Whether what is stored is what a row will be: not for a stream, nor for a data set with a transform."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"


def _stored_prompts(dataset: Any) -> Iterator[pyarrow.Array]:
    """
    All prompts that are stored, also those of rows that were filtered out, in any order: a hundred times as fast as in
    the order of a data set that was shuffled.
    """
    if can_be_looked_into(dataset) and "prompt" in dataset.column_names:
        for chunk in dataset.data.column("prompt").chunks:
            yield from (chunk.slice(start, _BATCH) for start in range(0, len(chunk), _BATCH))


def _prompts_in_order(dataset: Dataset) -> Iterator[tuple[int, pyarrow.Array]]:
    """The prompts of the rows, batch by batch, with the place of the first one."""
    table = dataset.select_columns(["prompt"]).with_format("arrow")
    for start in range(0, len(table), _BATCH):
        for chunk in table[start : start + _BATCH]["prompt"].chunks:
            yield start, chunk
            start += len(chunk)


def _arrays(array: pyarrow.Array, name: str = "prompt") -> Iterator[tuple[str, pyarrow.Array]]:
    """An array and all that are nested in it, but for the parts of images, each with the name of its field."""
    yield name, array
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        yield from _arrays(array.flatten(), name)
    elif isinstance(array, pyarrow.StructArray):
        fields = [field.name for field in array.type]
        if set(fields) != _BYTES:
            for field, values in zip(fields, array.flatten(), strict=True):
                yield from _arrays(values, field)


def _holds_fault(column: pyarrow.Array, placeholders: Collection[str]) -> bool:
    if not _is_suspicious(column, placeholders):
        return False
    if _has_extension(column):
        return True
    return any(prompt_fault(prompt, placeholders) is not None for prompt in column.to_pylist())


def _is_suspicious(column: pyarrow.Array, placeholders: Collection[str]) -> bool:
    """Whether a prompt may be at fault: quick, and never wrongly `False`."""
    for name, array in _arrays(column):
        if name in ("prompt", "content") and array.null_count or isinstance(array, pyarrow.ExtensionArray):
            return True
        if isinstance(array, pyarrow.StructArray) and {"type", "text"} <= {field.name for field in array.type}:
            kinds, texts = (pyarrow.compute.struct_field(array, field) for field in ("type", "text"))
            without_text = pyarrow.compute.and_(pyarrow.compute.equal(kinds, "text"), texts.is_null())
            if pyarrow.compute.any(without_text).as_py():
                return True
        if pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type):
            found = (pyarrow.compute.match_substring(array, placeholder) for placeholder in placeholders)
            if any(pyarrow.compute.any(matches).as_py() for matches in found):
                return True
    return False


def _has_extension(column: pyarrow.Array) -> bool:
    """Whether a part of the prompts is stored in a type that Arrow itself cannot look into, such as JSON."""
    return any(isinstance(array, pyarrow.ExtensionArray) for _, array in _arrays(column))


def _holds_image(column: pyarrow.Array) -> bool:
    """Whether there is an image, or may be one in JSON."""
    images = (array for name, array in _arrays(column) if name == "image")
    return _has_extension(column) or any(array.null_count < len(array) for array in images)

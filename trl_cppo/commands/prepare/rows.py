# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One row of a source's columns as `prompt`, `images` and `solution`, or what is wrong with it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from datasets import Image
from PIL import UnidentifiedImageError
from PIL.Image import Image as PILImage
from transformers import AutoProcessor, ProcessorMixin

from ...rewards.grading import final_answer, is_text, without_lead_in
from ...run.rows.layouts import Layout
from ...scoring.families import rgb_reader
from .images import usable_bytes
from .sources import Places

# The wording of the authors' preprocessing script (verl/examples/data_preprocess/virl39k.py of vbdi/cppo).
PROMPT_SUFFIX = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}."
)
MARKER = "<image>"  # the place of an image in a question


class _RowFault(Exception):
    """Why a row cannot be used: the column, a kind that rows are counted by, and the details."""

    def __init__(self, column: str, kind: str, details: Any = ""):
        super().__init__(f"{kind}: {details}" if details != "" else kind)
        self.column = column
        self.kind = f"{column}: {kind}"


@dataclass(frozen=True)
class RowSettings:
    """
    What [`prepare`] makes rows by; all of it is a part of the cache's key.

    Attributes:
        name (`str`): how errors call the data set.
        layout (`Layout`): its columns.
        places (`Places`): where images lie that are paths.
        model (`str`, *optional*): the processor that counts tokens into `num_tokens`.
        suffix (`str`): written behind the question.
        system_prompt (`str`, *optional*): a message in front of the question.
        skip_broken (`bool`): whether a fault is no error.
        max_pixels, min_pixels (`int`, *optional*): the limits of an image.
        stamps (`tuple`): not read; what the key must hold besides.
    """

    name: str
    layout: Layout
    places: Places
    model: str | None
    suffix: str
    system_prompt: str | None
    skip_broken: bool
    max_pixels: int | None
    min_pixels: int | None
    stamps: tuple[str | None, ...]


def build_row(example: dict[str, Any], index: int, settings: RowSettings) -> dict[str, Any]:
    """
    What [`prepare`] makes of one row, and why it cannot be used in `fault`, else `None`.

    Args:
        example (`dict`): the row; its embedded images are not decoded.
        index (`int`): its place.
        settings (`RowSettings`): what is made of it.

    Raises:
        `ValueError`: naming row and column.
    """
    layout, model = settings.layout, settings.model
    row = {"prompt": [], "images": [], "solution": "", **{column: example[column] for column in layout.extras}}
    row |= {"fault": None} | ({"num_tokens": 0} if model else {})
    try:
        row["solution"] = _solution(example[layout.answer], layout)
        row["images"] = _read_images(example, index, settings)
        row["prompt"] = _prompt(example[layout.question], len(row["images"]), settings)
        if model:
            row["num_tokens"] = _count_tokens(row["prompt"], row["images"], model, layout)
    except _RowFault as fault:
        if not settings.skip_broken:
            raise ValueError(
                f"Row {index} of {settings.name}, column {fault.column!r}: {str(fault).rstrip('.')}. Mend it, or leave such rows out: "
                "--skip_broken."
            ) from fault
        row |= {"fault": fault.kind, "images": []}
    return row


def _read_images(example: dict[str, Any], index: int, settings: RowSettings) -> list[dict[str, Any]]:
    places = settings.places
    options = dict(root=places.root, folder=places.folder(index), confined=places.confined)
    options |= dict(max_pixels=settings.max_pixels, min_pixels=settings.min_pixels)
    options |= {"to_rgb": rgb_reader(_load_processor(settings.model))} if settings.model else {}
    read = []
    for column in settings.layout.images:
        images = example[column] or []  # an empty cell is no image
        images = images if isinstance(images, list) else [images]
        read += [_read_image(image, place, column, options) for place, image in enumerate(images)]
    return read


def _solution(answer: Any, layout: Layout) -> str:
    if isinstance(answer, (int, float, Decimal)):  # of a parquet file
        answer = str(answer).lower() if isinstance(answer, bool) else str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise _RowFault(layout.answer, "no answer", repr(answer))
    # Unmarked, a `solution` may be a worked one, to which no completion would be equal.
    marked = layout.final or "\\boxed" in answer or "</answer>" in answer
    try:
        final = final_answer(answer) if marked else None
    except ValueError:
        final = None
    if final is None:
        details = f"{answer[-80:]!r}; if the column holds nothing else: --answer {layout.answer}"
        raise _RowFault(layout.answer, "no final answer in \\boxed{} or <answer></answer>", details)
    if not final:  # an empty box: no completion could be right
        raise _RowFault(layout.answer, "no answer", repr(answer))
    bare = without_lead_in(final)
    if not is_text(bare):  # "The choice is yours" is a sentence, and "yours" not its answer
        final = bare
    return f"\\boxed{{{final}}}"


def _prompt(question: Any, num_images: int, settings: RowSettings) -> list[dict[str, Any]]:
    layout = settings.layout
    if not isinstance(question, str) or not question.replace(MARKER, "").strip():
        raise _RowFault(layout.question, "no question", repr(question))
    texts = question.strip().split(MARKER)
    if len(texts) == 1:  # the mark is lost, the images are not
        texts = [""] * num_images + texts
    if len(texts) - 1 != num_images:
        raise _RowFault(
            layout.question, f"other number of {MARKER} marks than of images", f"{len(texts) - 1} and {num_images}"
        )
    texts[-1] = f"{texts[-1].rstrip()} {settings.suffix}".rstrip()
    content = []
    for place, text in enumerate(texts):
        content += [{"type": "image", "text": None}] if place else []
        content += [{"type": "text", "text": text}] if text else []
    system = [{"type": "text", "text": settings.system_prompt}]
    messages = [{"role": "system", "content": system}] if settings.system_prompt else []
    return [*messages, {"role": "user", "content": content}]


def _read_image(image: Any, place: int, column: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"bytes": usable_bytes(image, **options), "path": None}
    except FileNotFoundError as error:
        raise _RowFault(column, "image missing", f"image {place}, {error}") from error
    except Exception as error:
        path = f" ({image})" if isinstance(image, str) else ""
        # PIL's own text would show the address of a buffer.
        what = "no image that PIL knows" if isinstance(error, UnidentifiedImageError) else error
        message = f"image {place}{path}, {type(error).__name__}: {what}"
        raise _RowFault(column, "image cannot be read", message) from error


@functools.lru_cache(maxsize=1)
def _load_processor(model: str) -> ProcessorMixin:
    return AutoProcessor.from_pretrained(model)


def count_tokens(prompt: list[dict[str, Any]], images: list[PILImage], model: str) -> int:
    """
    The tokens of a prompt with its images, as TRL makes them.

    Raises:
        `ValueError`: for an image that the processor refuses, such as Qwen's one that is 200 times as wide as high.
    """
    processor = _load_processor(model)
    pictures = iter(map(rgb_reader(processor), images))
    messages = [{**message, "content": [_shown(part, pictures) for part in message["content"]]} for message in prompt]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return len(inputs["input_ids"][0])


def _count_tokens(prompt: list[dict[str, Any]], images: list[dict[str, Any]], model: str, layout: Layout) -> int:
    pictures = [Image().decode_example(image) for image in images]  # turned upright, as training reads it
    try:
        return count_tokens(prompt, pictures, model)
    except ValueError as error:
        raise _RowFault(layout.images[0], "refused by the processor", error) from error


def _shown(part: dict[str, Any], pictures: Iterator[Any]) -> dict[str, Any]:
    is_image = part["type"] == "image"
    return {"type": "image", "image": next(pictures)} if is_image else {"type": "text", "text": part["text"]}

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One row of a source's columns as `prompt`, `images` and `solution`, or what is wrong with it."""

import functools
from typing import Any

from datasets import Image
from transformers import AutoProcessor, ProcessorMixin

from ...rewards.grading import final_answer, is_text, without_lead_in
from ...run.rows.layouts import Layout
from ...scoring.families import rgb_reader
from .images import usable_bytes

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


def build_row(
    example: dict[str, Any],
    index: int,
    layout: Layout,
    name: str,
    root: str,
    model: str | None,
    suffix: str,
    skip_broken: bool,
    max_pixels: int | None,
    min_pixels: int | None,
    stamps: list[str | None],
) -> dict[str, Any]:
    """
    What [`prepare`] makes of one row, and why it cannot be used in `fault`, else `None`.

    Args:
        example (`dict`): the row; its embedded images are not decoded.
        index (`int`): its place.
        layout (`Layout`): its columns.
        name (`str`): how errors call the data set.
        root (`str`): the folder of images that are paths.
        model (`str`, *optional*): the processor that counts tokens into `num_tokens`.
        suffix (`str`): written behind the question.
        skip_broken (`bool`): whether a fault is no error.
        max_pixels, min_pixels (`int`, *optional*): the limits of an image.
        stamps (`list`): not read; what the key of the cache must hold besides.

    Raises:
        `ValueError`: naming row and column.
    """
    row = {"prompt": [], "images": [], "solution": "", **{column: example[column] for column in layout.extras}}
    row |= {"fault": None} | ({"num_tokens": 0} if model else {})
    try:
        row["solution"] = _solution(example[layout.answer], layout)
        images = example[layout.images] or []
        images = images if isinstance(images, list) else [images]
        options = dict(max_pixels=max_pixels, min_pixels=min_pixels)
        options |= {"to_rgb": rgb_reader(_load_processor(model))} if model else {}
        row["images"] = [_read_image(image, place, root, layout, options) for place, image in enumerate(images)]
        row["prompt"] = _prompt(example[layout.question], len(row["images"]), suffix, layout)
        if model:
            row["num_tokens"] = _count_tokens(row["prompt"], row["images"], model, layout)
    except _RowFault as fault:
        if not skip_broken:
            raise ValueError(
                f"Row {index} of {name}, column {fault.column!r}: {fault}. Mend it, or leave such rows out: --skip_broken."
            ) from fault
        row |= {"fault": fault.kind, "images": []}
    return row


def _solution(answer: Any, layout: Layout) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise _RowFault(layout.answer, "no answer", repr(answer))
    # Unmarked, a `solution` may be a worked one, to which no completion would be equal.
    marked = layout.answer != "solution" or "\\boxed" in answer or "</answer>" in answer
    try:
        final = final_answer(answer) if marked else None
    except ValueError:
        final = None
    if final is None:
        details = f"{answer[-80:]!r}; a column of nothing else is called 'answer'"
        raise _RowFault(layout.answer, "no final answer in \\boxed{} or <answer></answer>", details)
    if not final:  # an empty box: no completion could be right
        raise _RowFault(layout.answer, "no answer", repr(answer))
    bare = without_lead_in(final)
    if not is_text(bare):  # "The choice is yours" is a sentence, and "yours" not its answer
        final = bare
    return f"\\boxed{{{final}}}"


def _prompt(question: Any, num_images: int, suffix: str, layout: Layout) -> list[dict[str, Any]]:
    if not isinstance(question, str) or not question.replace(MARKER, "").strip():
        raise _RowFault(layout.question, "no question", repr(question))
    texts = question.strip().split(MARKER)
    if len(texts) == 1:  # the mark is lost, the images are not
        texts = [""] * num_images + texts
    if len(texts) - 1 != num_images:
        raise _RowFault(
            layout.question, f"other number of {MARKER} marks than of images", f"{len(texts) - 1} and {num_images}"
        )
    texts[-1] = f"{texts[-1].rstrip()} {suffix}".rstrip()
    content = []
    for place, text in enumerate(texts):
        content += [{"type": "image", "text": None}] if place else []
        content += [{"type": "text", "text": text}] if text else []
    return [{"role": "user", "content": content}]


def _read_image(image: Any, place: int, root: str, layout: Layout, options: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"bytes": usable_bytes(image, root, **options), "path": None}
    except FileNotFoundError as error:
        raise _RowFault(layout.images, "image missing", f"image {place}, {error}") from error
    except Exception as error:
        message = f"image {place}, {type(error).__name__}: {error}"
        raise _RowFault(layout.images, "image cannot be read", message) from error


@functools.lru_cache(maxsize=1)
def _load_processor(model: str) -> ProcessorMixin:
    return AutoProcessor.from_pretrained(model)


def _count_tokens(prompt: list[dict[str, Any]], images: list[dict[str, Any]], model: str, layout: Layout) -> int:
    processor = _load_processor(model)
    to_rgb, read = rgb_reader(processor), Image().decode_example  # turned upright, as training reads it
    pictures = iter([to_rgb(read(image)) for image in images])
    content = [
        {"type": "image", "image": next(pictures)}
        if part["type"] == "image"
        else {"type": "text", "text": part["text"]}
        for part in prompt[0]["content"]
    ]
    try:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except ValueError as error:  # such as Qwen's on an image 200 times as wide as high
        raise _RowFault(layout.images, "refused by the processor", error) from error
    return len(inputs["input_ids"][0])

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What to do about prompts that are too long."""

import math
from bisect import bisect_right
from typing import Any

from datasets import Dataset
from PIL import Image as PILImage

from ...method.image_size import FEW_PIXELS, limited_size
from .rows import count_tokens

_TOKEN = 28 * 28  # pixels of a token of a Qwen2.5-VL: the steps in which a limit is looked for
_TRIED = 32  # rows with the least room


def advice(rows: Dataset, max_prompt_length: int, model: str) -> str:
    """
    The limit of pixels with which prompts are short enough, or that there is none. It is tried out, for processors scale images
    as well, and round their sides.

    Args:
        rows (`Dataset`): those that are too long, with `prompt`, `images` and `num_tokens`.
        max_prompt_length (`int`): tokens.
        model (`str`): of the processor that counts them.

    Returns:
        `str`: empty if there are no rows.
    """
    if not len(rows):
        return ""
    lengths, prompts = rows["num_tokens"][:], rows["prompt"][:]
    texts = [count_tokens(prompt, [], model) for prompt in map(_without_images, prompts)]
    images = [length - text for length, text in zip(lengths, texts, strict=True)]
    told = f"The long prompts have {_range(lengths)} tokens: {_range(texts)} of text and {_range(images)} of images."
    fitting = [row for row, text in enumerate(texts) if text <= max_prompt_length]
    if len(fitting) < len(rows):
        told += (
            f" The text of {len(rows) - len(fitting)} is too long without an image: no --max_pixels helps, shorten it."
        )
    if not fitting:
        return f"{told} Or set --max_prompt_length higher."
    shares = {row: (max_prompt_length - texts[row]) / max(1, images[row]) for row in fitting}
    tightest = sorted(fitting, key=shares.__getitem__)[:_TRIED]
    sizes = [[image.size for image in row["images"]] for row in rows.select(tightest)]
    # By the text's share it would be at most so many; how many, is tried.
    most = max(
        width * height * shares[row] for row, shown in zip(tightest, sizes, strict=True) for width, height in shown
    )
    pixels = _limit([prompts[row] for row in tightest], sizes, int(most), max_prompt_length, model)
    if not pixels:
        return f"{told} Images of {FEW_PIXELS} pixels would be too long still: set --max_prompt_length higher."
    side = math.isqrt(pixels)
    return f"{told} Scale the images down, --max_pixels {pixels} ({side} x {side}), or set --max_prompt_length higher."


def _limit(
    prompts: list[Any], sizes: list[list[tuple[int, int]]], most: int, max_prompt_length: int, model: str
) -> int:
    """The most pixels, up to `most`, with which prompts that show images of these sizes are short enough; 0 if there are none."""

    def longest(steps: int) -> float:
        limited = [[limited_size(size, steps * _TOKEN, None) for size in shown] for shown in sizes]
        shown = [[PILImage.new("RGB", size) for size in row] for row in limited]  # the size alone counts
        try:
            return max(count_tokens(prompt, images, model) for prompt, images in zip(prompts, shown, strict=True))
        except ValueError:  # refused by the processor, such as for sides that are too unlike
            return math.inf

    steps = range(FEW_PIXELS // _TOKEN, most // _TOKEN + 1)
    found = bisect_right(steps, max_prompt_length, key=longest)
    return steps[found - 1] * _TOKEN if found else 0


def _without_images(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "content": [part for part in message["content"] if part["type"] != "image"]} for message in prompt
    ]


def _range(counts: list[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"

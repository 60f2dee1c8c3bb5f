# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
A prompt is processed once for all its rollouts: TRL templates, tokenizes and processes each of them anew, images included, twice a
generation batch.

Shapes: `B` rollouts, `D` distinct prompts.
"""

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from ...scoring.arguments import BY_ROW, PIXELS, entries_of_rows


class OncePerPrompt:
    """
    A processor in all it does, but for batches in which a prompt stands several times, the very same images with it: of each one
    is processed, and its output repeated. What comes out is the same.

    Args:
        processor (`ProcessorMixin`): to be asked.
        pixels_by_row (`bool`): see [`~trl_cppo.scoring.families.ViewProcessor`].
    """

    def __init__(self, processor: ProcessorMixin, pixels_by_row: bool):
        self._processor = processor
        self._pixels_by_row = pixels_by_row
        self._repeatable = True  # until an output was seen of which it is not known what belongs to which row

    def __getattr__(self, name: str) -> Any:
        if name == "_processor" or name.startswith("__"):  # what copies and pickles ask before there is a processor
            raise AttributeError(name)
        return getattr(self._processor, name)

    def stands_for(self, processor: ProcessorMixin) -> bool:
        """Whether it asks this one."""
        return self._processor is processor

    def apply_chat_template(self, conversation: list[Any], **kwargs: Any) -> Any:
        if not kwargs.get("tokenize") or not isinstance(conversation[0], list):  # a single one is a list of messages
            return self._processor.apply_chat_template(conversation, **kwargs)
        keys, images = [_key(prompt) for prompt in conversation], [_count_images(prompt) for prompt in conversation]
        return self._process(
            lambda rows: self._processor.apply_chat_template([conversation[row] for row in rows], **kwargs),
            keys,
            images,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images, text = kwargs.get("images"), kwargs.get("text")
        if args or not isinstance(images, list) or not isinstance(text, list):
            return self._processor(*args, **kwargs)
        counts = [len(of_row or []) for of_row in images]
        return self._process(
            lambda rows: self._processor(
                **kwargs | {name: [kwargs[name][row] for row in rows] for name in ("images", "text")}
            ),
            [_key(pair) for pair in zip(text, images, strict=True)],
            counts,
        )

    def _process(self, process: Callable[[list[int]], Any], keys: list[Hashable], num_images: list[int]) -> Any:
        numbers: dict[Hashable, int] = {}
        order = [numbers.setdefault(key, len(numbers)) for key in keys]
        everything = list(range(len(keys)))
        if len(numbers) == len(keys) or not self._repeatable:
            return process(everything)
        firsts = [order.index(number) for number in range(len(numbers))]
        output = process(firsts)
        entries = self._entries(output, [num_images[row] for row in firsts])
        self._repeatable = entries is not None
        if entries is None:
            return process(everything)
        return BatchFeature({name: _repeated(values, entries[name], order) for name, values in output.items()})

    def _entries(self, output: Any, num_images: list[int]) -> dict[str, list[int]] | None:
        """How many entries of each output belong to each of the D prompts; `None` where that is not known."""
        scoring = {"num_images": num_images, "image_grid_thw": output.get("image_grid_thw")}
        entries = {}
        for name, values in output.items():
            if name in BY_ROW:
                entries[name] = [1] * len(num_images)
            elif name in PIXELS:
                entries[name] = entries_of_rows(name, scoring, self._pixels_by_row)
            if name not in entries or sum(entries[name]) != len(values):  # tiles of an image are not counted here
                return None
        return entries


def _key(value: Any) -> Hashable:
    """The same for equal messages with the same images, which are told apart as objects: comparing pixels takes long."""
    if isinstance(value, dict):
        return tuple((name, _key(entry)) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_key(entry) for entry in value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else (type(value).__name__, id(value))


def _count_images(prompt: list[dict[str, Any]]) -> int:
    parts = [part for message in prompt if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] == "image" for part in parts)


def _repeated(values: Any, entries: list[int], order: list[int]) -> Any:
    """Values along dimension 0, cut into parts of so many entries, in this order."""
    ends = list(itertools.accumulate(entries))
    parts = [values[end - count : end] for end, count in zip(ends, entries, strict=True)]
    if isinstance(values, torch.Tensor):
        return torch.cat([parts[number] for number in order])
    return [value for number in order for value in parts[number]]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The images of rows, prompts and tool results, read and limited once, before prompts, rewards and views are made of them."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from PIL import Image

from ...method.image_size import check_limits, limit_pixels
from ...method.views import load_path, to_rgb
from .checks import describe_image, row_name


class RowImages:
    """
    Brings images under a limit ([`limit_pixels`]) and into a mode that the processor takes. Nothing is changed in place;
    without a limit, and for a processor that converts modes itself, nothing is changed.

    Args:
        max_pixels (`int`, *optional*): the most pixels of an image.
        min_pixels (`int`, *optional*): the fewest.
        to_rgb (`Callable`, *optional*): makes an RGB image of any other as the model's processor does.
        convert (`bool`, *optional*, defaults to `False`): whether to make images in other modes RGB, for a processor that
            converts none and refuses them.
        load_paths (`bool`, *optional*, defaults to `False`): whether to read images that are paths or URLs without a
            limit too, as vLLM takes none (TRL issue 6519). With a limit they are always read, as processors read them.

    Attributes:
        active (`bool`): whether there is anything to do.

    Raises:
        `ValueError`: for limits that no image could keep.
    """

    def __init__(
        self,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        to_rgb: Callable[[Image.Image], Image.Image] = to_rgb,
        load_paths: bool = False,
        convert: bool = False,
    ):
        check_limits(max_pixels, min_pixels)
        self.max_pixels = max_pixels
        self.min_pixels = min_pixels
        self._to_rgb = to_rgb
        self._limited = max_pixels is not None or min_pixels is not None
        self._convert = convert
        self.active = load_paths or convert or self._limited

    def rows(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Rows with the images of their columns `images`, `image` and `prompt` limited: copies, or the rows themselves
        where there is nothing to do. What is no image is left for later checks to name.

        Raises:
            `ValueError`: naming row, column and image, if it cannot be read.
        """
        if not self.active:
            return examples
        read: dict[Any, tuple[Any, Image.Image]] = {}
        return [self._row(example, row_name(example, place), read) for place, example in enumerate(examples)]

    def prompts(self, prompts: list[Any]) -> list[Any]:
        """The same for prompts alone, lists of messages (others are left as they are)."""
        read: dict[Any, tuple[Any, Image.Image]] = {}
        names = (f"Prompt {place} of the generation batch" for place in range(len(prompts)))
        return [self._messages(prompt, name, read) for prompt, name in zip(prompts, names, strict=True)]

    def tool(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """
        A tool that calls `function`, which may be a coroutine function, and limits images among the parts it returns. One
        that cannot be read is an error of the tool, of which TRL tells the model and which it counts.
        """

        def limited(result: Any) -> Any:
            return self._parts(result, f"The result of the tool {name}", {}) if isinstance(result, list) else result

        async def wait(**arguments: Any) -> Any:
            return limited(await function(**arguments))

        def call(**arguments: Any) -> Any:
            return limited(function(**arguments))

        name = getattr(function, "__name__", type(function).__name__)
        return functools.wraps(function)(wait if inspect.iscoroutinefunction(function) else call)

    def _row(self, example: dict[str, Any], name: str, read: dict) -> dict[str, Any]:
        row = dict(example)
        if isinstance(row.get("images"), (list, tuple)):
            where = f"{name}, column 'images'"
            row["images"] = [self._image(image, place, where, read) for place, image in enumerate(row["images"])]
        if "image" in row:
            row["image"] = self._image(row["image"], 0, f"{name}, column 'image'", read)
        if "prompt" in row:
            row["prompt"] = self._messages(row["prompt"], f"{name}, column 'prompt'", read)
        return row

    def _messages(self, prompt: Any, where: str, read: dict) -> Any:
        if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
            return prompt
        places = itertools.count()
        return [
            {**message, "content": self._parts(message["content"], where, read, places)}
            if isinstance(message.get("content"), list)
            else message
            for message in prompt
        ]

    def _parts(self, parts: list[Any], where: str, read: dict, places: "itertools.count | None" = None) -> list[Any]:
        places = itertools.count() if places is None else places
        return [
            {**part, "image": self._image(part["image"], next(places), where, read)}
            if isinstance(part, dict) and part.get("type") == "image" and part.get("image") is not None
            else part
            for part in parts
        ]

    def _image(self, image: Any, place: int, where: str, read: dict) -> Any:
        if image is None:
            return None
        key = image if isinstance(image, str) else id(image)
        if key not in read:
            try:
                read[key] = image, self._read(image)  # the first keeps the second's key from being given anew
            except Exception as error:  # PIL raises SyntaxError and its own DecompressionBombError too
                raise ValueError(f"{where}, image {place} ({describe_image(image)}): {error}") from error
        return read[key][1]

    def _read(self, image: Any) -> Any:
        if isinstance(image, str):
            image = load_path(image)
        if self._convert and isinstance(image, Image.Image) and image.mode != "RGB":
            image = self._to_rgb(image)
        if not self._limited:
            return image
        if not isinstance(image, Image.Image):
            raise TypeError(f"max_pixels and min_pixels take PIL images, paths and URLs, got {type(image).__name__}.")
        return limit_pixels(image, self.max_pixels, self.min_pixels, self._to_rgb)

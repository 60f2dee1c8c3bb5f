# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Making the two views of a prompt's images, from a generator of their own."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from .request import ViewPair
from .views import View, apply_view, choose_view, read_rgb, takes_other


def generator_of(*key: str | int) -> torch.Generator:
    """A generator that a key alone seeds: it draws the same in another process, after a resume, whatever was drawn before."""
    # A hash, for sums and products of small integers collide: (step 1, prompt 0) must not draw as (0, 1) does.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class ViewMaker:
    """
    Draws one information-preserving and one information-removing view for each image of a prompt.

    Args:
        preserving (`list[View]`): the information-preserving views to draw from.
        removing (`list[View]`): the information-removing views to draw from.
        seed (`int`): `args.seed`.
        read (`Callable`, *optional*): makes an RGB image of any other, of a path or URL, as the model's processor does.
    """

    def __init__(
        self,
        preserving: list[View],
        removing: list[View],
        seed: int,
        read: Callable[[Image.Image | str], Image.Image] = read_rgb,
    ):
        self.preserving = preserving
        self.removing = removing
        self.seed = seed
        self.read = read
        self.takes_others = any(map(takes_other, preserving + removing))

    def __call__(self, images: list[Any], *key: str | int, others: Sequence[Any] = ()) -> ViewPair:
        """
        The views of one prompt's images.

        Args:
            images (`list`): PIL images of any mode, or paths and URLs as GRPOTrainer takes them.
            *key (`str` or `int`): What identifies the prompt in the run. The same seed and key give the same views,
                whatever else was drawn before, in this process or another.
            others (`Sequence`, *optional*): images of other prompts, for the views that take one; what they see depends on these.

        Raises:
            `ValueError`: naming the image by its place in the row, if it cannot be read, or a view raises or breaks its
                promise.
        """
        generator = generator_of(self.seed, *key)
        preserved, removed = [], []
        for place, image in enumerate(images):
            try:
                rgb = self.read_image(image)
                preserved.append(self._view(self.preserving, rgb, generator, others))
                removed.append(self._view(self.removing, rgb, generator, others))
            except Exception as error:  # a user's view may raise anything
                raise ValueError(f"image {place}: {error}") from error
        return ViewPair(preserved, removed)

    def _view(
        self, views: list[View], image: Image.Image, generator: torch.Generator, others: Sequence[Any]
    ) -> Image.Image:
        view = choose_view(views, generator)
        other = self._other(image, generator, others) if takes_other(view) else None
        return apply_view(view, image, generator, other)

    def _other(self, image: Image.Image, generator: torch.Generator, others: Sequence[Any]) -> Image.Image | None:
        """One of the others, drawn uniformly from those that do not show the same."""
        for place in torch.randperm(len(others), generator=generator).tolist():
            other = self.read_image(others[place])
            if other.size != image.size or other.tobytes() != image.tobytes():
                return other
        return None

    def read_image(self, image: Any) -> Image.Image:
        """An image as it is shown to the views."""
        if not isinstance(image, (str, Image.Image)):
            raise TypeError(f"expected a PIL image, a path or a URL, got {type(image).__name__}.")
        return self.read(image)

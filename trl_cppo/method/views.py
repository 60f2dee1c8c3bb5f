# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Image views: information-preserving and information-removing transforms with the authors' settings.

A view is a callable `(PIL.Image.Image, torch.Generator) -> PIL.Image.Image`. It gets an RGB image, returns one of the
same size, and draws every random number from the generator it is given: no global random state is read or written.

A view whose attribute `takes_other` is true gets a third argument: an RGB image of another prompt, or `None` where there is none.
"""

import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import load_image

View = Callable[..., Image.Image]

_VIEWS: dict[str, View] = {}
_PATCH = 14  # pixels; the patch side of Qwen2-VL and of most vision towers


def register_view(name: str, takes_other: bool = False) -> Callable[[View], View]:
    """
    Decorator that registers a view under a name, so that `CPPOConfig.information_preserving` and
    `CPPOConfig.information_removing` can list it.

    Args:
        name (`str`): of the view.
        takes_other (`bool`, *optional*, defaults to `False`): whether it is called with a third argument, an RGB image of another
            prompt of the generation batch (of any size; `None` where there is no other).

    The same view defined anew, as by a notebook's cell that is run again, takes the place of the first; trainers that were
    made before keep theirs.

    Raises:
        `ValueError`: if another view has the name.
    """

    def register(view: View) -> View:
        if name in _VIEWS and _origin(_VIEWS[name]) != _origin(view):
            raise ValueError(f"A view named {name!r} is registered already: {_VIEWS[name]}. Choose another name.")
        if takes_other:
            view.takes_other = True
        _VIEWS[name] = view
        return view

    return register


def _origin(view: View) -> tuple[str, str]:
    """The module and the name that a view was defined by: a function's, or of the class of another callable."""
    definition = view if inspect.isfunction(view) else type(view)
    return definition.__module__, definition.__qualname__


def get_view(name: str) -> View:
    """
    The view registered under `name`.

    Raises:
        `ValueError`: for an unknown name; the message lists the known ones.
    """
    if name not in _VIEWS:
        raise ValueError(f"Unknown view {name!r}. Known views: {', '.join(sorted(_VIEWS))}. See register_view.")
    return _VIEWS[name]


def to_rgb(image: Image.Image) -> Image.Image:
    """
    The image in mode RGB as the model's own image processor sees it: transparency over white, 16-bit values clipped.

    EXIF orientation is left alone, because the processors leave it alone: a view that stood upright where the anchor
    lies on its side would compare two different pictures (`datasets` and paths are turned upright on loading).

    Raises:
        `ValueError`: if Pillow cannot decode or convert the image.
    """
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            image.load()
            return image
        if "A" in image.getbands() or "transparency" in image.info:
            above = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), above)
            if "exif" in above.info:
                image.info["exif"] = above.info["exif"]
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"cannot be read as an RGB image (mode {image.mode}, size {image.size}): {error}") from error


def load_path(path: str) -> Image.Image:
    """The file or URL in mode RGB as processors read it: upright, transparency dropped, also that of a declared colour."""
    image = load_image(path)
    image.info.pop("transparency", None)
    return image


def read_rgb(image: Image.Image | str) -> Image.Image:
    """[`to_rgb`] of an image, [`load_path`] of a path or URL."""
    return load_path(image) if isinstance(image, str) else to_rgb(image)


def to_unconverted_rgb(image: Image.Image) -> Image.Image:
    """
    The same for a processor that converts nothing (`do_convert_rgb` off): it sees an RGB image without the transparent
    colour that a file may declare. Other modes, which it refuses, are to be made RGB before it gets them.

    Raises:
        `ValueError`: if Pillow cannot decode or convert the image.
    """
    if image.mode != "RGB" or "transparency" not in image.info:
        return to_rgb(image)
    image = image.copy()
    del image.info["transparency"]
    return image


def takes_other(view: View) -> bool:
    """Whether a view is to be shown the image of another prompt too; see [`register_view`]."""
    return getattr(view, "takes_other", False)


def apply_view(
    view: View, image: Image.Image, generator: torch.Generator, other: Image.Image | None = None
) -> Image.Image:
    """
    `view` applied to an RGB image, with its promise checked. `other` is for those that take one.

    Raises:
        `TypeError`: if the view returns something else than a PIL image.
        `ValueError`: if the view changed the size, which would change the number of image tokens.
    """
    result = view(image, generator, other) if takes_other(view) else view(image, generator)
    name = getattr(view, "__name__", type(view).__name__)
    if not isinstance(result, Image.Image):
        raise TypeError(f"The view {name} returned a {type(result).__name__}; a view returns a PIL image.")
    if result.size != image.size:
        raise ValueError(f"The view {name} changed the size from {image.size} to {result.size}; a view keeps it.")
    return to_rgb(result)


def choose_view(views: list[View], generator: torch.Generator) -> View:
    """One view of the list, drawn uniformly."""
    return views[_integer(0, len(views), generator)]


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """An integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator))


@register_view("color_jitter")
def color_jitter(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Brightness ×[0.2, 1.3], contrast ×[0.2, 1.8] and saturation ×[0.2, 1.8], in random order."""
    factors = [
        (F.adjust_brightness, _uniform(0.2, 1.3, generator)),
        (F.adjust_contrast, _uniform(0.2, 1.8, generator)),
        (F.adjust_saturation, _uniform(0.2, 1.8, generator)),
    ]
    for index in torch.randperm(len(factors), generator=generator).tolist():
        adjust, factor = factors[index]
        image = adjust(image, factor)
    return image


@register_view("random_perspective")
def random_perspective(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """With probability 0.5, each corner moves inwards by up to 0.2 of half a side; what falls open is black."""
    width, height = image.size
    if _uniform(0, 1, generator) >= 0.5 or min(width, height) < 2:
        return image  # one pixel has no corners: the transform would be singular

    def inward(side: int) -> int:
        return _integer(0, int(0.2 * (side // 2)) + 1, generator)

    right, bottom = width - 1, height - 1
    corners = [[0, 0], [right, 0], [right, bottom], [0, bottom]]
    moved = [
        [inward(width), inward(height)],
        [right - inward(width), inward(height)],
        [right - inward(width), bottom - inward(height)],
        [inward(width), bottom - inward(height)],
    ]
    return F.perspective(image, corners, moved, interpolation=InterpolationMode.BILINEAR, fill=0)


@register_view("random_rotation")
def random_rotation(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A rotation by an angle uniform in ±10°; what falls open is black."""
    return F.rotate(image, _uniform(-10, 10, generator), interpolation=InterpolationMode.NEAREST, fill=0)


@register_view("gaussian_blur")
def gaussian_blur(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A Gaussian blur of kernel 3 and σ = 1 pixel (the authors' AReaL code). Draws nothing."""
    kernel = [3 if side > 1 else 1 for side in image.size]  # the blur mirrors a border that one pixel does not have
    return F.gaussian_blur(image, kernel_size=kernel, sigma=[1.0, 1.0])


@register_view("noise_boxes")
def noise_boxes(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """50 boxes of uniform pixel noise, each side uniform in 5–15 % of the image's, at uniform places."""
    return cover_with_boxes(image, 50, generator)


def cover_with_boxes(image: Image.Image, count: int, generator: torch.Generator) -> Image.Image:
    """`count` boxes of uniform pixel noise, each side uniform in 5–15 % of the image's, at uniform places."""
    width, height = image.size
    pixels = np.array(image)
    for _ in range(count):
        box_width = max(1, round(_uniform(0.05, 0.15, generator) * width))
        box_height = max(1, round(_uniform(0.05, 0.15, generator) * height))
        left = _integer(0, width - box_width + 1, generator)
        top = _integer(0, height - box_height + 1, generator)
        noise = torch.randint(0, 256, (box_height, box_width, 3), generator=generator, dtype=torch.uint8)
        pixels[top : top + box_height, left : left + box_width] = noise.numpy()
    return Image.fromarray(pixels)


@register_view("zoom_crop")
def zoom_crop(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A crop of 0.6–0.7 of each side at a uniform place, resized back (bilinear)."""
    return crop_and_enlarge(image, _uniform(0.6, 0.7, generator), generator)


def crop_and_enlarge(image: Image.Image, scale: float, generator: torch.Generator) -> Image.Image:
    """A crop of `scale` of each side at a uniform place, resized back (bilinear)."""
    width, height = image.size
    crop_width, crop_height = max(1, round(scale * width)), max(1, round(scale * height))
    left = _integer(0, width - crop_width + 1, generator)
    top = _integer(0, height - crop_height + 1, generator)
    return F.resized_crop(image, top, left, crop_height, crop_width, [height, width], InterpolationMode.BILINEAR)


@register_view("black_squares")
def black_squares(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Black squares of 14 pixels at uniform places until 80 % of the pixels are covered (the authors' AReaL code)."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    covered = np.zeros((height, width), dtype=bool)
    square_height, square_width = min(_PATCH, height), min(_PATCH, width)
    left_over = math.floor(0.2 * height * width)
    visible = height * width
    while visible > left_over:
        # a few hundred places in one draw: one draw a square would cost seconds on a large image
        tops = torch.randint(0, height - square_height + 1, (256,), generator=generator).tolist()
        lefts = torch.randint(0, width - square_width + 1, (256,), generator=generator).tolist()
        for top, left in zip(tops, lefts, strict=True):
            square = covered[top : top + square_height, left : left + square_width]
            visible -= square.size - int(np.count_nonzero(square))
            square[...] = True
            if visible <= left_over:
                break
    pixels[covered] = 0
    return Image.fromarray(pixels)


@register_view("patch_blackening")
def patch_blackening(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Each 14-pixel patch of a grid turns black with probability 0.6 (PAPO, arXiv 2507.06448)."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    rows, columns = math.ceil(height / _PATCH), math.ceil(width / _PATCH)
    black = (torch.rand((rows, columns), generator=generator) < 0.6).numpy()
    pixels[black.repeat(_PATCH, axis=0).repeat(_PATCH, axis=1)[:height, :width]] = 0
    return Image.fromarray(pixels)


@register_view("another_image", takes_other=True)
def another_image(image: Image.Image, generator: torch.Generator, other: Image.Image | None) -> Image.Image:
    """
    The image of another prompt of the generation batch, at this one's size (bilinear): where images have one size, nothing tells the
    policy that it is damaged. Where there is no other, one grey: the mean of the image.
    """
    if other is None:
        mean = np.array(image).mean(axis=(0, 1)).round().astype(int)
        return Image.new("RGB", image.size, tuple(mean.tolist()))
    return other.resize(image.size, Image.Resampling.BILINEAR)

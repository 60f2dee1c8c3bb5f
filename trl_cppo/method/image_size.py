# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One limit on an image's pixels, on which its number of tokens depends, for training, evaluation, report and data."""

import math
from collections.abc import Callable

from PIL import Image

from .views import to_rgb as composed_over_white

FEW_PIXELS = 4 * 28 * 28  # four tokens of a Qwen2.5-VL; of less there is next to nothing to see


def check_limits(max_pixels: int | None, min_pixels: int | None) -> None:
    """
    Refuse limits that no image could keep.

    Raises:
        `ValueError`: if one is no whole number from 1 on (`None` is no limit), or the least is above the most.
    """
    for name, value in (("max_pixels", max_pixels), ("min_pixels", min_pixels)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(
                f"{name} must be a whole number of pixels (width times height), 1 or more, or None for images as they "
                f"are; got {value!r}."
            )
    if max_pixels is not None and min_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"min_pixels must not be above max_pixels; got {min_pixels} and {max_pixels}.")


def limit_pixels(
    image: Image.Image,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    to_rgb: Callable[[Image.Image], Image.Image] = composed_over_white,
) -> Image.Image:
    """
    An image scaled to at most and at least so many pixels, its aspect ratio kept to a pixel.

    What is scaled is made RGB before, as the model's processor would do it: resizing a palette mixes its indices. EXIF
    data stay, so that whoever turned the image upright still does. Scaled is by bicubic interpolation. A second call
    returns its argument.

    Args:
        image (`PIL.Image.Image`): of any mode.
        max_pixels (`int`, *optional*): the most pixels, width times height; never exceeded.
        min_pixels (`int`, *optional*): the fewest; where whole sides cannot meet both, `max_pixels` is kept.
        to_rgb (`Callable`, *optional*): makes an RGB image of any other; by default transparency is laid over white.

    Returns:
        `PIL.Image.Image`: the very image if it is within the limits, else a new one in mode RGB.

    Raises:
        `ValueError`: for limits that no image could keep, or an image that cannot be decoded.
    """
    check_limits(max_pixels, min_pixels)
    if limited_size(image.size, max_pixels, min_pixels) == image.size:
        return image
    rgb = to_rgb(image)  # may turn it
    return rgb.resize(limited_size(rgb.size, max_pixels, min_pixels), Image.Resampling.BICUBIC)


def limited_size(size: tuple[int, int], max_pixels: int | None, min_pixels: int | None) -> tuple[int, int]:
    """Width and height that [`limit_pixels`] gives an image of this width and height."""
    pixels, least, most = size[0] * size[1], min_pixels or 0, max_pixels or math.inf
    if pixels == 0 or least <= pixels <= most:
        return size
    short, long = sorted(size)
    # The sides of exactly `least` or `most` pixels, rounded up or down: in whole numbers, for floats lose a pixel.
    if pixels < least:
        new_short, new_long = _ceil_sqrt(least * short, long), _ceil_sqrt(least * long, short)
    if pixels > most or new_short * new_long > most:
        new_short = max(1, math.isqrt(most * short // long))
        new_long = min(
            math.isqrt(most * long // short), most // new_short
        )  # the short side may be 1 for less than that
        if (
            new_short * new_long < least
        ):  # the limits lie too close together for both: a second call must change nothing
            new_long = most // new_short
    return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


def _ceil_sqrt(numerator: int, denominator: int) -> int:
    return math.isqrt(-(-numerator // denominator) - 1) + 1

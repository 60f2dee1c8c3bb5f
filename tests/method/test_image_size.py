# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""limit_pixels: sizes, modes, EXIF orientation."""

import io

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from trl_cppo import limit_pixels
from trl_cppo.method.image_size import limited_size
from trl_cppo.method.views import to_rgb

SIDES = st.one_of(st.integers(1, 60), st.integers(1, 20_000))
LIMITS = st.one_of(st.integers(1, 300), st.integers(1, 2_000_000))
ORIENTATION = 274  # EXIF's tag


@given(st.tuples(SIDES, SIDES), LIMITS)
def test_the_most_is_never_exceeded_and_the_aspect_ratio_kept_to_a_pixel(size, most):
    new = limited_size(size, most, None)
    assert min(new) >= 1 and new[0] * new[1] <= most
    assert limited_size(new, most, None) == new
    if size[0] * size[1] <= most:
        assert new == size
        return
    scale = (most / (size[0] * size[1])) ** 0.5
    if min(size) * scale >= 1:  # else one side is 1 and cannot get smaller
        assert all(
            side * scale - 1 - 1e-6 < side_now <= side * scale + 1e-6 for side, side_now in zip(size, new, strict=True)
        )
    else:
        assert min(new) == 1 and max(new) == min(max(size), most)


@given(st.tuples(SIDES, SIDES), LIMITS)
def test_the_fewest_is_reached_and_the_aspect_ratio_kept_to_a_pixel(size, fewest):
    new = limited_size(size, None, fewest)
    assert new[0] * new[1] >= fewest and limited_size(new, None, fewest) == new
    scale = max(1.0, (fewest / (size[0] * size[1])) ** 0.5)
    assert all(side * scale - 1e-6 <= now < side * scale + 1 + 1e-6 for side, now in zip(size, new, strict=True))


@given(st.tuples(SIDES, SIDES), LIMITS, LIMITS)
def test_both_limits_hold_or_lie_closer_than_a_row_of_pixels_and_a_second_call_changes_nothing(size, one, other):
    fewest, most = sorted((one, other))
    new = limited_size(size, most, fewest)
    assert min(new) >= 1 and new[0] * new[1] <= most
    assert new[0] * new[1] >= fewest or (min(new) + 1) * max(new) > most and min(new) * (max(new) + 1) > most
    assert limited_size(new, most, fewest) == new
    assert (new[0] <= new[1]) == (size[0] <= size[1]) or new[0] == new[1]  # what lies stays lying


def test_a_photo():
    photo = Image.new("RGB", (4000, 3000))
    small = limit_pixels(photo, max_pixels=512 * 28 * 28)
    assert small.size == (731, 548) and limit_pixels(small, max_pixels=512 * 28 * 28) is small
    large = limit_pixels(small, min_pixels=4000 * 3000)
    assert large.width * large.height >= 4000 * 3000 and abs(large.width / large.height - 4 / 3) < 1e-3


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (3000, 2), (1, 1)])
def test_extreme_aspect_ratios_keep_the_limit(size):
    small = limit_pixels(Image.new("L", size), max_pixels=500)
    assert small.width * small.height <= 500 and min(small.size) == 1


def test_an_image_within_the_limits_is_the_same_object():
    for mode in ("RGB", "P", "RGBA", "I;16", "1", "CMYK"):
        image = Image.new(mode, (40, 30))
        assert limit_pixels(image, max_pixels=1200, min_pixels=1200) is image
        assert limit_pixels(image) is image


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 0}, "max_pixels must be a whole number of pixels"),
        ({"min_pixels": -5}, "min_pixels must be a whole number of pixels"),
        ({"max_pixels": 2.5}, "got 2.5"),
        ({"max_pixels": 10, "min_pixels": 11}, "min_pixels must not be above max_pixels; got 11 and 10"),
    ],
)
def test_limits_that_no_image_could_keep_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        limit_pixels(Image.new("RGB", (4, 4)), **limits)


def of_mode(mode):
    image = picture(1, 60, 40)
    if mode == "I;16":
        return Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (40, 60), dtype=np.uint16))
    image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "P":
        image.info["transparency"] = 3
    return image


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_an_image_is_made_rgb_before_it_is_scaled(mode):
    image = of_mode(mode)
    before = image.copy()
    expected = to_rgb(image).resize((30, 20), Image.Resampling.BICUBIC)
    small = limit_pixels(image, max_pixels=600)
    assert small.mode == "RGB" and small.size == (30, 20) and small.tobytes() == expected.tobytes()
    assert image.mode == mode and image.tobytes() == before.tobytes()  # not changed in place


def photo(orientation, kind):
    """An image file whose EXIF data say how it must be turned, and as PIL opens it."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    smooth = picture(1, 6, 4).resize((60, 40), Image.Resampling.BICUBIC)
    smooth.save(buffer, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return Image.open(buffer)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_who_turns_an_image_upright_still_does_and_who_does_not_still_does_not(kind, orientation):
    image = photo(orientation, kind)
    small = limit_pixels(photo(orientation, kind), max_pixels=600)
    lying = to_rgb(image)
    assert small.tobytes() == lying.resize(small.size, Image.Resampling.BICUBIC).tobytes()
    upright, small_upright = ImageOps.exif_transpose(lying), ImageOps.exif_transpose(small)
    assert (small_upright.width > small_upright.height) == (upright.width > upright.height)
    scaled = np.asarray(upright.resize(small_upright.size, Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(scaled - np.asarray(small_upright, dtype=float)).max() < 3  # the same picture, the same way up
    assert np.abs(scaled - np.asarray(small_upright.rotate(180), dtype=float)).max() > 30  # which turning would show


def test_the_familys_own_conversion_is_used_where_it_is_given():
    image = of_mode("RGBA")
    small = limit_pixels(image, max_pixels=600, to_rgb=lambda image: image.convert("RGB"))
    assert small.tobytes() == image.convert("RGB").resize((30, 20), Image.Resampling.BICUBIC).tobytes()
    assert small.tobytes() != limit_pixels(image, max_pixels=600).tobytes()


def test_an_image_that_cannot_be_decoded_is_named():
    buffer = io.BytesIO()
    picture(1, 60, 40).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"cannot be read as an RGB image \(mode RGB, size \(60, 40\)\)"):
        limit_pixels(Image.open(io.BytesIO(buffer.getvalue()[:2000])), max_pixels=600)

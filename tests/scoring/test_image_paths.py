# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Views of images that are given as paths, which processors decode by torchvision and not by Pillow, in every family."""

import pytest
from family_cases import BY_MODE, assert_an_untouched_view_has_the_pixels_of
from tiny_models import FAMILIES, build

from trl_cppo.scoring.families import rgb_reader


@pytest.mark.parametrize("converts", [True, False, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untouched_view_of_a_path_has_the_pixels_of_its_image(tmp_path, family, converts):
    model, processor = build(family)
    processor.image_processor.do_convert_rgb = converts
    for mode, make in BY_MODE.items():
        kinds = {"CMYK": ["jpg"], "I;16": []}.get(mode, ["jpg", "png"] if mode in ("RGB", "L") else ["png"])
        for kind in kinds:
            path = str(tmp_path / f"image.{kind}")
            make().save(path)  # with the colour that it declares transparent
            assert_an_untouched_view_has_the_pixels_of(path, mode, model, processor)


def test_a_path_of_16_bits_is_refused_rather_than_seen_otherwise_than_its_views(tmp_path):
    BY_MODE["I;16"]().save(tmp_path / "image.png")
    read = rgb_reader(build("llava")[1])
    with pytest.raises(
        ValueError, match="image.png' holds values of 16 bits.* 8 bits, or make the column one of datasets"
    ):
        read(str(tmp_path / "image.png"))

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Prepared images show what the trainer would have seen of their source: any mode, size, format and EXIF orientation."""

import io

import numpy as np
import pytest
from conftest import picture
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from PIL import ImageOps
from tiny_models import FAMILIES, build
from transformers import AutoProcessor

from trl_cppo.commands.prepare import images, prepare, rows
from trl_cppo.method.image_size import limited_size
from trl_cppo.method.views import to_rgb
from trl_cppo.scoring.families import rgb_reader

ORIENTATION = 0x0112
SIZES = {"small": (40, 14), "large": (60, 42)}
LIMITS = {"no limit": {}, "at most": {"max_pixels": 500}, "at least": {"min_pixels": 6000}}


def of_mode(mode, size):
    image = picture(1, *size)
    if mode == "I;16":
        return PILImage.fromarray(np.random.default_rng(0).integers(0, 999, size[::-1], dtype=np.uint16))
    image = image.convert(mode.removesuffix("A") if mode in ("LA", "PA", "RGBA") else mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(PILImage.linear_gradient("L").resize(size))
    return image


def encoded(mode, kind, size, orientation=None):
    image, options = of_mode(mode.split("+")[0], size), {}
    if mode.endswith("+transparent"):
        options["transparency"] = image.getpixel((3, 3))
    if orientation is not None:
        options["exif"] = PILImage.Exif()
        options["exif"][ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


MODES = {
    "PNG": ["RGB", "RGB+transparent", "L", "L+transparent", "LA", "P", "P+transparent", "RGBA", "1", "I;16"],
    "TIFF": ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16"],
    "WEBP": ["RGB", "RGBA", "LA", "P"],
    "GIF": ["P", "P+transparent"],
    "JPEG": ["RGB", "L", "CMYK"],
}


def decoded(data):
    """As training reads it."""
    return Image().decode_example({"bytes": data, "path": None})


def expected(source, small, limits, read):
    """The RGB image that the trainer would make, scaled as documented."""
    image = read(source)
    if small:
        scale = 28 / min(image.size)
        image = image.resize(tuple(max(28, round(side * scale)) for side in image.size), PILImage.Resampling.LANCZOS)
    size = limited_size(image.size, limits.get("max_pixels"), limits.get("min_pixels"))
    return image if size == image.size else image.resize(size, PILImage.Resampling.BICUBIC)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_a_prepared_image_shows_what_the_trainer_sees(kind, mode, size, limits):
    source = encoded(mode, kind, SIZES[size])
    for read in (to_rgb, rgb_reader(build("idefics2")[1])):  # the one that drops transparency
        made = images.usable_bytes({"bytes": source, "path": None}, "", **LIMITS[limits], to_rgb=read)
        wanted = expected(decoded(source), size == "small", LIMITS[limits], read)
        shown = read(decoded(made))
        assert shown.size == wanted.size
        difference = np.abs(np.asarray(shown, dtype=int) - np.asarray(wanted, dtype=int)).max()
        assert difference <= (40 if kind == "JPEG" and limits != "no limit" else 0)  # encoded anew


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "LA"), ("TIFF", "RGBA"), ("WEBP", "RGBA"), ("PNG", "P+transparent")]
)  # fmt: skip
def test_a_turned_image_is_prepared_upright(kind, mode, size, limits):
    for orientation in range(1, 9):
        source = encoded(mode, kind, SIZES[size], orientation)
        made = decoded(images.usable_bytes({"bytes": source, "path": None}, "", **LIMITS[limits]))
        wanted = expected(decoded(source), size == "small", LIMITS[limits], to_rgb)
        assert made.size == wanted.size and (made.width < made.height) == (orientation > 4)
        assert to_rgb(made).tobytes() == wanted.tobytes() or kind == "JPEG" and limits != "no limit"


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P+transparent", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_data_survive_what_lies_over_white(kind, mode):
    """So that whoever turns an image after it was scaled still does."""
    if (kind, mode) == ("WEBP", "P+transparent"):
        pytest.skip("WebP has no palette")
    lying = to_rgb(PILImage.open(io.BytesIO(encoded(mode, kind, SIZES["large"], orientation=6))))
    assert lying.size == SIZES["large"] and ImageOps.exif_transpose(lying).size == SIZES["large"][::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_of_a_turned_photo_are_those_of_training(tmp_path, monkeypatch, family):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    build(family)[1].save_pretrained(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    photos = [
        {"bytes": encoded("RGB", "JPEG", size, orientation), "path": None}
        for size in [(112, 40), (40, 112)]
        for orientation in range(1, 9)
    ]
    source = [{"problem": "<image>sum?", "answer": "3", "images": [photo]} for photo in photos]
    features = Features({"problem": Value("string"), "answer": Value("string"), "images": List(Image())})
    (tmp_path / "source").mkdir()
    Dataset.from_list(source, features=features).to_parquet(tmp_path / "source" / "train.parquet")
    rows._load_processor.cache_clear()
    made, _ = prepare(str(tmp_path / "source"), model=str(tmp_path / "model"), max_prompt_length=10**6)
    assert len(made["train"]) == 16
    for row in made["train"]:
        [image], [message] = row["images"], row["prompt"]
        content = [{**part, "image": image} if part["type"] == "image" else part for part in message["content"]]
        prompt = [{"role": "user", "content": content}]
        tokens = processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert row["num_tokens"] == len(tokens["input_ids"][0])

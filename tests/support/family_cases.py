# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of model families share: images by their mode, rows by their numbers of images, names in the README."""

import io

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image as PILImage

from trl_cppo.method.view_maker import ViewMaker
from trl_cppo.run.rows.images import RowImages
from trl_cppo.scoring.families import ViewProcessor

README_NAMES = {
    "Qwen2-VL": ["qwen2_vl"], "Qwen2.5-VL": ["qwen2_5_vl"], "Qwen3-VL (dense and MoE)": ["qwen3_vl", "qwen3_vl_moe"],
    "Qwen3.5 (dense and MoE)": ["qwen3_5", "qwen3_5_moe"], "GLM-4.1V": ["glm4v"], "Gemma 3": ["gemma3"], "Gemma 4": ["gemma4"],
    "PaliGemma": ["paligemma"], "LLaVA": ["llava"], "LLaVA-NeXT": ["llava_next"],
    "LLaVA-OneVision": ["llava_onevision"], "InternVL": ["internvl"], "Idefics 2": ["idefics2"],
    "Idefics 3": ["idefics3"], "SmolVLM": ["smolvlm"], "LFM2-VL": ["lfm2_vl"],
}  # fmt: skip
# What GRPOTrainer itself cannot train, with the error that it raises; the README's table says the same.
UPSTREAM = {
    ("paligemma", "several"): "The requested array has an inhomogeneous shape",
    ("paligemma", "mixed"): "The requested array has an inhomogeneous shape",
    ("llava_onevision", "several"): "Image features and image tokens do not match",
}
SIZES = [(56, 56), (84, 42), (42, 70)]


def counts_of(family, kind):
    """Images of each row of the data set, or a skip where GRPOTrainer itself cannot train it."""
    if (family, kind) in UPSTREAM:
        pytest.skip(f"GRPOTrainer itself: {UPSTREAM[family, kind]}")
    if family == "llava_onevision" and kind == "mixed":
        return [1, 0, 1, 1]
    kinds = {"one": [1, 1, 1, 1], "two each": [2, 2, 2, 2], "several": [1, 2, 3, 1], "mixed": [2, 0, 1, 2]}
    return kinds[kind]


def prompt_text(processor, num_images):
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": "sum?"}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def pads_unasked(processor):
    """Whether it pads a batch's prompts without being told to; TRL (1.16) takes the padding for tokens of theirs."""
    return bool(
        getattr(processor, "text_kwargs", {}).get("padding")
    )  # some have it, as transformers' own call reads it


def declared_transparent(image, colour):
    """The image as a PNG file brings it that declares one of its colours transparent."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=colour)
    return PILImage.open(buffer)


def with_alpha(mode):
    image = picture(1).convert(mode)
    image.putalpha(PILImage.linear_gradient("L").resize(image.size))
    return image


BY_MODE = {
    "RGB": lambda: picture(1),
    "RGB, a colour transparent": lambda: declared_transparent(PILImage.new("RGB", (56, 42), (9, 9, 9)), (9, 9, 9)),
    "L": lambda: picture(1).convert("L"),
    "L, a value transparent": lambda: declared_transparent(PILImage.new("L", (56, 42), 9), 9),
    "LA": lambda: with_alpha("L"),
    "RGBA": lambda: with_alpha("RGB"),
    "P": lambda: picture(1).convert("P"),
    "P, a colour transparent": lambda: declared_transparent(picture(1).convert("P"), 3),
    "1": lambda: picture(1).convert("1"),
    "CMYK": lambda: picture(1).convert("CMYK"),
    "I;16": lambda: PILImage.fromarray(np.random.default_rng(0).integers(0, 999, (42, 56), dtype=np.uint16)),
}


def assert_an_untouched_view_has_the_pixels_of(source, mode, model, processor):
    """A row's image or path, through what the trainer does to it, against what the processor makes of the row."""
    process = ViewProcessor(model, processor)
    row_images = RowImages(to_rgb=process.to_rgb, convert=not process.converts)
    same = ViewMaker([lambda image, generator: image], [lambda image, generator: image], 0, process.to_rgb)
    [row] = row_images.rows([{"images": [source]}])
    kept = process.converts or mode.split(",")[0] == "RGB" and not isinstance(source, str)
    assert (row["images"][0] is source) == kept
    anchor = processor(images=[row["images"]], text=[prompt_text(processor, 1)], return_tensors="pt")
    view = process([same(row["images"], "key").preserved])["pixel_values"]
    assert torch.equal(view, anchor["pixel_values"]), (mode, source)

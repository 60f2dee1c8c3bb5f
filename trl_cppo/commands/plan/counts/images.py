# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What an image of some size is to a model: pixel tensors without data, and tokens."""

import inspect
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    Glm4vImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2VLImageProcessor,
)

from ....scoring.arguments import PIXELS
from ....scoring.families import FAMILIES

Sizes = tuple[tuple[int, int], ...]  # width and height of each image of a row


def load_image_processor(source: str, config: PretrainedConfig) -> tuple[BaseImageProcessor, bool]:
    """
    The image processor of a model, from its settings alone, and whether these are the model's own.

    Args:
        source (`str`): Hub id or local folder, of which `preprocessor_config.json` or `processor_config.json` is read.
        config (`PretrainedConfig`): of the model. Qwen's and GLM's says the size of a patch, all but the limits of an image's
            size; of those a model without settings gets transformers' own.

    Raises:
        `ValueError`: for another family without settings.
    """
    try:
        return AutoImageProcessor.from_pretrained(source), True
    except OSError as error:
        if not FAMILIES[config.model_type].mrope:
            raise ValueError(
                f"{source} has no preprocessor_config.json, which says how many tokens an image of a {config.model_type} makes. "
                "Put it beside config.json."
            ) from error
    vision = config.vision_config
    made = Glm4vImageProcessor if config.model_type == "glm4v" else Qwen2VLImageProcessor
    sizes = {name: vision.to_dict()[name] for name in ("patch_size", "temporal_patch_size")}
    return made(**sizes, merge_size=vision.spatial_merge_size), False


class ImageMaker:
    """
    Stands for [`~trl_cppo.scoring.families.ViewProcessor`]: an image is its width and height, and its pixels have no data.

    Args:
        processor (`BaseImageProcessor`): says the shapes; it is asked once a row of other sizes, with grey images.
        family (`str`): the configuration's `model_type`.
        device (`str`): of the pixels. What says their layout (`image_grid_thw` and the like) is on the CPU, with its values.
    """

    def __init__(self, processor: BaseImageProcessor, family: str, device: str = "meta"):
        self.pixels_by_row = FAMILIES[family].pixels_by_row
        self._processor, self._device = processor, device
        # As InternVL's processor and TRL ask for it.
        self._options = {"crop_to_patches": True} if family == "internvl" else {}
        # Idefics and SmolVLM leave out images whose pixels are all zero.
        self._without_values = not self.pixels_by_row
        self._known: dict[Sizes, dict[str, torch.Tensor]] = {}

    def row(self, sizes: Sizes) -> dict[str, torch.Tensor]:
        """The tensors of one row's images by name, `pixel_values` on the device."""
        if sizes not in self._known:
            images = [Image.new("RGB", size, (200, 200, 200)) for size in sizes]
            made = self._processor(images=[images], return_tensors="pt", **self._options)
            tensors = {name: value for name, value in made.items() if name in PIXELS}
            if self._without_values:
                tensors["pixel_values"] = tensors["pixel_values"].to(self._device)
            self._known[sizes] = tensors
        return self._known[sizes]

    def __call__(self, images: list[Sizes]) -> dict[str, torch.Tensor]:
        rows = [self.row(sizes) for sizes in images]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def tiles(self, sizes: Sizes) -> int | None:
        """How many tiles a row's images are cut into, where each has an entry of its own; `None`: the images have."""
        tensors = self.row(sizes)
        entries = len(tensors["pixel_values"])
        has_own = self.pixels_by_row or "image_grid_thw" in tensors or entries == len(sizes)
        return None if has_own else entries


def image_tokens(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> int:
    """How many tokens the images of these tensors fill in a prompt: as many as the model makes features of them."""
    takes = inspect.signature(model.get_image_features).parameters
    given = {name: value for name, value in tensors.items() if name in takes}
    features: Any = model.get_image_features(**given, return_dict=True).pooler_output
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return sum(part.numel() for part in parts) // model.config.get_text_config().hidden_size

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model families whose view rows CPPOTrainer can append, and what is particular to each."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers import Idefics2Processor, PreTrainedModel, ProcessorMixin
from transformers.image_utils import load_image

from .views import to_rgb, to_unconverted_rgb

# By `config.model_type`.
FAMILIES = (
    "gemma3", "gemma4", "idefics2", "idefics3", "internvl", "lfm2_vl", "llava", "llava_next", "llava_onevision", "paligemma",
    "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
)  # fmt: skip
# Their pixels have one entry a row, padded to the row with the most images.
_BY_ROW = ("idefics2", "idefics3", "smolvlm")
# Why a family is not sampled by vLLM (0.27 to 0.30): anywhere, by its server, on a CPU. docs/distributed.md has what was checked.
_UNLOADABLE = "vLLM's model needs PixtralRotaryEmbedding, which transformers has no more since 5.23"
_ONE_WAY = "on a CPU, vLLM's image tokens do not attend to those behind them, as the model's must"
_HYBRID = "on a CPU, vLLM's hybrids of attention and recurrence give other log-probabilities than transformers, without images too"
_SEVERAL_RUNS = "the tokens of one image are several runs, which TRL's client takes for several images"
_VLLM_OBSTACLES = {
    "idefics2": "vLLM has no such model",
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "paligemma"), _UNLOADABLE),
}
_SERVER_OBSTACLES = dict.fromkeys(("idefics3", "smolvlm", "lfm2_vl"), _SEVERAL_RUNS)
_CPU_OBSTACLES = {
    **dict.fromkeys(("gemma3", "gemma4"), _ONE_WAY),
    **dict.fromkeys(("lfm2_vl", "qwen3_5", "qwen3_5_moe"), _HYBRID),
}


class ViewProcessor:
    """
    Makes a family's pixel tensors from a list of images for each view row.

    Args:
        model (`PreTrainedModel` or `PeftModel`): its `config.model_type` names the family.
        processor (`ProcessorMixin`): its image processor makes the pixels, as it made the anchors'.

    Attributes:
        pixels_by_row (`bool`): whether the pixels have one entry a row, whatever the number of its images.
        to_rgb (`Callable`): makes an RGB image of any other as the family's processor does.
        converts (`bool`): whether the processor does it for the images of the rows too.

    Raises:
        `ValueError`: for a processing class that is a plain tokenizer, a family that is not known here, or a setting
            of the processor under which TRL does not find an image's pixels.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        if not isinstance(processor, ProcessorMixin):
            raise ValueError(
                f"CPPOTrainer needs a vision-language model with its processor, got a {type(processor).__name__}. Pass "
                "processing_class=AutoProcessor.from_pretrained(..., padding_side='left'), or train a text-only model with GRPOTrainer."
            )
        family = model.config.model_type
        if family not in FAMILIES:
            raise ValueError(
                f"CPPOTrainer does not recognise the model type {family!r}, so it cannot tell which pixels belong to "
                f"which row. Known model types: {', '.join(FAMILIES)}. Use GRPOTrainer for other families."
            )
        self.pixels_by_row = has_pixels_by_row(model)
        self.to_rgb, self.converts = rgb_reader(processor), converts_to_rgb(processor)
        self._image_processor = processor.image_processor
        self._options = image_options(processor)
        if self._options.get("do_pan_and_scan"):
            raise ValueError(
                "The processor's images_kwargs turn do_pan_and_scan on, which makes several entries of pixels of an image; TRL "
                "cannot tell whose they are. Set processor.images_kwargs['do_pan_and_scan'] = False."
            )

    def __call__(self, images: list[list[Image.Image]]) -> dict[str, Any]:
        """Tensors by name, along dimension 0 in the order of the images; what else the image processor returns."""
        return dict(self._image_processor(images=images, return_tensors="pt", **self._options))


def image_options(processor: ProcessorMixin) -> dict[str, Any]:
    """What a processor tells its image processor at each call; it wins over the latter's own settings."""
    # An attribute that some have, as transformers' own call reads it.
    return dict(getattr(processor, "images_kwargs", {}))


def converts_to_rgb(processor: ProcessorMixin) -> bool:
    """Whether a processor makes RGB of images in other modes; one that does not (LFM2-VL's default) refuses them."""
    return bool(image_options(processor).get("do_convert_rgb", processor.image_processor.do_convert_rgb))


def rgb_reader(processor: ProcessorMixin) -> Callable[[Image.Image | str], Image.Image]:
    """What makes an RGB image of any other, or of a path or URL, with the pixels that the processor sees."""
    convert = to_rgb if converts_to_rgb(processor) else to_unconverted_rgb

    def read(image: Image.Image | str) -> Image.Image:
        # This one loads images as it does paths: upright, and without transparency but for a colour that a file declares.
        if isinstance(processor, Idefics2Processor):
            return convert(load_image(image))
        if not isinstance(image, str):
            return convert(image)
        fetched = processor.image_processor.fetch_images(image)
        if not isinstance(fetched, torch.Tensor):
            return convert(fetched)
        if fetched.dtype != torch.uint8:
            raise ValueError(
                f"{image!r} holds values of 16 bits, which the processor takes from a path as if 255 were white. Save it with "
                "8 bits, or make the column one of datasets.Image."
            )
        return to_pil_image(fetched)

    return read


def has_pixels_by_row(model: PreTrainedModel) -> bool:
    """Whether the pixels of the model's family have one entry a row, whatever the number of its images."""
    return model.config.model_type in _BY_ROW


def as_vllm_reads(family: str, name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A weight of the model in memory, under the name and in the layout that it has in the family's checkpoints."""
    if family in ("gemma3", "lfm2_vl"):
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    if family == "qwen3_vl_moe" and name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        weight = weight.transpose(1, 2)
    return name, weight


def vllm_obstacle(family: str, mode: str, device: str) -> str | None:
    """Why a family is not sampled by vLLM in this `vllm_mode` beside training on this kind of device; `None` if it is."""
    if family not in FAMILIES:
        return "this model type is not known to CPPOTrainer"
    tables = [
        _VLLM_OBSTACLES,
        _SERVER_OBSTACLES if mode == "server" else {},
        _CPU_OBSTACLES if device == "cpu" else {},
    ]
    return next((table[family] for table in tables if family in table), None)


def unchecked_reason(family: str) -> str | None:
    """Why nobody has seen vLLM and the trainer agree on a family that is sampled by vLLM on GPUs; `None` if they were."""
    return _CPU_OBSTACLES.get(family)


def check_image_counts(pixels_by_row: bool, num_images: list[int] | None) -> None:
    """
    Refuse a generation batch whose pixels TRL would hand to the wrong rows.

    TRL (1.15, 1.16) takes `pixel_values` for one entry an image wherever it has as many entries as there are images.
    Where a family has one entry a row, rows without an image can make the two numbers equal by chance.

    Raises:
        `ValueError`: for such a batch.
    """
    if num_images is None or not pixels_by_row:
        return
    if sum(num_images) == len(num_images) and set(num_images) != {1}:
        raise ValueError(
            f"The rows of this generation batch have {num_images} images: as many images as rows, but not one each. "
            "TRL would cut the pixels of this model family in the wrong places. Drop the text-only rows."
        )


def placeholder_texts(model: PreTrainedModel, processor: ProcessorMixin) -> list[str]:
    """The texts that a prompt must not hold but where the processor puts them: they stand for images, videos and sounds."""
    tokenizer = processor.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(placeholder_ids(model))
    # A configuration may name the token of a kind that its tokenizer has not, and another word in its place.
    own = [token for token in tokens if token in tokenizer.get_added_vocab()]
    return sorted({*processor.all_special_multimodal_tokens, *own})


def placeholder_ids(model: PreTrainedModel) -> list[int]:
    """The token ids that stand for image, video and audio features in a prompt, and must not be sampled."""
    config = model.config.to_dict()
    kinds, suffixes = ("image", "video", "audio"), ("id", "index")
    ids = {config.get(f"{kind}_token_{suffix}") for kind in kinds for suffix in suffixes}
    return sorted(ids - {None})

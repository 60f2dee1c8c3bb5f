# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The model families that CPPOTrainer trains: [`FAMILIES`], a row for each. docs/families.md says how to add one.

What can be asked of model, processor or tokenizer is asked there; a row says what cannot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image
from transformers import Idefics2Processor, PreTrainedModel, ProcessorMixin
from transformers.image_utils import load_image

from ..method.views import to_rgb, to_unconverted_rgb

Weight = tuple[str, torch.Tensor]  # of a model, with its name
UNTESTED = "it was not tested"


def _as_in_memory(name: str, weight: torch.Tensor) -> Weight:
    return name, weight


def _in_a_vision_model(name: str, weight: torch.Tensor) -> Weight:
    return name.replace("vision_tower.", "vision_tower.vision_model."), weight


def _experts_transposed(name: str, weight: torch.Tensor) -> Weight:
    is_packed = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    return name, weight.transpose(1, 2) if is_packed else weight


@dataclass(frozen=True)
class Family:
    """
    What is particular to a family. What was not tested is refused by default.

    Attributes:
        pixels_by_row (`bool`): its pixels have one entry a row, padded to the row with the most images, not one or more an image.
        processor_that_loads (`type`, *optional*): of its processor, if that loads images as it does paths: upright, and without
            transparency but for a colour that a file declares.
        mrope (`bool`): its positions are multimodal rotary ones, which the model's `get_rope_index` counts.
        unpackable (`str`, *optional*): why its rollouts cannot share a prefix; `None`: they can, by a test that packed scores and
            gradients equal the unpacked ones.
        vision_tower, language_model (`str`): where these parts are, by the names of modules; the output head is the latter's too.
        projector (`tuple[str, ...]`): where the part between them is, by names of modules or parameters; it may lie in the vision tower.
        as_vllm_reads (`Callable`): makes of a weight's name in memory, and the weight, those of its checkpoints.
        no_vllm (`str`, *optional*): why vLLM (0.27 to 0.30) does not sample it; `None`: it does. docs/distributed.md has what was
            checked.
        no_vllm_server (`str`, *optional*): why its server does not.
        no_vllm_on_cpus (`str`, *optional*): why it does not on CPUs, where alone we could see whether it agrees.
    """

    pixels_by_row: bool = False
    processor_that_loads: type[ProcessorMixin] | None = None
    mrope: bool = False
    unpackable: str | None = UNTESTED
    vision_tower: str = "model.vision_tower"
    projector: tuple[str, ...] = ("model.multi_modal_projector",)
    language_model: str = "model.language_model"
    as_vllm_reads: Callable[[str, torch.Tensor], Weight] = _as_in_memory
    no_vllm: str | None = UNTESTED
    no_vllm_server: str | None = None
    no_vllm_on_cpus: str | None = None


_BOTH_WAYS = "its image tokens attend to each other in both directions"
_STATEFUL = "some of its layers carry a state from token to token, which a mask cannot cut between rollouts"
_UNLOADABLE = "vLLM's model needs PixtralRotaryEmbedding, which transformers has no more since 5.23"
_ONE_WAY = "on a CPU, vLLM's image tokens do not attend to those behind them, as the model's must"
_HYBRID = "on a CPU, vLLM's hybrids of attention and recurrence give other log-probabilities than transformers, without images too"
_SEVERAL_RUNS = "the tokens of one image are several runs, which TRL's client takes for several images"

_QWEN = {"vision_tower": "model.visual", "projector": ("model.visual.merger",)}
_QWEN3_VL = {
    "vision_tower": "model.visual",
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
}
_IDEFICS = {
    "vision_tower": "model.vision_model",
    "projector": ("model.connector",),
    "language_model": "model.text_model",
}
_NEWLINES = {
    "projector": ("model.multi_modal_projector", "model.image_newline")
}  # a vector behind each row of image tokens

# By `config.model_type`.
FAMILIES = {
    "gemma3": Family(
        unpackable=_BOTH_WAYS, as_vllm_reads=_in_a_vision_model, no_vllm=None, no_vllm_on_cpus=_ONE_WAY
    ),
    "gemma4": Family(projector=("model.embed_vision",), unpackable=_BOTH_WAYS, no_vllm=None, no_vllm_on_cpus=_ONE_WAY),
    "glm4v": Family(**_QWEN, mrope=True, unpackable=None),
    "idefics2": Family(**_IDEFICS,
        pixels_by_row=True, processor_that_loads=Idefics2Processor, unpackable=None, no_vllm="vLLM has no such model"
    ),
    "idefics3": Family(**_IDEFICS, pixels_by_row=True, unpackable=None, no_vllm=None, no_vllm_server=_SEVERAL_RUNS),
    "internvl": Family(unpackable=None, no_vllm=None),
    "lfm2_vl": Family(
        unpackable=_STATEFUL, as_vllm_reads=_in_a_vision_model, no_vllm=None, no_vllm_server=_SEVERAL_RUNS,
        no_vllm_on_cpus=_HYBRID,
    ),
    "llava": Family(unpackable=None, no_vllm=_UNLOADABLE),
    "llava_next": Family(**_NEWLINES, unpackable=None, no_vllm=_UNLOADABLE),
    "llava_onevision": Family(**_NEWLINES, unpackable=None, no_vllm=_UNLOADABLE),
    "paligemma": Family(unpackable="its whole prompt attends in both directions", no_vllm=_UNLOADABLE),
    "qwen2_5_vl": Family(**_QWEN, mrope=True, unpackable=None, no_vllm=None),
    "qwen2_vl": Family(**_QWEN, mrope=True, unpackable=None, no_vllm=None),
    "qwen3_5": Family(**_QWEN, unpackable=_STATEFUL, no_vllm=None, no_vllm_on_cpus=_HYBRID),
    "qwen3_5_moe": Family(**_QWEN, unpackable=_STATEFUL, no_vllm=None, no_vllm_on_cpus=_HYBRID),
    "qwen3_vl": Family(**_QWEN3_VL, mrope=True, unpackable=None, no_vllm=None),
    "qwen3_vl_moe": Family(**_QWEN3_VL, mrope=True, unpackable=None, as_vllm_reads=_experts_transposed, no_vllm=None),
    "smolvlm": Family(**_IDEFICS, pixels_by_row=True, unpackable=None, no_vllm=None, no_vllm_server=_SEVERAL_RUNS),
}  # fmt: skip
# Text models behind which rollouts can share a prefix, by the text configuration's `model_type`.
PACKABLE_TEXT_MODELS = (
    "llama", "mistral", "qwen2", "qwen3", *(f"{name}_text" for name, family in FAMILIES.items() if family.mrope),
)  # fmt: skip


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
        self.pixels_by_row = family_named(model.config.model_type).pixels_by_row
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
    loading = tuple(family.processor_that_loads for family in FAMILIES.values() if family.processor_that_loads)

    def read(image: Image.Image | str) -> Image.Image:
        if isinstance(processor, loading):
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


def family_named(model_type: str) -> Family:
    """The row of a model type; a `ValueError` if there is none."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"CPPOTrainer does not recognise the model type {model_type!r}, so it cannot tell which pixels belong to "
            f"which row. Known model types: {', '.join(FAMILIES)}. Use GRPOTrainer for other families."
        )
    return FAMILIES[model_type]


def family_of(model: PreTrainedModel) -> Family:
    """The row of a model's family, which [`ViewProcessor`] knows."""
    return FAMILIES[model.config.model_type]


def mrope_index(model: PreTrainedModel) -> Callable | None:
    """The model's function of multimodal rotary positions, or `None` where it has none."""
    # Asked at each scoring: accelerate's own question parses the metadata of three packages, 1.3 ms.
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    return base.model.get_rope_index if family_of(base).mrope else None


def vllm_obstacle(name: str, mode: str, device: str) -> str | None:
    """Why a family is not sampled by vLLM in this `vllm_mode` beside training on this kind of device; `None` if it is."""
    if name not in FAMILIES:
        return "this model type is not known to CPPOTrainer"
    family = FAMILIES[name]
    on_server = family.no_vllm_server if mode == "server" else None
    return family.no_vllm or on_server or (family.no_vllm_on_cpus if device == "cpu" else None)


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

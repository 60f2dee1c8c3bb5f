# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""All that a model card is made from. The trainer fills it in; what writes the card sees neither trainer nor model."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from transformers import TrainerState

from ...config import CPPOConfig
from ...method.image_size import limit_pixels
from .sources import BaseModel


@dataclass(frozen=True)
class CardExample:
    """
    An image and a question that the card's quick start shows. The image is saved beside the card, so choose one that
    may be published.

    Args:
        image (`PIL.Image.Image`): to ask about.
        question (`str`): what is asked.
        solution (`str`, *optional*): the right answer.
    """

    image: Image.Image
    question: str
    solution: str | None = None

    def as_seen(
        self, max_pixels: int | None, min_pixels: int | None, to_rgb: Callable[[Image.Image], Image.Image]
    ) -> "CardExample":
        """The example with its image as the model sees it: RGB, within these limits of [`limit_pixels`]."""
        return replace(self, image=to_rgb(limit_pixels(self.image, max_pixels, min_pixels, to_rgb)))


@dataclass(frozen=True)
class Hardware:
    """
    What the model was trained on.

    Args:
        device (`str`): the name of the GPU, or the CPU with the number of its threads.
        num_processes (`int`): of all machines.
        distributed (`str`): how several processes share the work; Accelerate's name.
        mixed_precision (`str`): `"no"`, `"fp16"`, `"bf16"` or `"fp8"`.
    """

    device: str
    num_processes: int
    distributed: str
    mixed_precision: str

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Hardware":
        threads = torch.get_num_threads()
        device = f"CPU ({threads} thread{'s' if threads > 1 else ''})"
        if accelerator.device.type == "cuda":
            device = torch.cuda.get_device_name(accelerator.device)
        distributed = accelerator.distributed_type.value
        return cls(device, accelerator.num_processes, distributed, accelerator.mixed_precision)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """
    What a card says of a model. Names, ids and questions are as others wrote them: whoever shows them escapes them.

    Args:
        args ([`CPPOConfig`]): the settings of the training.
        state (`TrainerState`): how far it came, and what it logged.
        trl_card (`ModelCard`): TRL's own card, for its tags and the badges of its trackers.
        paper (`dict[str, str]`): `title`, `id` on arXiv and `citation` (BibTeX) of the method with the CPL.
        base ([`~trl_cppo.run.card.sources.BaseModel`]): where training began.
        dataset (`str`, *optional*): Hub id of the training data.
        local_data (`str`, *optional*): the name of its folder, where it has no such id.
        num_rows (`int`, *optional*): of the training data; of a stream they are not known.
        is_adapter (`bool`): whether a PEFT adapter was trained, and not a whole model.
        rounded_by_default (`bool`): whether `from_pretrained` may round some of the saved weights.
        hub_model_id (`str`, *optional*): the repository, once it exists; before that `args.hub_model_id` may name it.
        example ([`CardExample`], *optional*): what the quick start asks, with the image as the model sees it.
        held_out (`list[CardExample]`): what the log's `held_out_answers` answer, with solutions, as of
            [`~trl_cppo.digits.HeldOutAccuracy`]; likewise as seen. Empty, no answer is shown.
        rewards (`list[tuple[str, float]]`): name and weight of each reward function.
        preserving (`list[str]`): names of the information-preserving views.
        removing (`list[str]`): names of the information-removing views.
        hardware ([`Hardware`]): what it was trained on.
        uses_deepspeed (`bool`): whether DeepSpeed took part.
        weights_time (`float`): when the weights last changed, in seconds of the epoch; an older evaluation is of others.
    """

    args: CPPOConfig
    state: TrainerState
    trl_card: ModelCard
    paper: dict[str, str]
    base: BaseModel
    dataset: str | None
    local_data: str | None
    num_rows: int | None
    is_adapter: bool
    rounded_by_default: bool
    hub_model_id: str | None
    example: CardExample | None
    held_out: list[CardExample]
    rewards: list[tuple[str, float]]
    preserving: list[str]
    removing: list[str]
    hardware: Hardware
    uses_deepspeed: bool
    weights_time: float

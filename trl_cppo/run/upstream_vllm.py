# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Repairs of what lies between TRL and vLLM where prompts hold images. Delete each once it is mended upstream."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trl.trainer.grpo_trainer as grpo_module
from PIL import Image
from transformers.utils import logging
from trl.generation.vllm_generation import VLLMGeneration

from ..scoring.families import family_of, rgb_reader, vllm_obstacle

logger = logging.get_logger(__name__)


class RepairedVLLMGeneration(VLLMGeneration):
    """
    VLLMGeneration without the faults that the methods below name (trl 1.15 and 1.16, vllm 0.27 to 0.30).

    Raises:
        `ValueError`: for a model family whose prompts vLLM does not get as the trainer scores them.
    """

    def _init_vllm(self):
        family = self.model.config.model_type
        obstacle = vllm_obstacle(family, self.mode, self.accelerator.device.type)
        if obstacle is not None:  # before the engine starts, which takes minutes
            raise ValueError(
                f"use_vllm=True with vllm_mode={self.mode!r} is not supported for {family}: {obstacle}. Sample with "
                "transformers (use_vllm=False)."
            )
        doubt = family_of(self.model).no_vllm_on_cpus
        if doubt is not None:
            logger.warning(
                f"vLLM was not checked on GPUs for {family}, and on CPUs it is not right: {doubt}. The run stops before its "
                "first step if vLLM's log-probabilities are not the trainer's."
            )
        super()._init_vllm()
        if self.mode == "colocate" and self.llm.renderer.mm_processor is not None:
            keep_expanded_prompts(self.llm.renderer.mm_processor)

    def _iter_named_params(self):
        # vLLM reads weights as they are in a checkpoint, which for some families is not as they are in memory.
        family = family_of(self.model)
        for name, weight in super()._iter_named_params():
            yield family.as_vllm_reads(name, weight)

    def sync_weights(self):
        super().sync_weights()
        # vLLM keeps what the vision tower made of each image, and would answer with the old tower's features when an
        # image comes back (TRL issue 7198).
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()
        elif self.accelerator.is_main_process:
            client = self.vllm_client
            client.session.post(f"{client.base_url}/reset_encoder_cache").raise_for_status()

    def generate(self, prompts: list[list[int]], images: list[list[Any] | None] | None, *args, **kwargs) -> tuple:
        if images is not None:
            # A server decodes otherwise than the trainer's processor: turned upright, transparency on black or white.
            to_rgb = rgb_reader(self.processing_class)
            images = [[bare(to_rgb(image)) for image in row or []] or None for row in images]
            images = images if any(images) else None
        return super().generate(prompts, images, *args, **kwargs)


@contextmanager
def repaired_vllm() -> Iterator[None]:
    """While this is open, GRPOTrainer's constructor makes a [`RepairedVLLMGeneration`]."""
    made = grpo_module.VLLMGeneration
    grpo_module.VLLMGeneration = RepairedVLLMGeneration
    try:
        yield
    finally:
        grpo_module.VLLMGeneration = made


def keep_expanded_prompts(mm_processor: Any) -> None:
    """
    Let an engine take a prompt whose image tokens are expanded already as it is.

    TRL hands over the ids that the trainer scores, and vLLM expands their first image token again (TRL issue 6294): it
    samples behind another prompt than the trainer scores. Where the ids hold the very tokens that vLLM would make of each
    image, they are kept. Other prompts (TRL's own repair hands over one placeholder an image) are expanded by vLLM.

    Args:
        mm_processor (`vllm.multimodal.processing.BaseMultiModalProcessor`): the engine's; changed in place.

    Raises:
        `ImportError`: if vLLM's processors have not what is changed, as those of versions that were not tested.
    """
    if not (hasattr(mm_processor, "_apply_prompt_updates") and hasattr(mm_processor, "_find_mm_placeholders")):
        raise ImportError('this vLLM takes images in another way than was tested: pip install "trl-cppo[vllm]"')
    expand = type(mm_processor)._apply_prompt_updates.__get__(mm_processor)

    def keep_or_expand(token_ids: list[int], mm_prompt_updates: Any) -> tuple[list[int], Any]:
        found = mm_processor._find_mm_placeholders(token_ids, mm_prompt_updates)
        if not _is_whole(token_ids, found, mm_prompt_updates):
            token_ids, found = expand(token_ids, mm_prompt_updates)
            if not _is_whole(token_ids, found, mm_prompt_updates):
                raise ValueError(_disagreement(token_ids, mm_prompt_updates))
        return token_ids, found

    mm_processor._apply_prompt_updates = keep_or_expand


def _is_whole(token_ids: list[int], found: Any, mm_prompt_updates: Any) -> bool:
    """Whether each image has its tokens, and each image token an image: one too many would be left without features."""
    if any(len(found.get(modality, [])) != len(items) for modality, items in mm_prompt_updates.items()):
        return False
    places, embedded = set(), set()
    for placeholder in (one for items in found.values() for one in items):
        kept = [True] * placeholder.length if placeholder.is_embed is None else placeholder.is_embed.tolist()
        for offset, (token, is_feature) in enumerate(zip(placeholder.tokens, kept, strict=True)):
            if is_feature:
                embedded.add(token)
                places.add(placeholder.start_idx + offset)
    return all(place in places for place, token in enumerate(token_ids) if token in embedded)


def _disagreement(token_ids: list[int], mm_prompt_updates: Any) -> str:
    counts = [len(update.content.full) for items in mm_prompt_updates.values() for update, *_ in items]
    return (
        f"vLLM makes {counts} tokens of the images of a prompt, and the trainer's processor others: the prompt of "
        f"{len(token_ids)} tokens does not hold them. Both must see the same sizes: set max_pixels of CPPOConfig, not of the "
        "processor, and save a processor with settings of its own beside the model, where vLLM reads it."
    )


def bare(image: Image.Image) -> Image.Image:
    """An image without EXIF data or XMP: vLLM turns an image upright by them, which the trainer's processor does not."""
    if not image.info:
        return image
    image = image.copy()
    image.info = {}
    return image

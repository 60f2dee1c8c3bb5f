# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A micro-batch as GRPOTrainer's generation would make it, of equal rows, without a tokenizer.

Shapes: `B` rows of a micro-batch, `P` prompt tokens, `T` completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from ....method.request import ViewPair
from ....scoring.families import FAMILIES
from .images import ImageMaker, Sizes


@dataclass(frozen=True)
class Rollout:
    """A rollout of the plan: tokens of its prompt without those of images, its images, tokens of its completion."""

    text: int
    sizes: Sizes
    completion: int

    def __post_init__(self):
        least = len(self.sizes) + 1
        if self.text < least:
            raise ValueError(
                f"a prompt of {self.text} tokens of text and {len(self.sizes)} image(s) is too short: one before each image, and one "
                f"at the end, make {least}."
            )


@dataclass(frozen=True)
class MicroBatch:
    """
    Equal rows of one or several prompts.

    Attributes:
        prompts (`int`): how many.
        rollouts (`int`): of each prompt.
        gated (`int`): of these, how many have views.
        shared (`bool`): whether they are scored behind one copy of the prompt.
    """

    prompts: int
    rollouts: int
    gated: int = 0
    shared: bool = False

    @property
    def rows(self) -> int:
        """B."""
        return self.prompts * self.rollouts


def token_ids(config: PretrainedConfig) -> tuple[int, int]:
    """The id that stands for an image's features, and one of a word, which stands for nothing else."""
    settings = config.to_dict()
    image = settings.get("image_token_id", settings.get("image_token_index"))
    special = {
        value
        for part in (settings, settings["text_config"])
        for name, value in part.items()
        if "token_i" in name and isinstance(value, int)
    }
    return image, next(number for number in range(config.get_text_config().vocab_size) if number not in special)


def prompt_of(config: PretrainedConfig, rollout: Rollout, tokens_of: Callable[[Sizes], int]) -> torch.Tensor:
    """The `(P,)` ids of a prompt: a word before each image, the others behind all of them."""
    image, word = token_ids(config)
    images = [[word] + [image] * tokens_of((size,)) for size in rollout.sizes]
    return torch.tensor([*sum(images, []), *[word] * (rollout.text - len(rollout.sizes))])


def make_batch(
    config: PretrainedConfig, rollout: Rollout, prompt: torch.Tensor, micro: MicroBatch, images: ImageMaker
) -> dict[str, Any]:
    """The micro-batch, the first rollouts of each prompt with views. `prompt`: see [`prompt_of`]."""
    image, word = token_ids(config)
    rows, sizes = micro.rows, rollout.sizes
    gated = [number < micro.gated for number in range(micro.rollouts)] * micro.prompts
    completions = torch.full((rows, rollout.completion), word)
    batch = {
        "prompt_ids": prompt.repeat(rows, 1),
        "prompt_mask": torch.ones(rows, len(prompt), dtype=torch.long),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor([1.0 if has_views else -1.0 for has_views in gated]),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    if micro.gated:
        pairs = [ViewPair(sizes, sizes) for _ in range(micro.prompts)]  # the sizes of an image are its views'
        batch["cpl_views"] = [pairs[row // micro.rollouts] if gated[row] else None for row in range(rows)]
        batch["num_gated_rows"] = torch.tensor(sum(gated))
    if micro.shared:
        batch["prompt_keys"] = torch.arange(rows) // micro.rollouts
    if sizes:
        batch |= {"num_images": [len(sizes)] * rows, **images([sizes] * rows)}
        if images.tiles(sizes):
            batch["num_tiles"] = [images.tiles(sizes)] * rows
    if FAMILIES[config.model_type].mrope:
        kinds = (prompt == image).int().repeat(rows, 1)
        batch["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(completions).int()], dim=1)
    return batch

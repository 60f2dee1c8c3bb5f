# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a dry run tells: a rollout, its views, tokens, memory, time.

Shapes: `B` rollouts of a generation batch on one process, `P` prompt tokens, `T` completion tokens.
"""

import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...config import CPPOConfig
from ...method.request import ViewPair
from ...run.rows.checks import row_name
from ...scoring.families import placeholder_ids
from ...trainer import CPPOTrainer

GIB = 2**30
GAP = 8  # pixels between the images of the picture
SIDES = 224, 768  # shorter images are enlarged in it, longer ones reduced


@dataclass(frozen=True)
class Batch:
    """Of the generation batch, on one process."""

    rows: int
    gated: int
    with_images: int
    lengths: list[int]  # of the completions, tokens
    cut_off: int  # completions at the limit

    @classmethod
    def of(cls, batch: dict[str, Any], args: CPPOConfig) -> "Batch":
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        views, counts = batch.get("cpl_views") or [], batch.get("num_images") or []
        cut_off = sum(length >= args.max_completion_length for length in lengths)
        return cls(len(lengths), sum(pair is not None for pair in views), sum(map(bool, counts)), lengths, cut_off)


@dataclass(frozen=True)
class Rollout:
    """The one that is shown. `views` are those that it has, or would have if it were gated."""

    name: str
    prompt: str
    completion: str
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    rewards: dict[str, float]
    advantage: float
    is_gated: bool
    images: list[Image.Image]
    views: ViewPair | None

    @classmethod
    def of(
        cls,
        row: int,
        example: dict[str, Any],
        batch: dict[str, Any],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rewards: dict[str, float],
        images: list[Image.Image],
        views: ViewPair | None,
    ) -> "Rollout":
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
        of_images = set(placeholder_ids(model))
        # A placeholder stands for each of an image's tokens: one is enough to read.
        short = prompt[:1] + [token for before, token in pairwise(prompt) if token != before or token not in of_images]
        return cls(
            name=row_name(example, row),
            prompt=tokenizer.decode(short),
            completion=tokenizer.decode(completion),
            prompt_tokens=len(prompt),
            image_tokens=sum(token in of_images for token in prompt),
            completion_tokens=len(completion),
            rewards=rewards,
            advantage=batch["advantages"][row].item(),
            is_gated=(batch.get("cpl_views") or {row: None})[row] is not None,
            images=images,
            views=views,
        )


def page(
    trainer: CPPOTrainer,
    shown: Rollout,
    batch: Batch,
    picture: Path | None,
    peak: float,
    seconds: dict[str, float],
    losses: int,
) -> list[str]:
    """The lines of the whole. `peak` in bytes, of the fullest process; `losses` is the number of micro-batches."""
    args = trainer.args
    processes = trainer.accelerator.num_processes
    whose = f" on the main of {processes} processes" if processes > 1 else ""
    rewards = ", ".join(f"{name} {_reward(value)}" for name, value in shown.rewards.items())
    gate = "with views" if shown.is_gated else "without a contrastive loss"
    return [
        "",
        "Dry run: one generated batch, its losses and their gradients. No update was made, and no model, card or checkpoint written.",
        "",
        f"Prompt ({shown.name[0].lower()}{shown.name[1:]}):",
        _indented(shown.prompt),
        "Completion:",
        _indented(shown.completion),
        f"Rewards: {rewards} (weights {', '.join(f'{weight:.4g}' for weight in trainer.reward_weights.tolist())}); "
        f"advantage {shown.advantage:+.2f}: {gate}.",
        _views_line(shown, picture, args.cpl_coef),
        f"Tokens: prompt {shown.prompt_tokens:,}, of them {shown.image_tokens:,} of images; completion {shown.completion_tokens:,} of at "
        f"most {args.max_completion_length:,}.",
        f"Batch: {batch.rows} rollouts{whose}, {args.num_generations} a prompt, {batch.with_images} with images, {batch.gated} with views; "
        f"{losses} {'micro-batch' if losses == 1 else 'micro-batches'} of {args.per_device_train_batch_size} rows; completions of {min(batch.lengths)} to {max(batch.lengths)} "
        f"tokens, mean {sum(batch.lengths) / batch.rows:.0f}, {batch.cut_off} at the limit.",
        *_memory_lines(trainer, batch, peak),
        f"Time: generation {seconds['generation']:.1f} s, rewards {seconds['rewards']:.1f} s, the rest before the update (views, old "
        f"policy, reference) {seconds['batch']:.1f} s, losses and gradients {seconds['losses']:.1f} s. A first batch is slower than "
        "later ones.",
        "To train, the same command without --dry_run.",
    ]


def _reward(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4g}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines()) or "    (empty)"


def _views_line(shown: Rollout, picture: Path | None, cpl_coef: float) -> str:
    if picture is None:
        return f"Views: none, {'with cpl_coef=0' if cpl_coef == 0 else 'for no rollout here has an image'}."
    gated = "" if shown.is_gated else " that this rollout would have had, were its reward above its group's mean"
    return f"Views{gated}: {picture} (a row an image: as it is, information-preserving, information-removing)."


def _memory_lines(trainer: CPPOTrainer, batch: Batch, peak: float) -> list[str]:
    device = trainer.accelerator.device
    process = "the process" if trainer.accelerator.num_processes == 1 else "the process with the most"
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        lines = [f"Peak so far: {_size(peak)} of {_size(whole)}, as CUDA's allocator gave them out to {process}."]
    else:
        lines = [f"Peak so far: {_size(peak)} of resident memory of {process}; there is no GPU."]
    if not (
        trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    ):  # whose parameters say nothing of a device's share
        trained = [value for value in trainer.model.parameters() if value.requires_grad]
        moments = 2 * sum(value.numel() * value.element_size() for value in trained)
        lines.append(f"  The first update adds the optimizer's states, {_size(moments)} if it is AdamW.")
    if trainer.args.cpl_coef != 0 and not batch.gated:
        lines.append(
            "  No rollout had views, so it is GRPO's peak: with views there will be more (`trl-cppo plan` counts the most)."
        )
    return lines


def _size(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.1f} MiB"


def peak_bytes(device: torch.device) -> int:
    """On a GPU what CUDA's allocator gave out at once, else the most resident memory of the process; so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def save_picture(path: Path, images: list[Image.Image], views: ViewPair) -> None:
    """A row an image: the image and its two views, at a size that can be looked at."""
    rows = [list(map(_at_a_good_size, row)) for row in zip(images, views.preserved, views.removed, strict=True)]
    heights = [row[0].height for row in rows]  # a view has its image's size
    size = max(3 * row[0].width for row in rows) + 2 * GAP, sum(heights) + GAP * (len(rows) - 1)
    picture = Image.new("RGB", size, "white")
    for place, row in enumerate(rows):
        top = sum(heights[:place]) + GAP * place
        for column, image in enumerate(row):
            picture.paste(image, (column * (image.width + GAP), top))
    picture.save(path)


def _at_a_good_size(image: Image.Image) -> Image.Image:
    least, most = SIDES
    longest = max(image.size)
    if longest < least:
        return image.resize([-(-least // longest) * side for side in image.size], Image.Resampling.NEAREST)
    scale = min(1, most / longest)
    return image.resize([max(1, round(scale * side)) for side in image.size])

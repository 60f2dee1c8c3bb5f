# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPOTrainer's update of a model of any size, run on tensors that have a shape and no data.

Shapes: `B` rows, `P` prompt tokens, `T` completion tokens.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from trl_cppo.commands.plan.counts.counting import Counts, count
from trl_cppo.commands.plan.counts.meta_mode import ShapesOnly, head_of_a_gpu, kernels_of_a_gpu
from trl_cppo.commands.plan.counts.update import believed_prompts, no_collection, toy_trainer
from trl_cppo.method.request import ViewPair

from .counting import score_views_apart

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Row:
    """One rollout: prompt tokens without those of the image, 14-pixel patches of its image, completion tokens."""

    text: int
    patches: int
    completion: int


@dataclass(frozen=True)
class Depth:
    """Layers of the text model; blocks of the vision tower that see a window, and that see the whole image."""

    text: int
    windowed: int
    full: int


def load_config(name: str) -> Qwen2_5_VLConfig:
    """A model of `configs/`, whose values are those of the Hub's repository of that name."""
    return Qwen2_5_VLConfig.from_dict(json.loads((CONFIGS / f"{name}.json").read_text()))


def with_depth(config: Qwen2_5_VLConfig, depth: Depth) -> Qwen2_5_VLConfig:
    """The same model with other numbers of layers, the windowed blocks before the full ones."""
    changed, blocks = config.to_dict(), depth.windowed + depth.full
    changed["text_config"].update(num_hidden_layers=depth.text, layer_types=["full_attention"] * depth.text)
    changed["vision_config"].update(depth=blocks, fullatt_block_indexes=list(range(depth.windowed, blocks)))
    return Qwen2_5_VLConfig.from_dict(changed)


def shrink(config: Qwen2_5_VLConfig, depth: Depth, text: dict[str, int], vision: dict[str, int]) -> Qwen2_5_VLConfig:
    """A narrower model with other settings of its text and vision models, and special tokens within a small vocabulary."""
    changed = with_depth(config, depth).to_dict()
    quarter = text["hidden_size"] // text["num_attention_heads"] // 8  # of half a head, which the sections fill
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2]}
    changed["text_config"].update(**text, rope_parameters=rope, bos_token_id=1, eos_token_id=2)
    changed["vision_config"].update(**vision, out_hidden_size=text["hidden_size"])
    ids = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
    return Qwen2_5_VLConfig.from_dict({**changed, **ids})


def depth_of(config: Qwen2_5_VLConfig) -> Depth:
    full = len(config.vision_config.fullatt_block_indexes)
    return Depth(config.text_config.num_hidden_layers, config.vision_config.depth - full, full)


def count_parameters(config: Qwen2_5_VLConfig) -> int:
    return sum(parameter.numel() for parameter in build_model(config, "meta", torch.bfloat16).parameters())


def build_model(config: Qwen2_5_VLConfig, device: str, dtype: torch.dtype) -> Any:
    """The model with TRL's fused head, in training mode."""
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))  # as GRPOTrainer does
    return model.train()


def grid_of(patches: int) -> tuple[int, int, int]:
    """The squarest grid of so many patches with even sides: time, height, width."""
    sides = [side for side in range(2, math.isqrt(patches) + 1, 2) if patches % (2 * side) == 0]
    if not sides:
        raise ValueError(f"{patches} patches make no image: both sides must be even.")
    return 1, sides[-1], patches // sides[-1]


class _Grids:
    """Stands for the image processor: an image is its grid of patches here, and its pixels have no data."""

    pixels_by_row = False

    def __init__(self, device: str, values: int):
        self.device, self.values = device, values

    def __call__(self, images: list[list[tuple[int, int, int]]]) -> dict[str, torch.Tensor]:
        grids = torch.tensor([grid for row in images for grid in row])
        patches = int(grids.prod(dim=1).sum())
        return {"pixel_values": torch.zeros(patches, self.values, device=self.device), "image_grid_thw": grids}


def make_batch(config: Qwen2_5_VLConfig, rows: list[Row], gated: int, process: _Grids) -> dict[str, Any]:
    """
    What GRPOTrainer's generation makes of some rows, padded to the longest, the first `gated` of them with views.

    Prompts are padded on the left to P, completions on the right to T.
    """
    images = [[grid_of(row.patches)] for row in rows]
    merged = config.vision_config.spatial_merge_size**2
    prompts = [row.text + row.patches // merged for row in rows]
    prompt_places, completion_places = torch.arange(max(prompts)), torch.arange(max(row.completion for row in rows))
    prompt_mask = torch.stack([prompt_places >= max(prompts) - length for length in prompts])
    texts = torch.tensor([[max(prompts) - row.text] for row in rows])
    is_image = prompt_mask & (prompt_places < texts)  # before the text
    completion_mask = torch.stack([completion_places < row.completion for row in rows])
    batch = {
        "prompt_ids": torch.where(is_image, config.image_token_id, 1),
        "prompt_mask": prompt_mask.long(),
        "completion_ids": torch.ones_like(completion_mask, dtype=torch.long),
        "completion_mask": completion_mask.long(),
        "advantages": torch.tensor([1.0] * gated + [-1.0] * (len(rows) - gated)),
        "num_items_in_batch": completion_mask.sum(),
        "num_images": [1] * len(rows),
        "mm_token_type_ids": torch.cat([is_image.int(), torch.zeros_like(completion_mask, dtype=torch.int)], dim=1),
        **process(images),
    }
    pairs = [ViewPair(row_images, row_images) for row_images in images]  # the grids of an image are its views'
    batch["cpl_views"] = [pair if place < gated else None for place, pair in enumerate(pairs)]
    batch["num_gated_rows"] = torch.tensor(gated)
    return batch


class ShapeBench:
    """
    Counts updates of models whose weights have a shape and no data.

    Args:
        device (`str`): of weights and pixels, `"meta"`; `"cpu"` runs the same on real tensors, for comparison.
        dtype (`torch.dtype`): of the weights. No autocast: DeepSpeed trains bf16 weights.
    """

    def __init__(self, device: str = "meta", dtype: torch.dtype = torch.bfloat16):
        self.device, self.dtype = device, dtype
        self.trainer = toy_trainer()

    def update(
        self, config: Qwen2_5_VLConfig, rows: list[Row], gated: int, arm: str = "cppo", checkpointing: bool = False
    ) -> "ShapeCounts":
        """
        Count one update of a model.

        Args:
            rows (`list[Row]`): the micro-batch, padded as TRL pads it.
            gated (`int`): how many of the rows, from the first, have views.
            arm (`str`): `"grpo"`, `"cppo"`, `"cppo_kl"` (the exact KL), `"cppo_shared"` (the rows are rollouts of one prompt
                and share its prefix; `"cppo_shared_kl"`) or `"every_row"` (three forwards of all rows).
            checkpointing (`bool`): the blocks keep their inputs alone and are run again in the backward.
        """
        model = build_model(config, self.device, self.dtype)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = self.loss_of(model, rows, gated, arm)
        if self.device != "meta":
            with head_of_a_gpu():
                return ShapeCounts(**asdict(count(model, loss)), peaks={})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        known = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
        mode = ShapesOnly(known)
        _mark_phases(model, mode)
        with kernels_of_a_gpu(), believed_prompts(), no_collection():
            counts = count(model, loss, mode)
        return ShapeCounts(**asdict(counts), peaks=mode.peaks)

    def loss_of(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        rows: list[Row],
        gated: int,
        arm: str,
        group: int | None = None,
    ) -> Callable[[], torch.Tensor]:
        """
        What computes the loss of a micro-batch, see [`update`], on a model of [`build_model`]. Each `group` of rows is of one
        prompt, or all.
        """
        process = _Grids(self.device, _pixel_values(model.config))
        batch = make_batch(model.config, rows, gated, process)
        if arm.startswith("cppo_shared"):
            batch["prompt_keys"] = torch.arange(len(rows)) // (group or len(rows))
            self.trainer.shared_prefix.attach(model)
        plain = {key: value for key, value in batch.items() if key not in ("cpl_views", "num_gated_rows")}

        def loss() -> torch.Tensor:
            self.trainer.view_processor = process
            self.trainer.args.cpl_divergence = "kl" if arm.endswith("_kl") else "k3"
            value = self.trainer.compute_loss(model, batch if arm.startswith("cppo") else plain)
            if arm == "every_row":
                value = value + score_views_apart(self.trainer, model, batch, [batch["pixel_values"].clone()] * 2)
            return value

        return loss

    def deep_update(self, config: Qwen2_5_VLConfig, *args: Any, **kwargs: Any) -> "DeepCounts":
        """[`update`] from counts of models of one or two layers of each kind: every layer costs the same."""
        one_each = {"text": 1, "windowed": 1, "full": 1}
        shallow = self.update(with_depth(config, Depth(**one_each)), *args, **kwargs)
        flops, saved_bytes, peaks, part_flops = shallow.flops, shallow.saved_bytes, dict(shallow.peaks), {}
        for kind, layers in asdict(depth_of(config)).items():
            deeper = self.update(with_depth(config, Depth(**one_each | {kind: 2})), *args, **kwargs)
            flops += (layers - 1) * (deeper.flops - shallow.flops)
            saved_bytes += (layers - 1) * (deeper.saved_bytes - shallow.saved_bytes)
            for phase in peaks:
                peaks[phase] += (layers - 1) * (deeper.peaks[phase] - shallow.peaks[phase])
            part_flops[kind] = layers * (deeper.flops - shallow.flops)
        vision_flops = part_flops["windowed"] + part_flops["full"]
        return DeepCounts(flops, saved_bytes, shallow.forwards, max(peaks.values()), part_flops["text"], vision_flops)


@dataclass(frozen=True)
class ShapeCounts(Counts):
    """
    Attributes:
        peaks (`dict[str, int]`): the most bytes that activations, their gradients and temporary tensors take at once, of
            each phase (see `_mark_phases`); weights and their gradients are left out. Empty where it was not watched.
    """

    peaks: dict[str, int]


@dataclass(frozen=True)
class DeepCounts(Counts):
    """
    Attributes:
        peak_bytes (`int`): the largest of the phases' peaks.
        text_flops (`int`): of the text model's layers.
        vision_flops (`int`): of the vision tower's blocks.
    """

    peak_bytes: int
    text_flops: int
    vision_flops: int


def _mark_phases(model: Any, mode: ShapesOnly) -> None:
    """In each phase the peak grows by the same amount with each layer, but not in the same measure."""

    def enter(phase: str) -> Callable[..., None]:
        return lambda *_: setattr(mode, "phase", phase)

    mode.phase = "forward and head"
    model.model.language_model.norm.register_full_backward_pre_hook(enter("backward of text layers"))
    model.model.visual.merger.register_full_backward_pre_hook(enter("backward of vision"))


def _pixel_values(config: Qwen2_5_VLConfig) -> int:
    vision = config.vision_config
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPOTrainer's update of a model of any size, run on tensors that have a shape and no data.

Shapes: `B` rows, `P` prompt tokens, `T` completion tokens.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from counting import Counts, count, score_views_apart
from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.view_batch import ViewPair

CONFIGS = Path(__file__).parent / "configs"
aten = torch.ops.aten
_META = torch.device("meta")


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


class _ShapesOnly(TorchDispatchMode):
    """
    Computes with real tensors where it can and with meta tensors elsewhere.

    Token ids, masks and grids stay real, for the model cuts its tensors by their values; whatever meets a meta tensor
    becomes one. What is read from a meta tensor is zero. A mask without data selects half of its places: more than the
    perception tokens are, which are half of those whose entropy rises.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kinds = {leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        if func is aten._to_copy.default:
            return self._copy(*args, **kwargs)
        if True not in kinds:
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return 0
        if func is aten.nonzero.default:
            return torch.empty(args[0].numel() // 2, args[0].dim(), dtype=torch.long, device=_META)
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
            args = (args[0], _places(args[1]), *args[2:])
        if kinds == {True, False}:
            args, kwargs = tree_map_only(torch.Tensor, _without_data, (args, kwargs))
        return func(*args, **kwargs)

    def _copy(self, tensor: torch.Tensor, *, device: torch.device | None = None, **kwargs: Any) -> torch.Tensor:
        if tensor.is_meta and device is not None and device != _META:
            return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
        return aten._to_copy.default(tensor, **kwargs)  # and real tensors stay real


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device=_META)


def _places(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks as the places that they select; a mask without data selects half of its places."""
    places: list[torch.Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool
        places += index.nonzero(as_tuple=True) if is_mask and not index.is_meta else [index]
        if is_mask and index.is_meta:
            places[-1:] = torch.empty(index.dim(), index.numel() // 2, dtype=torch.long, device=_META).unbind()
    return places


def _flash_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Attention by the fused kernel that real tensors would get; meta tensors get the unfused products."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -math.inf).to(query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """While this is open, TRL's fused head scores the completion tokens alone, as it does on a GPU."""
    with mock.patch.object(trl_utils, "_use_triton", lambda device: True):
        yield


@contextmanager
def shapes_only() -> Iterator[None]:
    """While this is open, a model on the meta device goes through CPPOTrainer's loss and its backward."""
    autocast = torch.is_autocast_enabled  # knows no meta device
    with (
        as_on_a_gpu(),
        mock.patch.object(torch, "is_autocast_enabled", lambda device="cuda": device != "meta" and autocast(device)),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _flash_attention),
        _ShapesOnly(),
    ):
        yield


def load_config(name: str) -> Qwen2_5_VLConfig:
    """A model of `configs/`, whose values are those of the Hub's repository of that name."""
    return Qwen2_5_VLConfig.from_dict(json.loads((CONFIGS / f"{name}.json").read_text()))


def with_depth(config: Qwen2_5_VLConfig, depth: Depth) -> Qwen2_5_VLConfig:
    """The same model with other numbers of layers, the windowed blocks before the full ones."""
    changed, blocks = config.to_dict(), depth.windowed + depth.full
    changed["text_config"].update(num_hidden_layers=depth.text, layer_types=["full_attention"] * depth.text)
    changed["vision_config"].update(depth=blocks, fullatt_block_indexes=list(range(depth.windowed, blocks)))
    return Qwen2_5_VLConfig.from_dict(changed)


def depth_of(config: Qwen2_5_VLConfig) -> Depth:
    full = len(config.vision_config.fullatt_block_indexes)
    return Depth(config.text_config.num_hidden_layers, config.vision_config.depth - full, full)


def count_parameters(config: Qwen2_5_VLConfig) -> int:
    return sum(parameter.numel() for parameter in _build_model(config, "meta", torch.bfloat16).parameters())


def _build_model(config: Qwen2_5_VLConfig, device: str, dtype: torch.dtype) -> Any:
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
    is_image = prompt_mask & torch.stack([prompt_places >= max(prompts) - row.patches // merged for row in rows])
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
        self.trainer = _build_trainer()

    def update(
        self, config: Qwen2_5_VLConfig, rows: list[Row], gated: int, arm: str = "cppo", checkpointing: bool = False
    ) -> Counts:
        """
        Count one update of a model.

        Args:
            rows (`list[Row]`): the micro-batch, padded as TRL pads it.
            gated (`int`): how many of the rows, from the first, have views.
            arm (`str`): `"grpo"`, `"cppo"`, `"cppo_kl"` (the exact KL) or `"every_row"` (three forwards of all rows).
            checkpointing (`bool`): the blocks keep their inputs alone and are run again in the backward.
        """
        process = _Grids(self.device, _pixel_values(config))
        self.trainer._process_views = process
        self.trainer.args.cpl_divergence = "kl" if arm == "cppo_kl" else "k3"
        model = _build_model(config, self.device, self.dtype)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        batch = make_batch(config, rows, gated, process)
        plain = {key: value for key, value in batch.items() if key not in ("cpl_views", "num_gated_rows")}

        def loss() -> torch.Tensor:
            value = self.trainer.compute_loss(model, batch if arm.startswith("cppo") else plain)
            if arm == "every_row":
                value = value + score_views_apart(self.trainer, model, batch, [batch["pixel_values"].clone()] * 2)
            return value

        with shapes_only() if self.device == "meta" else as_on_a_gpu():
            return count(model, loss)

    def deep_update(self, config: Qwen2_5_VLConfig, *args: Any, **kwargs: Any) -> "DeepCounts":
        """[`update`] from counts of models of one or two layers of each kind: every layer costs the same."""
        shallow = self.update(with_depth(config, Depth(**_ONE_EACH)), *args, **kwargs)
        depth, flops, saved_bytes = depth_of(config), {}, {}
        for kind in _ONE_EACH:
            deeper = self.update(with_depth(config, Depth(**_ONE_EACH | {kind: 2})), *args, **kwargs)
            flops[kind] = deeper.flops - shallow.flops
            saved_bytes[kind] = deeper.saved_bytes - shallow.saved_bytes
        more = {kind: getattr(depth, kind) - 1 for kind in _ONE_EACH}
        return DeepCounts(
            flops=shallow.flops + sum(more[kind] * flops[kind] for kind in more),
            saved_bytes=shallow.saved_bytes + sum(more[kind] * saved_bytes[kind] for kind in more),
            forwards=shallow.forwards,
            text_flops=depth.text * flops["text"],
            vision_flops=depth.windowed * flops["windowed"] + depth.full * flops["full"],
            block_bytes=max(saved_bytes.values()),
        )


_ONE_EACH = {"text": 1, "windowed": 1, "full": 1}


@dataclass(frozen=True)
class DeepCounts(Counts):
    """
    Attributes:
        text_flops (`int`): of the text model's layers.
        vision_flops (`int`): of the vision tower's blocks.
        block_bytes (`int`): kept by the largest layer or block of all.
    """

    text_flops: int
    vision_flops: int
    block_bytes: int


def _pixel_values(config: Qwen2_5_VLConfig) -> int:
    vision = config.vision_config
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def _build_trainer() -> CPPOTrainer:
    """A trainer whose own model is a toy: `compute_loss` is given the model."""
    with tempfile.TemporaryDirectory() as folder:
        args = CPPOConfig(folder, use_cpu=True, bf16=False, per_device_train_batch_size=8, report_to="none")
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": digits.task.PROMPT}]}]
        trainer = CPPOTrainer(
            model=digits.build_model(), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
            train_dataset=Dataset.from_list([{"prompt": message, "images": []}]),
            processing_class=digits.build_processor(),
        )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    return trainer

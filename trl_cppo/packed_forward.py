# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Giving a scoring forward what TRL has no argument for: the mask, the positions and the labels of packed rows.

Shapes: `R` packed rows of `L` tokens, `n` of them in one forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from .shared_prefix import PADDING, PREFIX, Packing, is_visible

MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")  # the implementations that take a mask of any form


class PackedForwards:
    """
    A hook that turns the forwards of a packed batch, which TRL calls as if its rows were plain ones.

    Args:
        attention (`str`): the attention implementation of the text model, one of `MASKED_ATTENTION`.
    """

    def __init__(self, attention: str):
        self._attention = attention
        self._packing: Packing | None = None

    def attach(self, model: PreTrainedModel) -> None:
        """Register the hook, after those of [`ImagelessForwards`]; only forwards with `fused_lm_head=True` are touched."""
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    @contextmanager
    def score(self, packing: Packing, positions: torch.Tensor, rows_at_once: int) -> Iterator[None]:
        """
        While this is open, the forwards are those of the packed rows, `rows_at_once` at a time and in their order.

        Args:
            positions (`torch.Tensor` of shape `(R, L)` or `(3, R, L)`): see [`packed_positions`].
        """
        self._packing, self._positions, self._rows_at_once, self._next = packing, positions, rows_at_once, 0
        try:
            yield
        finally:
            self._packing = self._positions = None

    def _before(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if self._packing is None or not kwargs.get("fused_lm_head"):
            return None
        rows = slice(self._next, min(self._next + self._rows_at_once, len(self._packing.rows)))
        self._next = rows.stop
        # ImagelessForwards may have appended a row that counts for nothing, and made room for it on the left.
        ids = kwargs["input_ids"]
        added, room = ids.size(0) - (rows.stop - rows.start), ids.size(1) - self._packing.segments.size(1)

        def fitted(tensor: torch.Tensor, value: int | bool) -> torch.Tensor:
            return F.pad(tensor, (room, 0, 0, added), value=value)

        segments = fitted(self._packing.segments[rows], PADDING)
        if added:
            segments[-added:] = torch.where(kwargs["attention_mask"][-added:] == 1, PREFIX, PADDING)
        labels = ids.masked_fill(~fitted(self._packing.labelled[rows], False), -100)
        positions = fitted(self._positions[..., rows, :], 0)
        return args, {**kwargs, "labels": labels, "position_ids": positions, "attention_mask": self._mask(segments)}

    def _mask(self, segments: torch.Tensor) -> Any:
        if self._attention == "flex_attention":
            return _block_mask(segments)
        visible = is_visible(segments)[:, None]
        if self._attention == "sdpa":
            return visible
        return torch.where(visible, 0.0, torch.finfo(torch.float32).min)  # eager attention adds it to the scores


def _block_mask(segments: torch.Tensor) -> BlockMask:
    """[`is_visible`] for FlexAttention, which skips the blocks of tokens that see nothing of each other."""

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same = (segments[row, key] == PREFIX) | (segments[row, key] == segments[row, query])
        return same & (key <= query)

    num_rows, length = segments.shape
    return create_block_mask(visible, B=num_rows, H=None, Q_LEN=length, KV_LEN=length, device=segments.device)

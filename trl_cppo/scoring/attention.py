# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Attention among packed prompts, and the forwards that use it.

A mask over the whole packed row would compute the square of its length. Here each prefix attends to itself, and the
segments of a prompt, as rows of a batch, to their prefix and themselves: fewer products than in rows of their own.

Shapes: `L` packed tokens, `D` of a head; one row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .packing import Packing

ATTENTION = "sdpa_among_packed_prompts"  # the name of `packed_attention` among transformers' implementations


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    transformers' `sdpa`, unless the mask is one of [`lengths_as_mask`]: then attention among packed prompts.

    Args:
        query, key, value (`torch.Tensor` of shape `(1, heads, L, D)`): key and value may have fewer heads.

    Returns:
        `torch.Tensor` of shape `(1, L, heads, D)`, and `None`.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    prompts = _lengths_of_mask(attention_mask)
    parts = [tensor.split([sum(lengths) for lengths in prompts], dim=2) for tensor in (query, key, value)]
    outputs = [
        _attend_prompt(module, *part, lengths, **kwargs) for *part, lengths in zip(*parts, prompts, strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _attend_prompt(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    **kwargs: Any,
) -> torch.Tensor:
    """Of one packed prompt, `(1, heads, tokens, D)`, with the lengths of its prefix and segments: `(1, tokens, heads, D)`."""
    prefix, *segments = lengths
    (prefix_query, queries), (prefix_key, keys), (prefix_value, values) = (
        (tensor[:, :, :prefix], _as_rows(tensor[:, :, prefix:], segments)) for tensor in (query, key, value)
    )
    outputs = []
    if prefix:  # none, where the prompt is one token
        outputs += sdpa_attention_forward(
            module, prefix_query, prefix_key, prefix_value, None, is_causal=True, **kwargs
        )[:1]
    longest = queries.size(2)
    seen = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
    shape = (len(segments), -1, -1, -1)
    of_segments, _ = sdpa_attention_forward(
        module, queries, torch.cat([prefix_key.expand(shape), keys], dim=2),
        torch.cat([prefix_value.expand(shape), values], dim=2), seen[None, None], **kwargs,
    )  # fmt: skip
    outputs += [row[None, :length] for row, length in zip(of_segments, segments, strict=True)]
    return torch.cat(outputs, dim=1)


def _as_rows(tensor: torch.Tensor, segments: list[int]) -> torch.Tensor:
    """`(1, heads, all segments, D)` as `(segments, heads, longest, D)`, padded at the end."""
    return pad_sequence(tensor[0].transpose(0, 1).split(segments), batch_first=True).transpose(1, 2)


def lengths_as_mask(lengths: list[list[int]]) -> torch.Tensor:
    """
    The lengths of packed prompts in a form that models hand on to their attention, also where checkpointing runs a layer
    again: four dimensions, as a mask that is ready. On the CPU, for its values are read. No mask is int64.
    """
    numbers = [number for prompt in lengths for number in (len(prompt), *prompt)]
    return torch.tensor(numbers).view(1, 1, 1, -1)


def _lengths_of_mask(mask: torch.Tensor) -> list[list[int]]:
    numbers, lengths = mask.flatten().tolist(), []
    while numbers:
        count = numbers[0]
        lengths.append(numbers[1 : 1 + count])
        numbers = numbers[1 + count :]
    return lengths


class PackedForwards:
    """A hook that turns the forwards of a packed row, which TRL calls as if it were a plain one."""

    def __init__(self):
        self._packing: Packing | None = None
        self._positions: torch.Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._bases: list[tuple[PreTrainedModel, str]] = []  # with the implementations that they had

    def attach(self, model: PreTrainedModel) -> None:
        """Let the text model, whose implementation is `sdpa`, use [`packed_attention`], and register the hook."""
        AttentionInterface.register(ATTENTION, packed_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        base = model.get_base_model() if is_peft_model(model) else model
        self._bases.append((base, base.config.get_text_config()._attn_implementation))
        base.set_attn_implementation({"text_config": ATTENTION})
        self._handles.append(model.register_forward_pre_hook(self._before, with_kwargs=True))

    def detach(self) -> None:
        """Leave the models as they were."""
        for base, implementation in self._bases:
            base.set_attn_implementation({"text_config": implementation})
        for handle in self._handles:
            handle.remove()
        self._bases, self._handles = [], []

    @contextmanager
    def score(self, packing: Packing, positions: torch.Tensor) -> Iterator[None]:
        """
        While this is open, a forward with `fused_lm_head=True` is that of the packed row.

        Args:
            packing ([`Packing`]): of the row.
            positions (`torch.Tensor` of shape `(1, L)` or `(3, 1, L)`): see [`packed_positions`].
        """
        self._packing, self._positions = packing, positions
        try:
            yield
        finally:
            self._packing = self._positions = None

    def _before(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if self._packing is None or not kwargs.get("fused_lm_head"):
            return None
        labels = kwargs["input_ids"].masked_fill(~self._packing.labelled, -100)
        mask = lengths_as_mask(self._packing.lengths)
        return args, {**kwargs, "labels": labels, "position_ids": self._positions, "attention_mask": mask}

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Attention among packed prompts, and the forwards that use it.

A mask over the whole packed row would compute the square of its length. Here the prefixes and the segments of a [`Layout`] are
sequences of a kernel for any lengths, or padded rows: fewer products than in rows of their own.

Shapes: `L` packed tokens, `H` heads, of which keys and values may have fewer, `D` of a head; one row.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .packing import Layout, Packing

# An argument since PyTorch 2.12. 2.11, which is older than we ask for but ran benchmarks/gpu, takes fewer heads of keys without it.
_HAS_ENABLE_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
LAYOUT = "packed_prompts"  # the keyword under which models hand a layout on to their attention


def attend_ragged(query, key, value, layout: Layout, scale: float | None) -> torch.Tensor:
    """By PyTorch's kernel for sequences of any lengths, which runs on CUDA in half precision. See [`attend_padded`]."""
    index, kind = layout.ragged, {"enable_gqa": query.size(1) != key.size(1)} if _HAS_ENABLE_GQA else {}
    return varlen_attn(
        query, _take(key, index.keys), _take(value, index.keys), index.query_ends, index.key_ends, index.longest_query,
        index.longest_key, scale=scale, window_size=(-1, 0), **kind,
    )  # fmt: skip


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scale: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    By PyTorch's attention of rows: one call for the prefixes, and one for the segments.

    Args:
        query, key, value (`torch.Tensor` of shape `(L, H, D)`): of the packed tokens.
        layout ([`Layout`]): which tokens see which.
        scale (`float`, *optional*): of the products; `None`: 1 / sqrt(D).

    Returns:
        `torch.Tensor` of shape `(L, H, D)`.
    """
    index, kind = layout.padded, {"dropout_p": dropout, "scale": scale, "enable_gqa": query.size(1) != key.size(1)}
    outputs = []
    if index.prefixes.size(1):
        rows = (_rows(tensor, index.prefixes) for tensor in (query, key, value))
        outputs.append(functional.scaled_dot_product_attention(*rows, is_causal=True, **kind))
    rows = [_rows(query, index.segments), _rows(key, index.segment_keys), _rows(value, index.segment_keys)]
    if repeats_heads(query):
        rows[1:] = [repeat_kv(tensor, query.size(1) // key.size(1)) for tensor in rows[1:]]
        kind["enable_gqa"] = False
    outputs.append(functional.scaled_dot_product_attention(*rows, attn_mask=layout.hidden(query.dtype), **kind))
    return _take(torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs]), index.outputs)


def repeats_heads(query: torch.Tensor) -> bool:
    """Whether, under a mask, the fused kernels for these queries want as many heads of keys: CUDA's do."""
    return query.device.type == "cuda"


def _rows(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return _take(tensor, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


class _Take(torch.autograd.Function):
    """Rows of a tensor by their places. The gradients of one that was taken for many segments are added in float32."""

    @staticmethod
    def forward(ctx, tensor, places):
        ctx.save_for_backward(places)
        ctx.length = tensor.size(0)
        return tensor.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient):
        (places,) = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.length, *gradient.shape[1:], dtype=dtype)
        return total.index_add_(0, places, gradient.to(dtype)).to(gradient.dtype), None


_take = _Take.apply


def takes_ragged(query: torch.Tensor) -> bool:
    """Whether PyTorch's kernel for sequences of any lengths takes these queries."""
    if query.device.type != "cuda" or torch.version.hip is not None or query.dtype not in (torch.half, torch.bfloat16):
        return False
    fits = query.size(-1) % 8 == 0 and query.size(-1) <= 256
    return fits and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """As PyTorch's attention takes it under autocast, where norms of queries and keys make float32 of them."""
    kind = tensor.device.type
    if tensor.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def _by_sdpa(module, query, key, value, layout: Layout, dropout=0.0, scaling=None, **kwargs) -> torch.Tensor:
    tensors = [_autocast(tensor)[0].transpose(0, 1) for tensor in (query, key, value)]
    if not dropout and takes_ragged(tensors[0]):
        return attend_ragged(*tensors, layout, scaling)[None]
    return attend_padded(*tensors, layout, scaling, dropout)[None]


def _by_flash(module, query, key, value, layout: Layout, **kwargs) -> torch.Tensor:
    index = layout.ragged
    key, value = (_take(tensor[0].transpose(0, 1), index.keys).transpose(0, 1)[None] for tensor in (key, value))
    lengths = {"max_length_q": index.longest_query, "max_length_k": index.longest_key}
    ends = {"cu_seq_lens_q": index.query_ends, "cu_seq_lens_k": index.key_ends}
    return flash_attention_forward(
        module, query, key, value, None, **{**kwargs, **ends, **lengths, "is_causal": True}
    )[0]


_ATTEND = {sdpa_attention_forward: _by_sdpa, flash_attention_forward: _by_flash}


def _among_packed_prompts(function: Callable, module, query, key, value, attention_mask, **kwargs):
    """An attention function of transformers, but for the forwards of packed rows: there, attention among packed prompts."""
    layout = kwargs.pop(LAYOUT, None)
    if not _is_packed(attention_mask):
        return function(module, query, key, value, attention_mask, **kwargs)
    if layout is None:
        raise RuntimeError(f"{type(module).__name__} was not given its model's arguments. Set share_prefix=False.")
    return _ATTEND[function](module, query, key, value, layout.on(query.device), **kwargs), None


def packed_mask(device: torch.device) -> torch.Tensor:
    """What stands for the mask of a packed row: of four dimensions, as one that is ready, for models not to make another. No mask is int64."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)


def _is_packed(mask: torch.Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.int64 and mask.dim() == 4


def keeps_prompts_apart(implementation: str) -> bool:
    """Whether rows can be packed under an attention implementation, by its name among transformers'."""
    return _original(implementation) in _ATTEND


def _original(implementation: str) -> Callable | None:
    """transformers' function, also while ours stands before it."""
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    is_ours = isinstance(function, partial) and function.func is _among_packed_prompts
    return function.args[0] if is_ours else function


class PackedForwards:
    """A hook that turns the forwards of a packed row, which TRL calls as if it were a plain one."""

    _users: Counter = Counter()  # how many models of this process are attached, by the name of their implementation

    def __init__(self):
        self._packing: Packing | None = None
        self._positions: torch.Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._names: list[str] = []

    def attach(self, model: PreTrainedModel) -> None:
        """Register the hook, and let the implementation of the text model's attention know packed rows; others pass through it."""
        base = model.get_base_model() if is_peft_model(model) else model
        name = base.config.get_text_config()._attn_implementation
        if not keeps_prompts_apart(name):
            raise ValueError(
                f"The attention implementation was changed to {name!r} after the trainer was made, which cannot keep rollouts apart. Set it "
                "before, or share_prefix=False."
            )
        AttentionInterface.register(name, partial(_among_packed_prompts, _original(name)))
        self._users[name] += 1
        self._names.append(name)
        self._handles.append(model.register_forward_pre_hook(self._before, with_kwargs=True))

    def detach(self) -> None:
        """Leave models and implementations as they were."""
        for name in self._names:
            self._users[name] -= 1
            if not self._users[name]:
                AttentionInterface.register(name, _original(name))
        for handle in self._handles:
            handle.remove()
        self._names, self._handles = [], []

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
        device = kwargs["input_ids"].device
        return args, {
            **kwargs,
            "labels": kwargs["input_ids"].masked_fill(~self._packing.labelled, -100),
            "position_ids": self._positions,
            "attention_mask": packed_mask(device),
            LAYOUT: Layout(self._packing.lengths, device),
        }

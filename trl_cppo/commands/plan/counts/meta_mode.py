# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Running a training step on tensors without data, as if on a GPU."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import finalize

import torch
import trl.trainer.utils as trl_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from trl.kernels import chunked_logprob

from .counting import FORMULAS

aten = torch.ops.aten
_META = torch.device("meta")


class ShapesOnly(TorchDispatchMode):
    """
    Computes with real tensors where it can and with meta tensors elsewhere.

    Token ids, masks and grids stay real, for the model cuts its tensors by their values; whatever meets a meta tensor
    becomes one. What is read from a meta tensor is zero. A mask without data selects half of its places: more than the
    perception tokens are, which are half of those whose entropy rises.

    Attributes:
        phase (`str`): what is running; the user sets it.
        peaks (`dict[str, int]`): of each phase, the most that all meta tensors made here took at once. `known` tensors do
            not count.
        flops (`int`): as `FlopCounterMode` counts, which cannot be used: it keeps what checkpointing computes again alive.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.flops = self.bytes = 0
        self.phase = ""
        self.peaks: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kinds = {tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))}
        if func is aten._to_copy.default:
            return self._watch(_copy(*args, **kwargs))
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
        result = _grouped_mm(*args) if func is aten._grouped_mm.default else func(*args, **kwargs)
        if func.overloadpacket in FORMULAS:
            self.flops += FORMULAS[func.overloadpacket](*args, **kwargs, out_val=result)
        return self._watch(result)

    def get_total_flops(self) -> int:
        return self.flops

    def _watch(self, result: Any) -> Any:
        for tensor in _tensors([result]):
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if tensor.is_meta and address not in self.alive:
                self.alive.add(address)
                self.bytes += size
                self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.bytes)
                finalize(storage, self._forget, address, size)
        return result

    def _forget(self, address: int, size: int) -> None:
        self.alive.discard(address)
        self.bytes -= size


def _copy(tensor: torch.Tensor, *, device: torch.device | None = None, **kwargs: Any) -> torch.Tensor:
    """What is read from a meta tensor is zero; real tensors stay real. SmolVLM moves embeddings to where the ids are: no reading."""
    if tensor.is_meta and not tensor.requires_grad and device is not None and device != _META:
        return torch.zeros(tensor.shape, dtype=kwargs.get("dtype") or tensor.dtype)
    return aten._to_copy.default(tensor, **kwargs)


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any) -> torch.Tensor:
    """The products of a mixture of experts; the operator's own function of shapes refuses float32."""
    groups = [len(offsets)] if a.dim() == b.dim() == 2 else []
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


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
def head_of_a_gpu() -> Iterator[None]:
    """While this is open, TRL's fused head scores the completion tokens alone, as it does on a GPU."""
    with mock.patch.object(trl_utils, "_use_triton", lambda device: True):
        yield


def _addmm(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`total += a @ b` without the float32 copies of a and b that the head makes where there is no GPU."""
    total.addmm_(total.new_empty(1, 1).expand(a.shape), total.new_empty(1, 1).expand(b.shape))


@contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """While this is open, tensors without data take the kernels that tensors on a GPU take."""
    autocast = torch.is_autocast_enabled  # knows no meta device
    with (
        head_of_a_gpu(),
        # A GPU's kernels work in the tile and make no tensors.
        mock.patch.object(chunked_logprob, "_forward_tile", lambda *args, **kwargs: None),
        mock.patch.object(chunked_logprob, "_backward_tile", lambda *args, **kwargs: None),
        mock.patch.object(chunked_logprob, "_addmm_fp32", _addmm),
        mock.patch.object(torch, "is_autocast_enabled", lambda device="cuda": device != "meta" and autocast(device)),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _flash_attention),
    ):
        yield

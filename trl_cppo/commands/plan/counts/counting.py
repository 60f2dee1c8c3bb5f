# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Exact counts of what an update costs: `count`, which the benchmarks use too."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import flop_counter

aten = torch.ops.aten

# The registry has the GPU's attention kernels and the out-of-place products alone.
_MORE = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: flop_counter.sdpa_flop_count(
        q, k, v
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, **kwargs: (
        flop_counter.sdpa_backward_flop_count(grad, q, k, v)
    ),
    aten._grouped_mm: lambda a, b, *args, **kwargs: (
        2 * math.prod(a) * b[-1]
    ),  # each row of one operand meets one expert
    aten.addmm_: lambda total, a, b, **kwargs: 2 * a[0] * a[1] * b[1],
}
FORMULAS = flop_counter.flop_registry | {name: flop_counter.shape_wrapper(formula) for name, formula in _MORE.items()}


@dataclass(frozen=True)
class Counts:
    """
    What one update, loss and backward, costs.

    Attributes:
        flops (`int`): of products, convolutions and attention, the latter in full squares, causal or not.
        saved_bytes (`int`): kept by autograd between forward and backward. A storage counts once, weights do not.
        forwards (`int`): of the model.
    """

    flops: int
    saved_bytes: int
    forwards: int


def flop_mode() -> flop_counter.FlopCounterMode:
    """A mode that counts the FLOPs of what runs under it, a CPU's attention among them."""
    return flop_counter.FlopCounterMode(display=False, custom_mapping=_MORE)


def count(model: torch.nn.Module, loss: Callable[[], torch.Tensor], counter: Any = None) -> Counts:
    """
    Run an update of the model once, the gradients left in its weights, and count.

    Args:
        counter (*optional*): a mode that counts FLOPs in place of [`flop_mode`], with its `get_total_flops()`.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages = {}  # by the address of the C++ object: tensors without data have no other

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    calls = []
    hook = model.register_forward_pre_hook(lambda module, args: calls.append(1))
    with counter or flop_mode() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss()
        saved_bytes = sum(storage.nbytes() for storage in storages.values())
        storages.clear()
        value.backward()
    hook.remove()
    return Counts(counter.get_total_flops(), saved_bytes, len(calls))

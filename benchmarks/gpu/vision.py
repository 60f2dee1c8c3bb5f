# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
Attention of Qwen2.5-VL's vision tower in one call a layer.

Under SDPA, transformers calls attention once a window of 8 x 8 patches, so that a GPU waits for the CPU; under FlashAttention it hands all
windows over at once. Here PyTorch's own kernel for sequences of any lengths does what FlashAttention, which need not be installed, would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "flash_by_torch"  # with "flash" in it, transformers hands over all windows at once


def one_by_one(query, key, value, ends, *others, scale: float) -> torch.Tensor:
    """What [`varlen_attn`] computes of sequences that attend to themselves, where there is no such kernel: on a CPU."""
    pieces = zip(
        *(tensor.transpose(0, 1).split(ends.diff().tolist(), dim=1) for tensor in (query, key, value)), strict=True
    )
    return torch.cat([scaled_dot_product_attention(*piece, scale=scale) for piece in pieces], dim=1).transpose(0, 1)


def attend_windows(
    module, query, key, value, attention_mask, *, scaling: float, cu_seq_lens_q: torch.Tensor, max_length_q: int,
    dropout: float, is_causal: bool, **kwargs: Any
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """An attention function of transformers: queries of shape `(1, H, L, D)`, the result `(1, L, H, D)`."""
    assert not dropout and not is_causal and attention_mask is None
    rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    ends, longest = cu_seq_lens_q.to(torch.int32), int(max_length_q)
    attend = varlen_attn if query.is_cuda else one_by_one
    return attend(*rows, ends, ends, longest, longest, scale=scaling)[None], None


AttentionInterface.register(NAME, attend_windows)


@contextmanager
def windows_at_once(model: PreTrainedModel) -> Iterator[None]:
    """While this is open, the model's vision tower attends by [`attend_windows`]."""
    config = model.model.visual.config
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before

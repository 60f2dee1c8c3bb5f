# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Flash attention as it documents itself, in plain tensors."""

from itertools import pairwise

import torch


def varlen(
    query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
):
    """What flash attention documents of sequences of any lengths: causal ones have the last query at the last key."""
    assert (cu_seqlens_q.dtype, cu_seqlens_k.dtype) == (torch.int32, torch.int32)
    (*_, last), (*_, last_key) = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert (last, last_key) == (len(query), len(key)) and type(max_seqlen_q) is type(max_seqlen_k) is int
    outputs, longest, group = [], [0, 0], query.size(1) // key.size(1)
    for (start, end), (first, stop) in zip(
        pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True
    ):
        queries, keys, values = query[start:end], key[first:stop], value[first:stop]
        keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (keys, values))
        products = torch.einsum("qhd,khd->hqk", queries, keys) * (softmax_scale or query.size(-1) ** -0.5)
        if causal:
            seen = torch.ones(end - start, stop - first, dtype=torch.bool).tril(stop - first - (end - start))
            products = products.masked_fill(~seen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", products.softmax(dim=-1), values))
        longest = [max(longest[0], end - start), max(longest[1], stop - first)]
    assert longest == [max_seqlen_q, max_seqlen_k]
    return torch.cat(outputs)

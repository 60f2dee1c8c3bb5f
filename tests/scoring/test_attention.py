# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The layout of packed prompts and their attention, against loops and a mask over the whole row."""

import inspect
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import generation_batch, make_rows, make_trainer
from flash_reference import varlen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_cppo.scoring import attention
from trl_cppo.scoring.attention import PackedForwards, attend_padded, attend_ragged, packed_mask
from trl_cppo.scoring.packing import Layout, plan_packing

MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True)
LENGTHS = st.lists(
    st.builds(lambda prefix, segments: [prefix, *segments], st.integers(0, 5), st.lists(st.integers(1, 5), min_size=1, max_size=4)),
    min_size=1, max_size=3,
)  # fmt: skip


def visible(lengths):
    """Which token sees which, `(L, L)`, token by token."""
    owners = []  # of each token: its prompt, and its segment or `None`
    for prompt, (prefix, *segments) in enumerate(lengths):
        owners += [(prompt, None)] * prefix
        owners += [(prompt, number) for number, length in enumerate(segments) for _ in range(length)]
    return torch.tensor(
        [
            [key <= query and seen[0] == own[0] and seen[1] in (None, own[1]) for key, seen in enumerate(owners)]
            for query, own in enumerate(owners)
        ]
    )


def pytorchs_varlen(*args, **kwargs):
    """The same under PyTorch's name, with its arguments."""
    given = inspect.signature(varlen_attn).bind(*args, **kwargs).arguments
    assert given["window_size"] == (-1, 0)  # causal
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        assert given["enable_gqa"] == (given["query"].size(1) != given["key"].size(1))
    lengths = given["cu_seq_q"], given["cu_seq_k"], given["max_q"], given["max_k"]
    return varlen(given["query"], given["key"], given["value"], *lengths, given["scale"], causal=True)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, heads=st.sampled_from([2, 4]))
def test_attention_is_that_under_a_mask_over_the_row(lengths, heads):
    total, draw = sum(map(sum, lengths)), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(total, of_kind, 8, dtype=torch.float64, generator=draw, requires_grad=True)
        for of_kind in (heads, 2, 2)
    ]
    weight = torch.randn(total, heads, 8, dtype=torch.float64, generator=draw)
    module, rows = (
        SimpleNamespace(num_key_value_groups=heads // 2),
        [tensor.transpose(0, 1)[None] for tensor in tensors],
    )
    output, _ = sdpa_attention_forward(module, *rows, visible(lengths)[None, None], scaling=0.3)
    expected = [output[0], *torch.autograd.grad((output[0] * weight).sum(), tensors)]
    for attend, repeats in ((attend_padded, False), (attend_padded, True), (attend_ragged, False)):
        with (
            mock.patch.object(attention, "varlen_attn", pytorchs_varlen),
            mock.patch.object(attention, "repeats_heads", lambda query, repeats=repeats: repeats),
        ):
            output = attend(*tensors, Layout(lengths, torch.device("cpu")), 0.3)
        ours = [output, *torch.autograd.grad((output * weight).sum(), tensors)]
        for value, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ragged", [False, True])
def test_under_autocast_it_computes_in_the_type_that_sdpa_takes(monkeypatch, ragged):
    lengths, took = [[3, 2, 4], [5, 2]], []
    monkeypatch.setattr(attention, "takes_ragged", lambda query: took.append(query.dtype) or ragged)
    monkeypatch.setattr(attention, "varlen_attn", pytorchs_varlen)
    query, key, value = (torch.randn(1, heads, 16, 8) for heads in (4, 2, 2))
    value = value.bfloat16()  # norms make float32 of the others
    with torch.autocast("cpu", torch.bfloat16):
        layout = Layout(lengths, query.device)
        output = attention._by_sdpa(MODULE, query, key, value, layout, scaling=None)
        expected, _ = sdpa_attention_forward(MODULE, query, key, value, visible(lengths)[None, None])
    assert took == [torch.bfloat16] and output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.02)


def test_gradients_of_half_precision_are_added_in_float32():
    layout = Layout([[1, *[1] * 512]], torch.device("cpu"))
    key, value = (torch.zeros(513, 1, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    attend_padded(torch.zeros_like(key), key, value, layout, None)[1:].sum().backward()
    # Half of each segment's; added one by one in bf16 they would stop at 128.
    assert value.grad[0].tolist() == [[256.0] * 8]


def test_no_layer_reads_a_value_from_the_device():
    # Tensors without data have none to read; `Layout` has made its indices before.
    lengths, meta = [[3, 2, 4], [0, 1], [5, 2]], torch.device("meta")
    tensors = [torch.randn(17, heads, 8, device=meta, requires_grad=True) for heads in (4, 2, 2)]
    for attend in (attend_padded, attend_ragged):
        output = attend(*tensors, Layout(lengths, meta), None)
        assert output.shape == (17, 4, 8)
        assert all(gradient is not None for gradient in torch.autograd.grad(output.sum(), tensors))


class Unread(TorchFunctionMode):
    """Refuses what makes the host wait for the device."""

    READING = {"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "unique"}

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        assert function.__name__ not in self.READING, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_layers_do_not_make_the_host_wait(tmp_path, monkeypatch, use_reentrant, ragged):
    checkpointing = use_reentrant is not None
    trainer = make_trainer(
        tmp_path, make_rows([1, 2, 1, 1]), share_prefix=True, cpl_coef=1.0, gradient_checkpointing=checkpointing,
        **({"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}} if checkpointing else {}),
    )  # fmt: skip
    batch = generation_batch(trainer)
    trainer.current_gradient_accumulation_steps = 1
    if checkpointing:  # as train() does
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    modes, attended = [], []
    if ragged:
        monkeypatch.setattr(attention, "takes_ragged", lambda query: True)
        monkeypatch.setattr(attention, "varlen_attn", lambda query, *args, **kwargs: attended.append(1) or query * 1.0)

    layers = trainer.model.model.language_model.layers
    for layer in layers:

        def forward(*args, forward=layer.self_attn.forward, **kwargs):
            modes.append(Unread())
            with modes[-1]:
                return forward(*args, **kwargs)

        monkeypatch.setattr(layer.self_attn, "forward", forward)
    trainer.compute_loss(trainer.model, batch).backward()
    assert len(modes) == len(layers) * (1 + checkpointing) and all(mode.calls > 5 for mode in modes)
    assert len(attended) == ragged * len(modes)


def test_other_rows_get_the_attention_they_had(tmp_path, monkeypatch):
    monkeypatch.setattr(PackedForwards, "_users", Counter())  # not of the trainers of other tests
    AttentionInterface.register("sdpa", sdpa_attention_forward)

    def attend(mask, **kwargs):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](MODULE, query, key, value, mask, **kwargs)[0]

    query, key, value = (torch.randn(1, heads, 6, 8) for heads in (4, 2, 2))
    masks = None, torch.ones(1, 1, 6, 6).tril().bool(), torch.zeros(1, 1, 6, 6)
    expected, theirs = [attend(mask) for mask in masks], ALL_ATTENTION_FUNCTIONS["sdpa"]
    trainers = [make_trainer(tmp_path, make_rows([1, 1]), share_prefix=True) for _ in range(2)]
    for trainer in trainers:
        trainer.attach_hooks()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not theirs
    for mask, output in zip(masks, expected, strict=True):
        assert torch.equal(attend(mask), output) and torch.equal(
            attend(mask, packed_prompts="not of this forward"), output
        )
    with pytest.raises(
        RuntimeError, match="SimpleNamespace was not given its model's arguments. Set share_prefix=False"
    ):
        attend(packed_mask(query.device))
    trainers[1].model.set_attn_implementation("eager")
    trainers[1].detach_hooks()
    with pytest.raises(ValueError, match="was changed to 'eager' after the trainer was made.*share_prefix=False"):
        trainers[1].attach_hooks()
    assert "eager" not in ALL_ATTENTION_FUNCTIONS
    trainers[1].model.set_attn_implementation("sdpa")
    trainers[1].attach_hooks()
    trainers[0].detach_hooks()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not theirs
    trainers[1].detach_hooks()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(), num_prompts=st.integers(1, 3), group=st.integers(1, 4), longest=st.integers(2, 5),
    completion=st.integers(1, 5),
)  # fmt: skip
def test_every_token_is_where_the_layout_says(data, num_prompts, group, longest, completion):
    rows = list(data.draw(st.permutations(range(num_prompts * group))))
    prompts = [rows[i * group : (i + 1) * group] for i in range(num_prompts)]
    mask = torch.zeros(len(rows), longest + completion, dtype=torch.long)
    for members in prompts:
        mask[members, longest - data.draw(st.integers(2, longest)) : longest] = 1
    for row in rows:
        mask[row, longest : longest + data.draw(st.integers(0, completion))] = 1
    ids = torch.arange(mask.numel()).view_as(mask)
    packing = plan_packing(mask, completion, prompts)
    packed = ids[packing.source_rows, packing.source_columns][0].tolist()

    expected = []
    for members in prompts:
        attended = [column for column in range(longest) if mask[members[0], column]]
        expected += ids[members[0], attended[:-1]].tolist()
        for row in members:
            expected += ids[row, longest - 1 :][mask[row, longest - 1 :].bool()].tolist()
    assert packed == expected
    assert packing.labelled[0].tolist() == [number % mask.size(1) >= longest for number in packed]
    assert torch.equal(packing.scored, mask[:, longest:].bool())
    predicted = torch.tensor(packed[1:])
    for positions in (predicted, predicted[packing.labelled[0, 1:]]):  # as the head scores all, and on Triton devices
        places = packing.scored_positions(len(positions))
        assert torch.equal(positions[places[packing.scored]], ids[:, longest:][packing.scored])
    unpacked = packing.unpack(predicted[None].float())
    assert torch.equal(unpacked, ids[:, longest:].float() * packing.scored)

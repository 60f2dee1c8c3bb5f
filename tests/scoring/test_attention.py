# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The layout of packed prompts and their attention, against loops and a mask over the whole row."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_rows, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trl_cppo.scoring.attention import ATTENTION, lengths_as_mask, packed_attention
from trl_cppo.scoring.packing import plan_packing

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


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS)
def test_attention_is_that_under_a_mask_over_the_row(lengths):
    total, draw = sum(map(sum, lengths)), torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, total, 8, dtype=torch.float64, generator=draw, requires_grad=True) for heads in (4, 2, 2)
    ]
    weight = torch.randn(1, total, 4, 8, dtype=torch.float64, generator=draw)
    results = []
    for attend, mask in (
        (packed_attention, lengths_as_mask(lengths)),
        (sdpa_attention_forward, visible(lengths)[None, None]),
    ):
        output, _ = attend(MODULE, *tensors, mask, dropout=0.0, scaling=0.3, is_causal=True)
        results.append([output, *torch.autograd.grad((output * weight).sum(), tensors)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 6, 6).tril().bool()])
def test_other_rows_get_the_attention_they_had(mask):
    query, key, value = (torch.randn(1, heads, 6, 8) for heads in (4, 2, 2))
    ours, _ = packed_attention(MODULE, query, key, value, mask)
    expected, _ = sdpa_attention_forward(MODULE, query, key, value, mask)
    assert torch.equal(ours, expected)


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


def test_a_saved_model_does_not_know_of_it(tmp_path):
    trainer = make_trainer(tmp_path, make_rows([1, 1]), max_steps=1, save_strategy="steps", save_steps=1)
    seen, save = [], trainer.save_model

    def save_model(*args, **kwargs):
        seen.append(trainer.model.config.text_config._attn_implementation)
        save(*args, **kwargs)

    trainer.save_model = save_model
    trainer.train()
    assert set(seen) == {ATTENTION}
    folder = tmp_path / "checkpoint-1"
    assert ATTENTION not in json.dumps(json.loads((folder / "config.json").read_text()))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.config.text_config._attn_implementation == "sdpa"

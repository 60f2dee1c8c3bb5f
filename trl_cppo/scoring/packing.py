# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Packing the rollouts of each prompt behind one copy of it, and all prompts of a batch into one row without padding.

A packed prompt is its prefix, all tokens but the last, and a segment for each rollout: the last prompt token, which predicts
the first completion token, and the completion. A segment sees the prefix and itself, at the positions that it has in a row of
its own, so that causal attention makes its states the same (`attention.py`).

For attention, each prefix and each segment is a sequence of queries, whose keys are the prefix, or the prefix and the segment: causal,
with the last query at the last key.

Shapes: `B` rows as TRL scores them, of `S` tokens, the last `T` of them completions; `L` packed tokens; `K` keys of all sequences.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .arguments import BY_ROW, COUNTS, PIXELS, entries_of_rows, given_arguments
from .head import head_positions


@dataclass(frozen=True)
class Packing:
    """Where each token of some rows goes. Index tensors are int64."""

    prompts: list[list[int]]  # the rows of each packed prompt
    lengths: list[list[int]]  # of each packed prompt, in tokens: its prefix, then each segment
    source_rows: torch.Tensor  # (1, L): the row that a packed token is copied from
    source_columns: torch.Tensor  # (1, L): its place in that row
    labelled: torch.Tensor  # (1, L), bool: the completion tokens
    scored: torch.Tensor  # (B', T), bool: the same, of the packed rows in their order, B of them or a part
    places: torch.Tensor  # (B', T): where a scored token is among the L − 1 that have a prediction, else 0

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Values of predicted tokens, `(1, L − 1)`, as `(B', T)`; 0 where nothing is scored. Gradient flows."""
        return torch.where(self.scored, values[0, self.places], values.new_zeros(()))

    def scored_positions(self, num_scored: int) -> torch.Tensor:
        """
        Where each completion token stands among the `num_scored` positions of the fused head, shape `(B', T)`, int64: all
        L − 1 positions, or, on Triton devices, the labelled ones. Without meaning where nothing is scored.
        """
        return head_positions(self.labelled[0, 1:], num_scored)[self.places]


@dataclass(frozen=True)
class Ragged:
    """The sequences of packed prompts as kernels for any lengths take them: the queries are the packed tokens in their order."""

    keys: torch.Tensor  # (K,), int64: the packed token of each key
    query_ends: torch.Tensor  # (sequences + 1,), int32: 0, then the end of each sequence's queries
    key_ends: torch.Tensor  # (sequences + 1,), int32: the same of its keys
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class Padded:
    """The same as rows of two batches, of the prefixes and of the segments. Int64; what is in the padding has no influence."""

    prefixes: torch.Tensor  # (prompts, longest prefix): packed tokens, padded at the end
    segments: torch.Tensor  # (segments, longest segment): padded at the end
    segment_keys: torch.Tensor  # (segments, longest prefix + longest segment): the prefixes padded in front
    paddings: torch.Tensor  # (segments or 1,): how much there is in front; one entry where there is none
    outputs: torch.Tensor  # (L,): the place of each packed token among those of all prefixes, then all segments


class Layout:
    """
    Which tokens of a packed row see which, as indices: made once a forward, for no layer may read lengths from the device.

    Args:
        lengths (`list[list[int]]`): of each packed prompt, in tokens: its prefix, which may be empty, then each segment.
        device (`torch.device`): of the tokens.

    Attributes:
        ragged ([`Ragged`]), padded ([`Padded`]): the indices, on the device.
    """

    def __init__(self, lengths: list[list[int]], device: torch.device):
        self.lengths, self.device = lengths, device
        tokens = iter(torch.arange(sum(map(sum, lengths))).split([length for prompt in lengths for length in prompt]))
        prompts = [[next(tokens) for _ in prompt] for prompt in lengths]
        self.ragged, self.padded = self._moved(_ragged(prompts)), self._moved(_padded(prompts))
        self._elsewhere: dict[torch.device, Layout] = {}
        self._hidden: dict[torch.dtype, torch.Tensor] = {}

    def on(self, device: torch.device) -> "Layout":
        """The same for a layer on another device, where a model lies on several."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Layout(self.lengths, device)
        return self._elsewhere[device]

    def hidden(self, dtype: torch.dtype) -> torch.Tensor:
        """
        The mask of the padded segments, `(segments or 1, 1, longest segment, longest prefix + longest segment)`: 0, or -inf for
        what a query must not see. One tensor for all layers, which keep it for their backward.
        """
        if dtype not in self._hidden:
            index, (longest, width) = self.padded, (self.padded.segments.size(1), self.padded.segment_keys.size(1))
            keys = torch.arange(width, device=self.device)
            seen = (keys <= keys[width - longest :, None]) & (keys >= index.paddings[:, None, None])
            hidden = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill_(~seen, -torch.inf)
            self._hidden[dtype] = hidden[:, None]
        return self._hidden[dtype]

    def _moved(self, index: Ragged | Padded) -> Ragged | Padded:
        def move(value: torch.Tensor | int) -> torch.Tensor | int:
            if isinstance(value, int):
                return value
            if self.device.type != "cuda":
                return value.to(self.device)
            # From other memory the copy waits for the device.
            return value.pin_memory().to(self.device, non_blocking=True)

        return type(index)(**{name: move(value) for name, value in vars(index).items()})


def _ragged(prompts: list[list[torch.Tensor]]) -> Ragged:
    sequences = []
    for prefix, *segments in prompts:
        sequences += [(prefix, prefix)] if len(prefix) else []
        sequences += [(segment, torch.cat([prefix, segment])) for segment in segments]
    lengths = [[len(places) for places in of_kind] for of_kind in zip(*sequences, strict=True)]
    query_ends, key_ends = (torch.tensor([0, *of_kind]).cumsum(0).int() for of_kind in lengths)
    return Ragged(torch.cat([keys for _, keys in sequences]), query_ends, key_ends, *map(max, lengths))


def _padded(prompts: list[list[torch.Tensor]]) -> Padded:
    prefixes = pad_sequence([prefix for prefix, *_ in prompts], batch_first=True, padding_value=-1)
    segments = pad_sequence([one for _, *rest in prompts for one in rest], batch_first=True, padding_value=-1)
    in_front = pad_sequence([prefix for prefix, *rest in prompts for _ in rest], True, -1, padding_side="left")
    paddings = (in_front < 0).sum(dim=1)
    places = torch.cat([prefixes.flatten(), segments.flatten()])
    filled = (places >= 0).nonzero()[:, 0]
    outputs = torch.empty_like(filled).scatter_(0, places[filled], filled)
    rows = (tensor.clamp(min=0) for tensor in (prefixes, segments, torch.cat([in_front, segments], dim=1)))
    return Padded(*rows, paddings if paddings.any() else paddings[:1], outputs)


def plan_packing(attention_mask: torch.Tensor, num_scored: int, prompts: list[list[int]]) -> Packing:
    """
    Lay out some rows of a batch.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, S)`): prompts padded on the left, completions on the right.
        num_scored (`int`): T.
        prompts (`list[list[int]]`): the rows of each prompt; no row twice.
    """
    device, start = attention_mask.device, attention_mask.size(1) - num_scored  # of the completions
    mask = attention_mask.cpu().bool()
    of_prompt, of_completion = mask[:, :start].sum(dim=1).tolist(), mask[:, start:].sum(dim=1).tolist()
    places = torch.zeros(mask.size(0), num_scored, dtype=torch.long)
    rows, columns, lengths, end = [], [], [], 0
    for members in prompts:
        prefix = of_prompt[members[0]] - 1
        lengths.append([prefix, *(1 + of_completion[row] for row in members)])
        pieces = [(members[0], start - 1 - prefix), *((row, start - 1) for row in members)]
        for (row, column), length in zip(pieces, lengths[-1], strict=True):
            rows.append(torch.full((length,), row))
            columns.append(torch.arange(column, column + length))
            if column == start - 1 and length:
                places[row, : length - 1] = torch.arange(end, end + length - 1)
            end += length
    source_columns = torch.cat(columns)[None]
    packed_rows = sorted(row for members in prompts for row in members)
    tensors = (
        torch.cat(rows)[None], source_columns, source_columns >= start, mask[packed_rows, start:], places[packed_rows],
    )  # fmt: skip
    return Packing(prompts, lengths, *(tensor.to(device) for tensor in tensors))


def tokens_saved(attention_mask: torch.Tensor, num_scored: int, prompts: list[list[int]]) -> float:
    """How many tokens packing saves a prompt, on average, padding of the plain rows included; the arguments of [`plan_packing`]."""
    start = attention_mask.size(1) - num_scored
    of_prompt, of_completion = (part.sum(dim=1).tolist() for part in attention_mask.tensor_split([start], dim=1))
    packed = sum(of_prompt[members[0]] - 1 + sum(1 + of_completion[row] for row in members) for members in prompts)
    return (attention_mask.size(1) * sum(map(len, prompts)) - packed) / len(prompts)


def same_prompts(scoring: dict[str, Any], keys: list[Hashable], pixels_by_row: bool) -> list[list[int]]:
    """
    The rows of a scoring batch by prompt: those of one key with the same prompt and the same pixels.

    A data set may return another image each time that it is asked for a row, so the keys alone are not believed.

    Args:
        scoring (`dict[str, Any]`): arguments of `GRPOTrainer._get_per_token_logps_and_entropies` by name.
        keys (`list[Hashable]` of length B): which rows should be of one prompt.
        pixels_by_row (`bool`): see [`~trl_cppo.scoring.families.ViewProcessor`].
    """
    first_of: dict[Hashable, int] = {}
    firsts = [first_of.setdefault(key, row) for row, key in enumerate(keys)]
    start = scoring["input_ids"].size(1) - scoring["logits_to_keep"]
    parts = [
        list(scoring[name][:, :start]) for name in sorted((BY_ROW | {"attention_mask"}) & given_arguments(scoring))
    ]
    for name in sorted(PIXELS & given_arguments(scoring)):
        parts.append(list(torch.split(scoring[name], entries_of_rows(name, scoring, pixels_by_row))))
    counts = [scoring[name] for name in sorted(COUNTS & given_arguments(scoring))]
    same = []
    for row, first in enumerate(firsts):
        alike = all(count[row] == count[first] for count in counts)
        alike = alike and all(part[row].shape == part[first].shape for part in parts)
        checks = [(part[row] == part[first]).all() for part in parts] if alike and row != first else []
        same.append(torch.stack(checks).all() if checks else scoring["input_ids"].new_tensor(alike, dtype=torch.bool))
    members: dict[Hashable, list[int]] = {}
    for row, (first, shared) in enumerate(zip(firsts, torch.stack(same).tolist(), strict=True)):
        members.setdefault(first if shared else ("alone", row), []).append(row)
    return list(members.values())


def pack_scoring(scoring: dict[str, Any], packing: Packing, pixels_by_row: bool) -> dict[str, Any]:
    """The scoring arguments with one packed row in place of the rows, and the pixels of each prompt once."""
    packed = dict(scoring, batch_size=None)
    for name in BY_ROW & given_arguments(scoring):
        packed[name] = scoring[name][packing.source_rows, packing.source_columns]
    packed["attention_mask"] = torch.ones_like(packed["input_ids"])  # PackedForwards puts its own there
    packed["logits_to_keep"] = packed["input_ids"].size(1) - 1
    firsts = [members[0] for members in packing.prompts]
    for name in PIXELS & given_arguments(scoring):
        parts = torch.split(scoring[name], entries_of_rows(name, scoring, pixels_by_row))
        packed[name] = torch.cat([parts[row] for row in firsts])
        if pixels_by_row:  # (prompts, images, …): the images of all prompts become those of one row
            packed[name] = packed[name].flatten(0, 1)[None]
    for name in COUNTS & given_arguments(scoring):
        packed[name] = [sum(scoring[name][row] for row in firsts)]
    return packed


def packed_positions(
    scoring: dict[str, Any], packed: dict[str, Any], packing: Packing, rope_index: Callable | None
) -> torch.Tensor:
    """
    The position that each packed token has in a row of its own, shape `(1, L)`, or `(3, 1, L)` with `rope_index`.

    Args:
        scoring, packed (`dict[str, Any]`): the scoring arguments as TRL made them and packed.
        rope_index (`Callable`, *optional*): the model's function of multimodal rotary positions, where it has one.
    """
    if rope_index is None or scoring.get("image_grid_thw") is None:
        return packing.source_columns  # models count columns, padding included, where they are given no positions
    firsts = torch.tensor([members[0] for members in packing.prompts], device=packing.source_rows.device)
    attended = scoring["attention_mask"][firsts]
    attended[:, -scoring["logits_to_keep"] :] = 1  # the completions' positions, whatever their length
    positions, _ = rope_index(
        input_ids=scoring["input_ids"][firsts], mm_token_type_ids=scoring["mm_token_type_ids"][firsts],
        image_grid_thw=packed["image_grid_thw"], attention_mask=attended,
    )  # fmt: skip
    tokens = torch.tensor([sum(lengths) for lengths in packing.lengths], device=positions.device)
    numbers = torch.arange(len(packing.prompts), device=positions.device).repeat_interleave(tokens)
    return positions[:, numbers[None], packing.source_columns]

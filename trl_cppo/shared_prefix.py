# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Scoring the rollouts of one prompt in one packed row: the prompt once, then a segment for each rollout.

A segment is the last prompt token, which predicts the first completion token, and the completion. It sees the prompt and
itself, at the positions that it has in a row of its own, so that causal attention makes its states the same.

Shapes: `B` rows as TRL scores them, of `S` tokens, the last `T` of them completions; `R` packed rows of `L` tokens.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from .view_batch import BY_ROW, COUNTS, PIXELS, entries_of_rows

PREFIX, PADDING = 0, -1  # segment numbers; rollouts count from 1


@dataclass(frozen=True)
class Packing:
    """Where each token of a batch of rows goes. Index tensors are int64."""

    rows: list[list[int]]  # the rows of each packed row
    source_rows: torch.Tensor  # (R, L): the row that a packed token is copied from
    source_columns: torch.Tensor  # (R, L): its place in that row
    segments: torch.Tensor  # (R, L): PREFIX, the number of a rollout, or PADDING
    labelled: torch.Tensor  # (R, L), bool: the completion tokens
    scored: torch.Tensor  # (B, T), bool: the same, as TRL has them
    places: torch.Tensor  # (B, T): where a scored token is among the R · (L − 1) that have a prediction, else 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor `(B, S)` as `(R, L)`. Padding repeats the last prompt token, which is no image placeholder."""
        return tensor[self.source_rows, self.source_columns]

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Values of predicted tokens, `(R, L − 1)`, as `(B, T)`; 0 where nothing is scored. Gradient flows."""
        return torch.where(self.scored, values.flatten()[self.places], values.new_zeros(()))

    def scored_positions(self, num_scored: int) -> torch.Tensor:
        """
        Where each completion token stands among the `num_scored` positions of the fused head, shape `(B, T)`, int64:
        all R · (L − 1) positions, or, on Triton devices, the labelled ones. Without meaning where nothing is scored.
        """
        labelled = self.labelled[:, 1:].flatten()
        if num_scored == labelled.numel():
            return self.places
        return (labelled.cumsum(0) - 1).clamp(min=0)[self.places]


def plan_packing(
    attention_mask: torch.Tensor, num_scored: int, groups: list[list[int]], pad_to_multiple_of: int | None = None
) -> Packing:
    """
    Lay the rows of each group out as one packed row.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, S)`): prompts padded on the left, completions on the right.
        num_scored (`int`): T.
        groups (`list[list[int]]`): the rows of each packed row, all of one prompt; each row is in one group.
        pad_to_multiple_of (`int`, *optional*): L becomes a multiple of it.
    """
    device, start = attention_mask.device, attention_mask.size(1) - num_scored  # of the completions
    mask = attention_mask.cpu().bool()
    prompts, completions = mask[:, :start].sum(dim=1).tolist(), mask[:, start:].sum(dim=1).tolist()
    lengths = [prompts[rows[0]] - 1 + sum(1 + completions[row] for row in rows) for rows in groups]
    multiple = pad_to_multiple_of or 1
    width = -(-max(lengths) // multiple) * multiple
    source_rows = torch.tensor([rows[0] for rows in groups])[:, None].repeat(1, width)
    source_columns = torch.full((len(groups), width), start - 1)
    segments = torch.full((len(groups), width), PADDING)
    places = torch.zeros(mask.size(0), num_scored, dtype=torch.long)
    for number, rows in enumerate(groups):
        end = prompts[rows[0]] - 1
        source_columns[number, :end] = torch.arange(start - 1 - end, start - 1)
        segments[number, :end] = PREFIX
        for segment, row in enumerate(rows, start=1):
            begin, end = end, end + 1 + completions[row]
            source_rows[number, begin:end] = row
            source_columns[number, begin:end] = torch.arange(start - 1, start + completions[row])
            segments[number, begin:end] = segment
            places[row, : completions[row]] = torch.arange(begin, end - 1) + number * (width - 1)
    tensors = (source_rows, source_columns, segments, source_columns >= start, mask[:, start:], places)
    return Packing(groups, *(tensor.to(device) for tensor in tensors))


def same_prompts(scoring: dict[str, Any], keys: list[Hashable], pixels_by_row: bool) -> list[list[int]]:
    """
    The rows of a scoring batch that can share a packed row: those of one key with the same prompt and the same pixels.

    A data set may return another image each time that it is asked for a row, so the keys alone are not believed.

    Args:
        scoring (`dict[str, Any]`): arguments of `GRPOTrainer._get_per_token_logps_and_entropies` by name.
        keys (`list[Hashable]` of length B): which rows should be of one prompt.
        pixels_by_row (`bool`): see [`~families.ViewProcessor`].
    """
    first_of: dict[Hashable, int] = {}
    firsts = [first_of.setdefault(key, row) for row, key in enumerate(keys)]
    start = scoring["input_ids"].size(1) - scoring["logits_to_keep"]
    parts: list[list[torch.Tensor]] = []
    for name in sorted((BY_ROW | {"attention_mask"}) & _used(scoring)):
        parts.append(list(scoring[name][:, :start]))
    for name in sorted(PIXELS & _used(scoring)):
        parts.append(list(torch.split(scoring[name], entries_of_rows(name, scoring, pixels_by_row))))
    counts = [scoring[name] for name in sorted(COUNTS & _used(scoring))]
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
    """
    The scoring arguments with R packed rows in place of B rows, each with the pixels of its prompt once.

    `attention_mask` marks what is no padding; [`PackedForwards`] puts the mask of the segments in its place.
    """
    packed = dict(scoring)
    for name in BY_ROW & _used(scoring):
        packed[name] = packing.gather(scoring[name])
    packed["attention_mask"] = (packing.segments != PADDING).to(scoring["attention_mask"].dtype)
    packed["logits_to_keep"] = packing.segments.size(1) - 1
    if scoring.get("batch_size") is not None:  # as many rows at once as before, at most
        packed["batch_size"] = max(1, scoring["batch_size"] // max(len(rows) for rows in packing.rows))
    firsts = [rows[0] for rows in packing.rows]
    for name in PIXELS & _used(scoring):
        parts = torch.split(scoring[name], entries_of_rows(name, scoring, pixels_by_row))
        packed[name] = torch.cat([parts[row] for row in firsts])
    for name in COUNTS & _used(scoring):
        packed[name] = [scoring[name][row] for row in firsts]
    return packed


def _used(scoring: dict[str, Any]) -> set[str]:
    return {name for name, value in scoring.items() if value is not None}


def packed_positions(
    scoring: dict[str, Any], packed: dict[str, Any], packing: Packing, rope_index: Callable | None
) -> torch.Tensor:
    """
    The position that each packed token has in a row of its own, shape `(R, L)`, or `(3, R, L)` with `rope_index`.

    Args:
        scoring, packed (`dict[str, Any]`): the scoring arguments as TRL made them and packed.
        rope_index (`Callable`, *optional*): the model's function of multimodal rotary positions, where it has one.
    """
    if rope_index is None or scoring.get("image_grid_thw") is None:
        return packing.source_columns  # models count columns, padding included, where they are given no positions
    firsts = torch.tensor([rows[0] for rows in packing.rows], device=packing.segments.device)
    attended = scoring["attention_mask"][firsts]
    attended[:, -scoring["logits_to_keep"] :] = 1  # the completions' positions, whatever their length
    positions, _ = rope_index(
        input_ids=scoring["input_ids"][firsts], mm_token_type_ids=scoring["mm_token_type_ids"][firsts],
        image_grid_thw=packed["image_grid_thw"], attention_mask=attended,
    )  # fmt: skip
    numbers = torch.arange(len(packing.rows), device=positions.device)[:, None]
    return positions[:, numbers, packing.source_columns]


def is_visible(segments: torch.Tensor) -> torch.Tensor:
    """
    Which token each token sees, shape `(R, L, L)`, bool, from their segments `(R, L)`: the prompt and its own segment, up
    to itself. Padding sees padding: a token that sees nothing would be NaN.
    """
    places = torch.arange(segments.size(1), device=segments.device)
    same = (segments[:, None, :] == PREFIX) | (segments[:, None, :] == segments[:, :, None])
    return same & (places[None, :] <= places[:, None])

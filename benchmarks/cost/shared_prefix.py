# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The cost table's rows with a shared prefix: CPPO's update of packed prompts over GRPOTrainer's of plain rows.

Both losses are computed through CPPOTrainer, whose `compute_loss` without views and prompt keys is GRPOTrainer's own.

The model is small and has the proportions of Qwen2.5-VL-3B: what a token, a pair of tokens in attention, an image patch and a scored
token cost beside each other. Image processing is left out; the table's other rows have it.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig

from trl_cppo.commands.plan.counts.meta_mode import head_of_a_gpu
from trl_cppo.run.card.markdown import table

from ..lib.shapes import Depth, Row, ShapeBench, build_model, load_config, shrink
from ..lib.turns import take_turns

ARMS = ["grpo", "cppo_shared"]


@dataclass(frozen=True)
class Point:
    """A prompt of so many tokens, all but a tenth of an image, its rollouts, and the share of them that is gated."""

    text: int
    patches: int
    completion: int
    group: int
    share: float


POINTS = [Point(88, 2048, 200, 8, share) for share in (0.0, 0.25, 0.5, 1.0)]
POINTS += [Point(176, 4096, 100, 8, 0.5)]
SMOKE = [Point(8, 96, 8, 8, 0.5)]


def small_model() -> Qwen2_5_VLConfig:
    """3B's proportions at a head of 64 dimensions, two layers and two blocks."""
    text = dict(
        hidden_size=128, intermediate_size=12288, num_attention_heads=2, num_key_value_heads=1, vocab_size=8192
    )
    vision = dict(hidden_size=64, intermediate_size=5632, num_heads=2)
    return shrink(load_config("qwen2_5_vl_3b"), Depth(text=2, windowed=1, full=1), text, vision)


def measure_prefix(point: Point, repeats: int) -> dict[str, Any]:
    """FLOPs, bytes and seconds of one point, the arms taking turns on one model."""
    config, bench = small_model(), ShapeBench("cpu", torch.float32)
    rows, gated = [Row(point.text, point.patches, point.completion)] * point.group, round(point.share * point.group)
    counts = {arm: bench.update(config, rows, gated, arm) for arm in ARMS}
    model = build_model(config, "cpu", torch.float32)
    losses = {arm: bench.loss_of(model, rows, gated, arm) for arm in ARMS}
    with head_of_a_gpu():
        _, *rounds = take_turns(lambda arm: losses[arm]().backward(), ARMS, repeats + 1)  # the first warms up
    grpo, shared = (counts[arm] for arm in ARMS)
    times = [pair["cppo_shared"] / pair["grpo"] for pair in rounds]
    return {
        "share_prefix": True,
        "prompt": point.text + point.patches // 4,
        "completion": point.completion,
        "group": point.group,
        "gated_share": point.share,
        "flops_ratio": round(shared.flops / grpo.flops, 4),
        "saved_bytes_ratio": round(shared.saved_bytes / grpo.saved_bytes, 4),
        "forwards": shared.forwards,
        "update_seconds_ratio": round(statistics.median(times), 4),
        "grpo_flops": grpo.flops,
        "grpo_update_seconds": round(statistics.median(pair["grpo"] for pair in rounds), 4),
    }


def prefix_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = {
        "prompt": "{prompt:,}",
        "completion": "{completion}",
        "rollouts": "{group}",
        "f": "{gated_share}",
        "forwards": "{forwards}",
        "FLOPs": "{flops_ratio:.2f}",
        "bytes kept": "{saved_bytes_ratio:.2f}",
        "update, time": "{update_seconds_ratio:.2f}",
        "plain rows, FLOPs": "{limit:g}",
    }
    return table(
        ([text.format(**row, limit=1 + 2 * row["gated_share"]) for text in columns.values()] for row in rows), columns
    )

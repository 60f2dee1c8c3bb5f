# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
What an update of Qwen2.5-VL-3B and 7B costs, GRPO's and CPPO's, over lengths and gated share, and the memory it needs.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.scale            # tables, and benchmarks/results/cost/scale.json
    OMP_NUM_THREADS=1 python -m benchmarks.cost.scale --json     # one JSON object on stdout in place of the tables
    python -m benchmarks.cost.scale --tables --picture           # tables and docs/results/scale.svg from that file, without a count

Nothing is downloaded or trained: CPPOTrainer's own loss and its backward run on tensors that have a shape and no data
(lib/shapes.py), on models of one or two layers of each kind; the others cost the same. The first figures of the report say how far
that is from counts on real tensors of a small model with all its layers. Counts are exact, so nothing is timed. Attention counts
in full squares; padding counts. Weights are bf16 without autocast, attention is of the flash kind, norms are not fused. Memory
leaves out what ZeRO-3 gathers, buffers of the communication, and fragmentation. An interrupted call goes on where it stopped, a
finished one is counted anew.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig

from ..lib.command import PICTURES, BenchmarkParser, read_json, run_and_print, write_json
from ..lib.counting import versions
from ..lib.shapes import Depth, Row, ShapeBench, count_parameters, load_config, shrink
from .pictures import draw_prefix, draw_scale
from .scale_tables import BUDGET_ARM, POINT, tables

MODELS = ("qwen2_5_vl_3b", "qwen2_5_vl_7b")
BASE = Row(text=128, patches=1024, completion=512)  # a 448 × 448 image: 1,024 patches, 256 tokens
LENGTHS = {"text": (32, 512, 2048), "patches": (256, 2304, 4096), "completion": (128, 2048, 4096)}
BATCH, SHARES = 4, (0.0, 0.25, 0.5, 1.0)
PAIR = 2  # rows of the batches whose lengths vary, one of them gated
PROMPTS = {300: (44, 1024), 600: (88, 2048), 1200: (176, 4096)}  # tokens: those of text, patches of four to a token
PREFIX_GROUP, PREFIX_COMPLETIONS = 8, (100, 200, 400, 800, 1600, 3200)  # rollouts of a prompt that share its prefix
BUDGETS, BUDGET_COMPLETIONS = (1, 2), (200, 800, 1600, 3200)  # K, beside half of the rollouts gated
Key = tuple[str, Row, int, int, str, bool]  # model, row, rows of the batch, gated ones, arm, checkpointing


def points(smoke: bool) -> Iterator[Key]:
    """What is to be counted."""
    if smoke:
        yield from ((MODELS[0], BASE, PAIR, gated, "cppo" if gated else "grpo", False) for gated in range(PAIR + 1))
        yield MODELS[0], BASE, PAIR, 1, "cppo_shared", False
        return
    for model in MODELS:
        for checkpointing in (False, True):
            yield model, BASE, BATCH, 0, "grpo", checkpointing
            for share in SHARES:
                yield model, BASE, BATCH, round(share * BATCH), "cppo", checkpointing
            yield model, BASE, BATCH, BATCH // 2, "cppo_kl", checkpointing
            yield model, BASE, BATCH, BATCH, "every_row", checkpointing
        for row in [BASE, *(replace(BASE, **{name: value}) for name in LENGTHS for value in LENGTHS[name])]:
            for checkpointing in (False, True):
                yield model, row, PAIR, 0, "grpo", checkpointing
                yield model, row, PAIR, PAIR // 2, "cppo", checkpointing
        yield from prefix_points(model)


def prefix_points(model: str) -> Iterator[Key]:
    """Of rollouts of one prompt: over the gated share, the size of the group, and the lengths of prompt and completion."""
    middle = Row(*PROMPTS[600], completion=200)
    for group in (4, PREFIX_GROUP, 16):
        yield model, middle, group, 0, "grpo", False
        for share in SHARES if group == PREFIX_GROUP else (0.5,):
            yield model, middle, group, round(share * group), "cppo_shared", False
    for prompt in PROMPTS.values():
        for row in (Row(*prompt, completion) for completion in PREFIX_COMPLETIONS):
            if row != middle:
                yield model, row, PREFIX_GROUP, 0, "grpo", False
                yield model, row, PREFIX_GROUP, PREFIX_GROUP // 2, "cppo_shared", False
    long = Row(*PROMPTS[1200], completion=100)
    yield model, long, 16, 0, "grpo", False
    yield model, long, 16, 8, "cppo_shared", False
    for completion in BUDGET_COMPLETIONS:  # after all others, which a file of an older call may hold
        for budget in BUDGETS:
            yield model, Row(*PROMPTS[600], completion), PREFIX_GROUP, budget, BUDGET_ARM, False


def name_point(key: Key) -> dict[str, Any]:
    model, row, *rest = key
    return dict(zip(POINT, (model, *asdict(row).values(), *rest), strict=True))


def small_config() -> Qwen2_5_VLConfig:
    """The 3B model made narrow and shallow, so that real tensors are cheap."""
    text = dict(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, vocab_size=512)
    vision = dict(hidden_size=64, intermediate_size=128, num_heads=4)
    return shrink(load_config("qwen2_5_vl_3b"), Depth(text=4, windowed=3, full=2), text, vision)


def check() -> dict[str, float]:
    """
    The largest relative errors of counts from few layers: against real tensors and all layers of a small model, and of the
    peak, which real tensors do not tell, against all layers without data.
    """
    config = small_config()
    even, uneven = [Row(10, 64, 16)] * 4, [Row(10, 64, 16), Row(20, 96, 24), Row(5, 16, 8), Row(10, 36, 30)]
    real, shapes = ShapeBench("cpu", torch.float32), ShapeBench("meta", torch.float32)
    errors = dict.fromkeys(("flops", "saved_bytes", "peak_bytes"), 0.0)
    same_prompt = [Row(10, 64, length) for length in (16, 20, 8, 13)]
    for rows, arm, checkpointing in (
        (even, "cppo", False),
        (uneven, "cppo", True),
        (same_prompt, "cppo_shared", False),
    ):
        expected = asdict(real.update(config, rows, 2, arm, checkpointing))
        whole = shapes.update(config, rows, 2, arm, checkpointing)
        expected["peak_bytes"] = max(whole.peaks.values())
        counted = asdict(shapes.deep_update(config, rows, 2, arm, checkpointing))
        errors = {name: max(error, abs(counted[name] / expected[name] - 1)) for name, error in errors.items()}
    return errors


def ratios(counted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CPPO as ratios to GRPO on the same model, lengths and rows, without checkpointing."""
    same = ("model", "text", "patches", "completion", "rows")
    points = [point for point in counted if not point["checkpointing"]]
    grpo = {tuple(point[name] for name in same): point for point in points if point["arm"] == "grpo"}
    rows = []
    for point in points:
        reference = grpo.get(tuple(point[name] for name in same))
        if reference and point["arm"] in ("cppo", "cppo_shared"):
            row = {name: point[name] for name in same} | {"gated_share": point["gated"] / point["rows"]}
            row["share_prefix"] = point["arm"] == "cppo_shared"
            row |= {f"{name}_ratio": point[name] / reference[name] for name in ("flops", "saved_bytes", "peak_bytes")}
            rows.append(row | {"forwards": point["forwards"]})
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = {"base": asdict(BASE), "batch": BATCH, "pair": PAIR, "shares": SHARES, "lengths": LENGTHS}
    names |= {"prompts": list(PROMPTS.items()), "prefix_group": PREFIX_GROUP, "prefix_completions": PREFIX_COMPLETIONS}
    head = json.loads(json.dumps({"settings": names, "versions": versions()}))  # as it comes back from the file
    report = read_json(options.output) if options.output else {}
    wanted = list(points(options.smoke))
    if {name: report.get(name) for name in head} != head or len(report["points"]) == len(wanted):
        models = [{"model": model, "parameters": count_parameters(load_config(model))} for model in MODELS]
        report = {**head, "check": check(), "models": models, "points": []}
    bench = ShapeBench()
    for key in wanted:
        model, row, batch, *rest = key
        if not any(name_point(key).items() <= point.items() for point in report["points"]):
            counts = bench.deep_update(load_config(model), [row] * batch, *rest)
            report["points"].append(name_point(key) | asdict(counts))
            report["rows"] = ratios(report["points"])
            if options.output:
                write_json(options.output, report)
    return report


def draw(report: dict[str, Any]) -> None:
    draw_scale(report, PICTURES / "scale.svg")
    draw_prefix(report, PICTURES / "shared_prefix.svg")


def main() -> None:
    parser = BenchmarkParser("cost.scale", __doc__, smoke="four points of the 3B model")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    options = parser.parse_args()
    if not parser.show(options, tables, draw):
        run_and_print(options, run, tables)


if __name__ == "__main__":
    main()

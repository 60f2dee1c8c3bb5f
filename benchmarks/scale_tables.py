# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What follows from scale.py's counts: memory, and the Markdown tables."""

from collections.abc import Iterable
from typing import Any

TITLES = {"qwen2_5_vl_3b": "3B", "qwen2_5_vl_7b": "7B"}
# Bytes a parameter as DeepSpeed trains in bf16: weight and gradient, and Adam's float32 copy and two moments.
STATES = 2 + 2 + 12
GPUS = (1, 2, 4, 8)
GIB = 2**30
LENGTH = ("text", "patches", "completion")
_ROWS = ("model", *LENGTH, "rows", "gated")


def select(report: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    """The points with these values, in the order of the file."""
    return [point for point in report["points"] if values.items() <= point.items()]


def one(report: dict[str, Any], **values: Any) -> dict[str, Any]:
    [point] = select(report, **values)
    return point


def activations(report: dict[str, Any], point: dict[str, Any]) -> int:
    """
    Bytes that the micro-batch of a point needs on its GPU: what is kept for the backward.

    With checkpointing, the inputs of all layers are kept, and one layer at a time is run again and keeps its own.
    """
    if not point["checkpointing"]:
        return point["saved_bytes"]
    rows = {name: point[name] for name in (*_ROWS, "arm")}
    return point["saved_bytes"] + one(report, checkpointing=False, **rows)["block_bytes"]


def states(report: dict[str, Any], model: str, gpus: int) -> float:
    """Bytes on each GPU of weights, gradients and Adam's state, cut into as many parts as ZeRO-3 does."""
    [parameters] = [entry["parameters"] for entry in report["models"] if entry["model"] == model]
    return parameters * STATES / gpus


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _states_table(report: dict[str, Any]) -> str:
    head = ["model", "parameters", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)]
    return _table(
        head,
        (
            [TITLES[model["model"]], f"{model['parameters']:,}"]
            + [f"{states(report, model['model'], gpus) / GIB:.1f}" for gpus in GPUS]
            for model in report["models"]
        ),
    )


def _shares_table(report: dict[str, Any]) -> str:
    base, batch = report["settings"]["base"], report["settings"]["batch"]
    rows = []
    for model in TITLES:
        grpo = one(report, model=model, **base, rows=batch, arm="grpo", checkpointing=False)
        for point in select(report, model=model, **base, rows=batch, checkpointing=False):
            share = {"grpo": "GRPO", "every_row": "authors' way", "cppo_kl": "exact KL, f = {:g}", "cppo": "f = {:g}"}
            cells = [TITLES[model], share[point["arm"]].format(point["gated"] / batch), str(point["forwards"])]
            cells += [f"{point['flops'] / batch / 1e12:.1f}", f"{point['flops'] / grpo['flops']:.3f}"]
            cells += [f"{point['saved_bytes'] / grpo['saved_bytes']:.3f}", f"{point['saved_bytes'] / GIB:.1f}"]
            same = {name: point[name] for name in (*_ROWS, "arm")}
            again = select(report, **same, checkpointing=True)
            memory = [activations(report, point) / GIB for point in again]
            rows.append(cells + [f"{memory[0]:.1f}" if memory else "–"])
    head = ["model", "", "forwards", "TFLOP a row", "FLOPs / GRPO", "bytes / GRPO", "GiB kept", "GiB, checkpointing"]
    return _table(head, rows)


def _lengths_table(report: dict[str, Any]) -> str:
    rows = []
    for point in select(report, gated=1, rows=2, arm="cppo", checkpointing=False):
        same = {name: point[name] for name in ("model", *LENGTH, "rows")}
        grpo = one(report, **same, arm="grpo", checkpointing=False)
        again = one(report, **same, arm="cppo", checkpointing=True)
        rest = grpo["flops"] - grpo["vision_flops"] - grpo["text_flops"]
        parts = [grpo["flops"], grpo["vision_flops"], grpo["text_flops"], rest]
        cells = [TITLES[point["model"]], *(f"{point[name]:,}" for name in LENGTH)]
        cells += [f"{part / grpo['rows'] / 1e12:.1f}" for part in parts]
        cells += [f"{point[name] / grpo[name]:.3f}" for name in ("flops", "saved_bytes")]
        memory = [activations(report, entry) / point["rows"] / GIB for entry in (grpo, point, again)]
        rows.append(cells + [f"{value:.2f}" for value in memory])
    head = ["model", "text", "patches", "completion", "GRPO: TFLOP a row", "vision", "text layers", "rest"]
    head += ["f = 0.5: FLOPs / GRPO", "bytes / GRPO", "GRPO: GiB a row", "f = 0.5", "with checkpointing"]
    return _table(head, rows)


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    error, settings = report["check"], report["settings"]
    base = ", ".join(f"{value:,} {name}" for name, value in settings["base"].items())
    return "\n\n".join(
        [
            f"Against real tensors and all layers of a small model: FLOPs off by {error['flops_error']:.2%}, bytes by "
            f"{error['saved_bytes_error']:.2%}.",
            "GiB of weights, gradients and Adam's state on each GPU under ZeRO-3:",
            _states_table(report),
            f"A micro-batch of {settings['batch']} rows, each of {base}:",
            _shares_table(report),
            "Lengths, a micro-batch of 2 rows:",
            _lengths_table(report),
        ]
    )

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What follows from scale.py's counts: memory, and the Markdown tables."""

from typing import Any

from trl_cppo.run.card.markdown import table

TITLES = {"qwen2_5_vl_3b": "3B", "qwen2_5_vl_7b": "7B"}
# Bytes a parameter as DeepSpeed trains in bf16: weight and gradient, and Adam's float32 copy and two moments.
STATES = 2 + 2 + 12
GPUS = (1, 2, 4, 8)
GIB = 2**30
LENGTH = ("text", "patches", "completion")
BUDGET_ARM = "cppo_shared_budget"  # `gated` is K then: as many rows have views, whatever is gated beside them
POINT = ("model", *LENGTH, "rows", "gated", "arm", "checkpointing")  # what identifies one


def select(report: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    """The points with these values, in the order of the file."""
    return [point for point in report["points"] if values.items() <= point.items()]


def one(report: dict[str, Any], **values: Any) -> dict[str, Any]:
    [point] = select(report, **values)
    return point


def states(report: dict[str, Any], model: str, gpus: int) -> float:
    """Bytes on each GPU of weights, gradients and Adam's state, cut into as many parts as ZeRO-3 does."""
    [parameters] = [entry["parameters"] for entry in report["models"] if entry["model"] == model]
    return parameters * STATES / gpus


def _states_table(report: dict[str, Any]) -> str:
    rows = (
        [TITLES[model["model"]], f"{model['parameters']:,}"]
        + [f"{states(report, model['model'], gpus) / GIB:.1f}" for gpus in GPUS]
        for model in report["models"]
    )
    return table(rows, ["model", "parameters", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)])


def _shares_table(report: dict[str, Any]) -> str:
    base = {**report["settings"]["base"], "rows": report["settings"]["batch"]}
    names = {"grpo": "GRPO", "every_row": "authors' way", "cppo_kl": "f = {:g}, exact KL", "cppo": "f = {:g}"}
    rows = []
    for model in TITLES:
        grpo = one(report, model=model, **base, arm="grpo", checkpointing=False)
        for point in select(report, model=model, **base, checkpointing=False):
            again = one(report, **{**{name: point[name] for name in POINT}, "checkpointing": True})
            rows.append(
                [TITLES[model], names[point["arm"]].format(point["gated"] / point["rows"]), str(point["forwards"])]
                + [f"{point['flops'] / point['rows'] / 1e12:.1f}"]
                + [f"{point[name] / grpo[name]:.3f}" for name in ("flops", "saved_bytes")]
                + [f"{value / GIB:.1f}" for value in (point["saved_bytes"], point["peak_bytes"], again["peak_bytes"])]
            )
    head = ["model", "", "forwards", "TFLOP a row", "FLOPs / GRPO", "bytes kept / GRPO", "GiB kept", "GiB at the peak"]
    return table(rows, [*head, "with checkpointing"])


def _lengths_table(report: dict[str, Any]) -> str:
    rows = []
    pair = report["settings"]["pair"]
    for point in select(report, rows=pair, arm="cppo", checkpointing=False):
        same = {name: point[name] for name in ("model", *LENGTH, "rows")}
        grpo = one(report, **same, arm="grpo", checkpointing=False)
        again = [one(report, **same, arm=arm, checkpointing=True) for arm in ("grpo", "cppo")]
        rest = grpo["flops"] - grpo["vision_flops"] - grpo["text_flops"]
        parts = [grpo["flops"], grpo["vision_flops"], grpo["text_flops"], rest]
        rows.append(
            [TITLES[point["model"]], *(f"{point[name]:,}" for name in LENGTH)]
            + [f"{part / pair / 1e12:.1f}" for part in parts]
            + [f"{point[name] / grpo[name]:.3f}" for name in ("flops", "saved_bytes")]
            + [f"{entry['peak_bytes'] / GIB:.1f}" for entry in (grpo, point, *again)]
        )
    head = ["model", "text", "patches", "completion", "GRPO: TFLOP a row", "vision", "text layers", "rest"]
    head += ["f = 0.5: FLOPs / GRPO", "bytes kept / GRPO", "GRPO: GiB at the peak", "f = 0.5"]
    return table(rows, [*head, "GRPO, checkpointing", "f = 0.5, checkpointing"])


def prefix_points(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What sharing the prefix makes of an update: ratios to GRPO's, with the lengths of prompt and completion."""
    tokens = {tuple(lengths): prompt for prompt, lengths in report["settings"]["prompts"]}
    rows = [row for row in report["rows"] if row["share_prefix"]]
    return [{**row, "prompt": tokens[row["text"], row["patches"]]} for row in rows]


def _prefix_table(report: dict[str, Any]) -> str:
    rows, by_model = {}, prefix_points(report)
    for point in by_model:
        key = (point["prompt"], point["completion"], point["rows"], point["gated_share"])
        cells = [f"{point[name]:.2f}" for name in ("flops_ratio", "saved_bytes_ratio", "peak_bytes_ratio")]
        rows.setdefault(key, []).extend(cells)
    names = ("FLOPs", "bytes kept", "peak")
    head = [
        "prompt",
        "completion",
        "rollouts",
        "f",
        *(f"{title}: {name}" for title in TITLES.values() for name in names),
    ]
    return table(([f"{number:g}" for number in key] + rows[key] for key in sorted(rows)), head)


def _budget_table(report: dict[str, Any]) -> str:
    names, rows = ("flops", "saved_bytes", "peak_bytes"), []
    for point in select(report, model=next(iter(TITLES)), arm=BUDGET_ARM):
        cells = []
        for model in TITLES:
            same = {name: point[name] for name in (*LENGTH, "rows", "checkpointing")} | {"model": model}
            grpo, own = one(report, **same, arm="grpo"), one(report, **same, arm=BUDGET_ARM, gated=point["gated"])
            every = one(report, **same, arm="cppo_shared", gated=point["rows"] // 2)
            cells += [f"{own[name] / grpo[name]:.2f} ({every[name] / grpo[name]:.2f})" for name in names]
        rows.append([f"{point['completion']:,}", str(point["gated"]), *cells])
    titles = [f"{title}: {name}" for title in TITLES.values() for name in ("FLOPs", "bytes kept", "peak")]
    return table(rows, ["completion", "K", *titles])


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    errors, settings = report["check"], report["settings"]
    base = ", ".join(f"{value:,} {name}" for name, value in settings["base"].items())
    return "\n\n".join(
        [
            "Largest relative error of the check: " + ", ".join(f"{name} {error:g}" for name, error in errors.items()),
            "GiB of weights, gradients and Adam's state on each GPU under ZeRO-3:",
            _states_table(report),
            f"A micro-batch of {settings['batch']} rows, each of {base}:",
            _shares_table(report),
            f"Lengths, a micro-batch of {settings['pair']} rows, one of them gated:",
            _lengths_table(report),
            "CPPO with a shared prefix over GRPO, a micro-batch of the rollouts of one prompt:",
            _prefix_table(report),
            "The same at a prompt of 600, 8 rollouts and f = 0.5 with views of K rollouts (in brackets: of all that are gated):",
            _budget_table(report),
        ]
    )

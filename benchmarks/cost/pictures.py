# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The pictures of the update's cost and of scale.py, from their JSON."""

from pathlib import Path
from typing import Any

from ..lib.pictures import COLORS, GREY, new_figure, save
from ..lib.turns import REST
from .scale_tables import GIB, TITLES, prefix_points, select, states

# What step.py measures, in the order of a step, with the phase that each part belongs to.
STEP_ARMS = {"grpo": "GRPOTrainer", "cppo": "CPPO, shared prefix", "cppo_plain": "CPPO, plain rows"}
STEP_CASES = {"digits": "the embedded run", "reference": "with a reference, two updates a generation"}
STEP_PARTS = {
    "prompts": "sampling", "generation": "sampling", "old policy": "scoring", "reference": "scoring", "rewards": "rest",
    "transforms": "views", "image processing": "views", "forward": "forward", "backward": "backward", "optimizer": "rest",
    "regrouping": "rest",
}  # fmt: skip
STEP_PHASES = [*dict.fromkeys(phase for phase in STEP_PARTS.values() if phase != "rest"), "rest"]
MANY = 8  # GPUs of the memory panel


def draw_cost(report: dict[str, Any], path: Path) -> None:
    """Ratios to GRPO's update against the share of gated rows: counts on the left, times on the right."""
    figure, [[counts, times]] = new_figure(columns=2)
    rows = [row for row in report["rows"] if not row["share_prefix"]]
    shares = [row["gated_share"] for row in rows]

    def line(axes: Any, name: str, label: str, color: str, marker: str, **style: Any) -> None:
        axes.plot(shares, [row[name] for row in rows], color=color, marker=marker, label=label, **style)

    for axes in (counts, times):
        axes.plot(shares, [row["limit"] for row in rows], color=GREY, linestyle="--", linewidth=1.2, label="1 + 2f")
        axes.set(xlabel="f, share of gated rows", xticks=shares)
    line(counts, "flops_ratio", "CPPO, FLOPs", COLORS[0], "o")
    line(counts, "saved_bytes_ratio", "CPPO, bytes kept", COLORS[4], "x", linestyle=":", markersize=9)
    line(counts, "every_row_flops_ratio", "authors' way, both", COLORS[1], "s")
    line(times, "update_seconds_ratio", "CPPO, update", COLORS[0], "o")
    line(times, "step_seconds_ratio", "CPPO, step with sampling", COLORS[2], "^")
    line(times, "every_row_update_seconds_ratio", "authors' way, update", COLORS[1], "s")
    counts.set(title="Counts", ylabel="ratio to GRPO")
    times.set(title="Seconds (medians)")
    top = 1.1 * max(max(drawn.get_ydata()) for axes in (counts, times) for drawn in axes.get_lines())
    for axes in (counts, times):
        axes.set_ylim(0, top)
        axes.legend(loc="lower right")
    save(figure, path)


def draw_prefix(report: dict[str, Any], path: Path) -> None:
    """FLOPs of CPPO with a shared prefix over GRPO's at the 3B shape: over the gated share, and over the completion."""
    figure, [[shares, lengths]] = new_figure(columns=2)
    group, model = report["settings"]["prefix_group"], next(iter(TITLES))
    points = [point for point in prefix_points(report) if point["model"] == model]
    middle = [point for point in points if (point["prompt"], point["completion"], point["rows"]) == (600, 200, group)]
    middle.sort(key=lambda point: point["gated_share"])
    x = [point["gated_share"] for point in middle]
    shares.plot(x, [1 + 2 * share for share in x], color=COLORS[1], marker="s", label="CPPO, plain rows")
    shares.plot(
        x, [point["flops_ratio"] for point in middle], color=COLORS[0], marker="o", label="CPPO, shared prefix"
    )
    for (prompt, _), color in zip(report["settings"]["prompts"], (COLORS[2], COLORS[0], COLORS[4]), strict=True):
        line = [
            point for point in points if (point["prompt"], point["rows"], point["gated_share"]) == (prompt, group, 0.5)
        ]
        line.sort(key=lambda point: point["completion"])
        x, y = ([point[name] for point in line] for name in ("completion", "flops_ratio"))
        lengths.plot(x, y, color=color, marker="o", label=f"prompt of {prompt} tokens")
    lengths.axhline(2, color=COLORS[1], linewidth=1.2, label="plain rows")
    shares.set(
        title=f"Qwen2.5-VL-3B: prompt 600, completion 200, {group} rollouts",
        xlabel="f, share of gated rows",
        ylabel="FLOPs / GRPO's",
    )
    lengths.set(title=f"Qwen2.5-VL-3B: f = 0.5, {group} rollouts", xlabel="completion tokens", xscale="log")
    lengths.set_xticks(report["settings"]["prefix_completions"], report["settings"]["prefix_completions"], minor=False)
    lengths.minorticks_off()
    for axes in (shares, lengths):
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="GRPO")
        axes.set_ylim(0, None)
        axes.legend(loc="best", fontsize=8)
    save(figure, path)


def draw_scale(report: dict[str, Any], path: Path) -> None:
    """Cost (above) and memory (below) of the true models, over the gated share, the completion's and the image's length."""
    figure, axes = new_figure(columns=3, rows=2, width=3.6)
    _draw_shares(report, *axes[:, 0])
    _draw_lengths(report, *axes[:, 1], "completion", "completion tokens")
    _draw_lengths(report, *axes[:, 2], "patches", "patches of the image")
    for panel in axes.flat:
        panel.set_ylim(0, None)
        panel.legend(loc="best", fontsize=8)
    save(figure, path)


def _draw_shares(report: dict[str, Any], cost: Any, memory: Any) -> None:
    base = {**report["settings"]["base"], "rows": report["settings"]["batch"]}
    shares = report["settings"]["shares"]
    cost.plot(shares, [1 + 2 * share for share in shares], color=GREY, linestyle="--", linewidth=1.2, label="1 + 2f")
    for (model, title), color, marker in zip(TITLES.items(), COLORS, "ox", strict=False):
        points = select(report, model=model, **base, checkpointing=False)
        flops = {
            arm: [point["flops"] for point in points if point["arm"] == arm] for arm in ("grpo", "cppo", "every_row")
        }
        [grpo] = flops["grpo"]
        style = {"color": color, "marker": marker, "linestyle": ":", "markersize": 9 if marker == "x" else 5}
        cost.plot(shares, [value / grpo for value in flops["cppo"]], label=f"CPPO, {title}", **style)
        if marker == "o":
            cost.axhline(flops["every_row"][0] / grpo, color=COLORS[2], linewidth=1.2, label="authors' way")
        for checkpointing, style, label in ((False, "--", "all kept"), (True, "-", "checkpointing")):
            points = select(report, model=model, **base, arm="cppo", checkpointing=checkpointing)
            totals = [(states(report, model, MANY) + point["peak_bytes"]) / GIB for point in points]
            memory.plot(shares, totals, color=color, linestyle=style, marker=".", label=f"{title}, {label}")
    for panel, label in ((cost, "FLOPs of an update / GRPO's"), (memory, f"GiB on each of {MANY} GPUs")):
        panel.set(xlabel="f, share of gated rows", xticks=shares, ylabel=label)


def _draw_lengths(report: dict[str, Any], cost: Any, memory: Any, name: str, label: str) -> None:
    fixed = {other: value for other, value in report["settings"]["base"].items() if other != name}
    fixed["rows"] = report["settings"]["pair"]
    for (model, title), color in zip(TITLES.items(), COLORS, strict=False):
        for arm, style, text in (("grpo", ":", "GRPO"), ("cppo", "-", "f = 0.5")):
            line = {"color": color, "linestyle": style, "marker": ".", "label": f"{title}, {text}"}
            points = sorted(select(report, model=model, **fixed, arm=arm), key=lambda point: point[name])
            plain, again = ([point for point in points if point["checkpointing"] is kept] for kept in (False, True))
            x = [point[name] for point in plain]
            cost.plot(x, [point["flops"] / point["rows"] / 1e12 for point in plain], **line)
            memory.plot(x, [point["peak_bytes"] / GIB for point in again], **line)
    cost.set(xlabel=label, ylabel="TFLOP a row")
    memory.set(xlabel=label, ylabel="GiB of activations, 2 rows", title="with checkpointing")


def draw_step(report: dict[str, Any], path: Path) -> None:
    """Processor seconds of a step by what they go to: a bar for each arm, a panel for each case."""
    rows = report["rows"]
    figure, [panels] = new_figure(columns=len(rows), height=2.4)
    for axes, row in zip(panels, rows, strict=True):
        names = [STEP_ARMS[arm] for arm in row["arms"]]
        left = [0.0] * len(names)
        for phase, color in zip(STEP_PHASES, [*COLORS[: len(STEP_PHASES) - 1], GREY], strict=True):
            parts = [part for part in (*STEP_PARTS, REST) if STEP_PARTS.get(part, "rest") == phase]
            seconds = [sum(arm["cpu_seconds"][part] for part in parts) for arm in row["arms"].values()]
            axes.barh(names, seconds, left=left, color=color, label=phase, height=0.6)
            left = [start + length for start, length in zip(left, seconds, strict=True)]
        axes.invert_yaxis()
        axes.set(title=STEP_CASES[row["case"]], xlabel="processor seconds a step")
        axes.grid(axis="y", visible=False)
    for axes in panels[1:]:
        axes.set_yticklabels([])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    save(figure, path)

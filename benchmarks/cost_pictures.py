# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The pictures of cost.py and scale.py, from their JSON."""

from pathlib import Path
from typing import Any

from pictures import COLORS, GREY, new_figure, save


def draw_cost(report: dict[str, Any], path: Path) -> None:
    """Ratios to GRPO's update against the share of gated rows: counts on the left, times on the right."""
    figure, [[counts, times]] = new_figure(columns=2)
    rows = report["rows"]
    shares = [row["gated_share"] for row in rows]

    def line(axes: Any, name: str, label: str, color: str, marker: str, **style: Any) -> None:
        axes.plot(shares, [row[name] for row in rows], color=color, marker=marker, label=label, **style)

    for axes in (counts, times):
        axes.plot(shares, [row["limit"] for row in rows], color=GREY, linestyle="--", linewidth=1.2, label="1 + 2f")
        axes.set(xlabel="f, share of gated rows", ylim=(0, None), xticks=shares)
    line(counts, "flops_ratio", "CPPO, FLOPs", COLORS[0], "o")
    line(counts, "saved_bytes_ratio", "CPPO, bytes kept", COLORS[4], "x", linestyle=":", markersize=9)
    line(counts, "every_row_flops_ratio", "authors' way, both", COLORS[1], "s")
    line(times, "update_seconds_ratio", "CPPO, update", COLORS[0], "o")
    line(times, "step_seconds_ratio", "CPPO, step with sampling", COLORS[2], "^")
    line(times, "every_row_update_seconds_ratio", "authors' way, update", COLORS[1], "s")
    counts.set(title="Counts", ylabel="ratio to GRPO")
    times.set(title="Seconds (medians)")
    top = 1.1 * max(counts.get_ylim()[1], times.get_ylim()[1])
    for axes in (counts, times):
        axes.set_ylim(0, top)
        axes.legend(loc="lower right")
    save(figure, path)


def draw_scale(report: dict[str, Any], path: Path) -> None:
    """Cost and memory of the true models: over the gated share above, over the completion's length below."""

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a training run. Needs matplotlib (`pip install "trl-cppo[digits]"`)."""

from pathlib import Path
from typing import Any

# Okabe and Ito's palette: told apart with any colour vision
_PANELS = [
    ("reward", "reward", "#0072B2"),
    ("held_out_accuracy", "held-out accuracy", "#009E73"),
    ("cpl/loss", "Contrastive Perception Loss", "#D55E00"),
    ("cpl/perception_ratio", "perception tokens / completion tokens", "#CC79A7"),
    ("cpl/contrast_accuracy", "contrast accuracy (d⁺ < d⁻)", "#56B4E9"),
]
_SMOOTHING = 10  # logged values in the running mean


def metric_history(log_history: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """
    The `[step, value]` series of the plotted metrics.

    Args:
        log_history (`list[dict[str, Any]]`): `trainer.state.log_history`.

    Returns:
        `dict[str, list[list[float]]]`: a series for each metric that was logged at least once.
    """
    history = {
        name: [[entry["step"], entry[name]] for entry in log_history if entry.get(name) is not None]
        for name, _, _ in _PANELS
    }
    return {name: series for name, series in history.items() if series}


def plot_training(history: dict[str, list[list[float]]], path: str | Path, title: str) -> None:
    """
    Draw one panel a metric over the optimizer steps and save it.

    Args:
        history (`dict[str, list[list[float]]]`): what [`metric_history`] returns, with at least one metric.
        path (`str` or `Path`): the image file to write; its suffix names the format.
        title (`str`): heading of the picture.

    Raises:
        `ValueError`: if there is nothing to draw.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    panels = [panel for panel in _PANELS if panel[0] in history]
    if not panels:
        raise ValueError("No metric was logged, so there is nothing to plot. Lower logging_steps or train longer.")
    figure = Figure(figsize=(4.2 * min(3, len(panels)), 3.1 * ((len(panels) + 2) // 3)), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots((len(panels) + 2) // 3, min(3, len(panels)), squeeze=False)
    for axes, (name, label, color) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, history[name], label, color)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    figure.savefig(path, dpi=120)


def _draw_panel(axes: Any, series: list[list[float]], label: str, color: str) -> None:
    steps, values = zip(*series, strict=True)
    axes.set_title(label, fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if len(values) <= 2 * _SMOOTHING:
        axes.plot(steps, values, color=color, marker="o", markersize=4)
        return
    axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
    smooth = [sum(window) / len(window) for window in _trailing_windows(values)]
    axes.plot(steps, smooth, color=color, linewidth=2, label=f"mean of the last {_SMOOTHING}")
    axes.legend(fontsize=8, frameon=False)


def _trailing_windows(values: tuple[float, ...]) -> list[tuple[float, ...]]:
    return [values[max(0, end - _SMOOTHING) : end] for end in range(1, len(values) + 1)]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of the learning benchmark, from its JSON alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
from arms import ARMS

Values = dict[tuple[int, int], float]  # of a run each, by warm start and seed
Run = dict[str, Any]


def select(report: dict[str, Any], arm: str, figure: Callable[[Run], float], steps: int) -> Values:
    """A figure of every run of an arm."""
    runs = [run for run in report["runs"].values() if run["job"]["arm"] == arm and run["job"]["steps"] == steps]
    return {(run["job"]["warm_start"], run["job"]["seed"]): figure(run) for run in runs}


def paired(values: Values, baseline: Values) -> Values:
    """Differences where both have a run of the same warm start and seed: it drew the same prompts."""
    return {key: value - baseline[key] for key, value in values.items() if key in baseline}


def interval(values: Values, draws: int = 10_000) -> tuple[float, float, float]:
    """
    Mean and 95 % interval by a two-level bootstrap: warm starts are drawn anew, then seeds within each.

    Three warm starts are few: the interval covers what these three show, and is wide where they disagree.
    """
    draw = np.random.default_rng(0)
    groups: dict[int, list[float]] = {}
    for (warm, _), value in values.items():
        groups.setdefault(warm, []).append(value)
    members = list(groups.values())
    chosen = draw.integers(0, len(members), (draws, len(members)))
    # the mean of a fresh draw of seeds, for each place of each draw of warm starts
    means = np.empty(chosen.shape)
    for group, own in enumerate(members):
        places = chosen == group
        means[places] = np.asarray(own)[draw.integers(0, len(own), (int(places.sum()), len(own)))].mean(axis=1)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return float(np.mean([np.mean(own) for own in members])), float(low), float(high)


def right(condition: str, kind: str = "right") -> Callable[[Run], float]:
    return lambda run: 100 * run["conditions"][condition][kind]


def misread_share(run: Run) -> float:
    """Of the greedy errors on clean canvases, the share that misread a digit, in per cent."""
    clean = run["conditions"]["clean"]
    errors = 1 - clean["right"]
    return 100 * clean["misread"] / errors if errors else float("nan")


FIGURES: dict[str, Callable[[Run], float]] = {
    "greedy": right("clean"),
    "avg@4": right("clean", "avg@4"),
    "training reward, last 10 steps": lambda run: 100 * run["history"]["rewards/sum_reward/mean"][-1],
    "errors that misread": misread_share,
    "detector AUC": lambda run: 100 * run["detector"]["auc"],
    "ΔH of perception tokens, nats": lambda run: run["detector"]["shift_perception"],
    "ΔH of other tokens, nats": lambda run: run["detector"]["shift_other"],
}


def cell(values: Values, digits: int = 1) -> str:
    mean, low, high = interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(values: Values, baseline: Values) -> str:
    mean, low, high = interval(paired(values, baseline))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def tables(report: dict[str, Any], steps: int) -> str:
    """Markdown: figures by arm, differences to GRPO by condition, GRPO with twice the budget."""
    present = [arm for arm in ARMS if select(report, arm, right("clean"), steps)]
    rows = [("warm start", "grpo", 0), *((ARMS[arm].label, arm, steps) for arm in present)]
    rows.append(("GRPO, twice the steps", "grpo", 2 * steps))
    rows = [row for row in rows if select(report, row[1], right("clean"), row[2])]
    counts = {label: len(select(report, arm, right("clean"), length)) for label, arm, length in rows}
    digits = {name: 2 if name.endswith("nats") else 1 for name in FIGURES}
    first = _table(
        ["arm", "runs", *FIGURES],
        [
            [label, str(counts[label])]
            + [
                "–" if name.startswith("training") and length == 0
                else cell(select(report, arm, figure, length), digits[name]) for name, figure in FIGURES.items()
            ]
            for label, arm, length in rows
        ],
    )  # fmt: skip
    conditions = report["grading"]["conditions"]
    parts = [first]
    for title, kind in (("greedy", "right"), ("avg@4", "avg@4")):
        lines = []
        for label, arm, length in rows:
            cells = []
            for condition in conditions:
                values = select(report, arm, right(condition, kind), length)
                base = select(report, "grpo", right(condition, kind), steps)
                plain = label in ("warm start", ARMS["grpo"].label)
                cells.append(cell(values) if plain else difference(values, base))
            lines.append([label, *cells])
        parts.append(_table([f"{title}; below GRPO: difference to it", *conditions], lines))
    return "\n\n".join(parts)


def picture(report: dict[str, Any], steps: int, path: Path) -> None:
    """Accuracy by arm with intervals; the paired differences to GRPO on the clean and on each shifted condition."""
    arms = [arm for arm in ARMS if select(report, arm, right("clean"), steps)]
    figure, [[accuracy, shifts]] = pictures.new_figure(2, width=5.6, height=3.8)
    places = np.arange(len(arms))[::-1]
    for offset, kind, name, color in [
        (0.12, "right", "greedy", pictures.COLORS[0]),
        (-0.12, "avg@4", "sampled, avg@4", pictures.COLORS[1]),
    ]:
        _whiskers(
            accuracy,
            [select(report, arm, right("clean", kind), steps) for arm in arms],
            places + offset,
            color,
            label=name,
        )
    accuracy.set_yticks(places, [ARMS[arm].label for arm in arms])
    accuracy.set_xlabel("right answers on clean held-out canvases, %")
    accuracy.legend(loc="best")
    conditions = report["grading"]["conditions"]
    rows = np.arange(len(conditions))[::-1]
    others = [arm for arm in arms if arm in ("cppo", "cppo_robust")]
    for number, arm in enumerate(others):
        differences = [
            paired(select(report, arm, right(name), steps), select(report, "grpo", right(name), steps))
            for name in conditions
        ]
        offset = 0.12 - 0.24 * number
        _whiskers(shifts, differences, rows + offset, pictures.COLORS[2 + number], label=ARMS[arm].label)
    shifts.axvline(0, color=pictures.GREY, linewidth=1)
    shifts.set_yticks(rows, conditions)
    shifts.set_xlabel("greedy accuracy minus GRPO's, points")
    shifts.legend(loc="best")
    pictures.save(figure, path)


def _whiskers(axes: Any, groups: list[Values], places: np.ndarray, color: str, label: str) -> None:
    means, lows, highs = np.array([interval(values) for values in groups]).T
    axes.errorbar(
        means, places, xerr=[means - lows, highs - means], fmt="o", color=color, label=label, capsize=3, markersize=5
    )

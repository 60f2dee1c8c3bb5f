# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of the learning benchmark, from its JSON alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trl_cppo.run.card.markdown import table

from ..lib import digits_lab as lab
from ..lib import pictures
from .arms import ARMS, FEW
from .runs import COEFS, SWEEP, SWEPT, sweep_job

Values = dict[tuple[int, int], float]  # of a run each, by warm start and seed
Run = dict[str, Any]


def select(report: dict[str, Any], arm: str, figure: Callable[[Run], float], steps: int) -> Values:
    """A figure of every run of an arm."""
    wanted = {"arm": arm, "steps": steps, "settings": {}}
    runs = [run for run in report["runs"].values() if wanted.items() <= run["job"].items()]
    return {(run["job"]["warm_start"], run["job"]["seed"]): figure(run) for run in runs}


def paired(values: Values, baseline: Values) -> Values:
    """Differences where both have a run of the same warm start and seed: it drew the same prompts."""
    return {key: value - baseline[key] for key, value in values.items() if key in baseline}


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
    "detector AUC, %": lambda run: 100 * run["detector"]["auc"],
    "ΔH of perception tokens, nats": lambda run: run["detector"]["shift_perception"],
    "ΔH of other tokens, nats": lambda run: run["detector"]["shift_other"],
}


def cell(values: Values, digits: int = 1) -> str:
    mean, low, high = lab.interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(values: Values, baseline: Values, digits: int = 1) -> str:
    mean, low, high = lab.interval(paired(values, baseline))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _digits(name: str) -> int:
    return 2 if name.endswith(("nats", "first")) else 1


def tables(report: dict[str, Any], steps: int) -> str:
    """Markdown: figures by arm, differences to GRPO by condition, GRPO with twice the budget."""
    present = [arm for arm in ARMS if select(report, arm, right("clean"), steps)]
    rows = [("warm start", "grpo", 0), *((ARMS[arm].label, arm, steps) for arm in present)]
    rows.append(("GRPO, twice the steps", "grpo", 2 * steps))
    rows = [row for row in rows if select(report, row[1], right("clean"), row[2])]
    counts = {label: len(select(report, arm, right("clean"), length)) for label, arm, length in rows}
    first = [
        [label, counts[label]]
        + [
            "–" if name.startswith("training") and length == 0
            else cell(select(report, arm, figure, length), _digits(name)) for name, figure in FIGURES.items()
        ]
        for label, arm, length in rows
    ]  # fmt: skip
    conditions = report["grading"]["conditions"]
    others = [row for row in rows if row[0] not in ("warm start", ARMS["grpo"].label)]
    pairs = [
        [label] + [
            difference(select(report, arm, figure, length), select(report, "grpo", figure, steps), _digits(name))
            for name, figure in FIGURES.items()
        ]
        for label, arm, length in others
    ]  # fmt: skip
    parts = [table(first, ["arm", "runs", *FIGURES]), table(pairs, ["difference to GRPO", *FIGURES])]
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
        parts.append(table(lines, [f"{title}; below GRPO: difference to it", *conditions]))
    return "\n\n".join(parts)


def sweep_runs(report: dict[str, Any], steps: int) -> dict[tuple[str, float], dict[tuple[int, int], Run]]:
    """The runs of each setting of the λ sweep, by warm start and seed, of those seeds that all settings have."""
    seeds = sorted({run["job"]["seed"] for run in report["runs"].values()})
    names = {setting: {seed: sweep_job(*setting, seed, steps).name for seed in seeds} for setting in SWEEP}
    shared = [seed for seed in seeds if all(own[seed] in report["runs"] for own in names.values())]
    return {setting: {(0, seed): report["runs"][own[seed]] for seed in shared} for setting, own in names.items()}


def _figures(runs: dict[tuple[int, int], Run], figure: Callable[[Run], float]) -> Values:
    return {key: figure(run) for key, run in runs.items()}


def sweep_table(report: dict[str, Any], steps: int) -> str:
    """Markdown: the figures of GRPO and of both forms of CPPO over λ."""
    swept = sweep_runs(report, steps)
    if not swept["grpo", 0.0]:
        return "No seed has all runs of the sweep."
    figures = {**FIGURES, "gradient ratio at first": lambda run: run["history"]["cpl/gradient_ratio"][0] or 0.0}
    lines = []
    for (arm, coef), runs in swept.items():
        cells = [cell(_figures(runs, figure), _digits(name)) for name, figure in figures.items()]
        lines.append([ARMS[arm].label, f"{coef:g}", len(runs), *cells])
    return table(lines, ["arm", "λ", "runs", *figures])


def prefix_table(report: dict[str, Any]) -> str:
    """Markdown: scoring behind one copy of the prompt, in plain rows, and the paired differences."""
    figures = {
        name: FIGURES[name] for name in ("greedy", "avg@4", "training reward, last 10 steps", "detector AUC, %")
    }
    figures["training, s"] = lambda run: run["training_seconds"]
    values: dict[bool, dict[str, Values]] = {}
    for share in (False, True):
        runs = [run for run in report["runs"].values() if run["settings"]["share_prefix"] is share]
        places = [(run["job"]["warm_start"], run["job"]["seed"]) for run in runs]
        values[share] = {name: dict(zip(places, map(figure, runs), strict=True)) for name, figure in figures.items()}
    ratio = {
        key: 100 * value / values[False]["training, s"][key] for key, value in values[True]["training, s"].items()
    }
    rows = [
        [f"`share_prefix={share}`", len(values[share]["greedy"])] + [cell(values[share][name]) for name in figures]
        for share in (False, True)
    ]
    differences = [difference(values[True][name], values[False][name]) for name in list(figures)[:-1]]
    rows.append(["difference; share of the time, %", "", *differences, cell(ratio)])
    return table(rows, ["scoring", "runs", *figures])


def first_table(report: dict[str, Any]) -> str:
    """Markdown: what the embedded run learns, by seed, and its mean and range."""
    runs = sorted(report["runs"].values(), key=lambda run: run["job"]["seed"])
    starts, trained = [[run for run in runs if (run["job"]["steps"] > 0) is later] for later in (False, True)]
    if not (starts and trained):
        return "The first run has not been measured."
    before = right("clean")(starts[0])
    rows, columns = [], []
    for run in trained:
        shares, greedy = run["history"]["rewards/sum_reward/mean"], right("clean")(run)
        figures = [100 * shares[0], 100 * shares[-1], 100 * (shares[-1] - shares[0]), greedy, greedy - before]
        rows.append([run["job"]["seed"], *(f"{figure:.1f}" for figure in figures)])
        columns.append(figures)
    means = [f"{np.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in zip(*columns, strict=True)]
    rows.append(["mean (least to most)", *means])
    names = ["right samples in training, first 10 steps", "last 10", "rise", "greedy after", f"rise from {before:.1f}"]
    return table(rows, ["seed", *names])


def few_table(report: dict[str, Any], steps: int) -> str:
    """Markdown: the arms on 40 canvases, and the differences to GRPO on the same."""
    names = ("greedy", "avg@4", "training reward, last 10 steps", "detector AUC, %")
    base = {name: select(report, "grpo", FIGURES[name], steps) for name in names}
    rows = []
    for label, arm, length in [("warm start", "grpo", 0), *((arm.label, name, steps) for name, arm in FEW.items())]:
        values = {
            name: select(report, arm, FIGURES[name], length)
            for name in names
            if length or not name.startswith("training")
        }
        cells = [cell(values[name]) if values.get(name) else "–" for name in names]
        compared = (
            [difference(values[name], base[name]) for name in ("greedy", "avg@4")] if arm != "grpo" else ["", ""]
        )
        rows.append([label, len(values["greedy"]), *cells, *compared])
    return table(rows, ["on 40 canvases", "runs", *names, "greedy − GRPO's", "avg@4 − GRPO's"])


def choice_table(report: dict[str, Any]) -> str:
    """Markdown: GRPO and the bounds on the gradient, on the validation split; mean over seeds."""
    groups: dict[str, list[Run]] = {}
    for run in report.get("runs", {}).values():
        bound = run["job"]["settings"].get("cpl_max_gradient_ratio")
        groups.setdefault("GRPO" if bound is None else f"{bound:g}", []).append(run)
    names = [name for name in FIGURES if name != "errors that misread"]
    lines = []
    for label, runs in sorted(groups.items(), key=lambda group: (group[0] != "GRPO", group[0])):
        means = [float(np.mean([FIGURES[name](run) for run in runs])) for name in names]
        cells = [f"{mean:.{_digits(name)}f}" for mean, name in zip(means, names, strict=True)]
        lines.append([label, len(runs), *cells])
    return table(lines, ["bound at λ = 0.2", "runs", *names])


def sweep_picture(report: dict[str, Any], steps: int, path: Path) -> None:
    """Accuracy and detection over λ of both forms of CPPO, beside GRPO."""
    shown = ["greedy", "avg@4", "detector AUC, %", "ΔH of other tokens, nats"]
    swept = sweep_runs(report, steps)
    figure, [axes] = pictures.new_figure(len(shown), width=3.3, height=3.2)
    for panel, name in zip(axes, shown, strict=True):
        mean, low, high = lab.interval(_figures(swept["grpo", 0.0], FIGURES[name]))
        panel.axhline(mean, color=pictures.GREY, label="GRPO")
        panel.axhspan(low, high, color=pictures.GREY, alpha=0.2)
        for number, arm in enumerate(SWEPT):
            groups = [lab.interval(_figures(swept[arm, coef], FIGURES[name])) for coef in COEFS]
            means, lows, highs = np.array(groups).T
            bars = [means - lows, highs - means]
            color = pictures.COLORS[2 + number]
            panel.errorbar(COEFS, means, yerr=bars, fmt="o-", color=color, label=ARMS[arm].label, capsize=3)
        panel.set_xscale("log")
        panel.set_xticks(COEFS, [f"{coef:g}" for coef in COEFS])
        panel.set_xlabel("λ")
        panel.set_title(name)
    axes[0].legend(fontsize=8)
    pictures.save(figure, path)


def picture(report: dict[str, Any], steps: int, path: Path) -> None:
    """Accuracy by arm with intervals; the paired differences to GRPO on the clean and on each shifted condition."""
    arms = [arm for arm in ARMS if select(report, arm, right("clean"), steps)]
    figure, [[accuracy, shifts]] = pictures.new_figure(2, width=5.6, height=3.8)
    places = np.arange(len(arms))[::-1]
    for offset, kind, name, color in [
        (0.12, "right", "greedy", pictures.COLORS[0]),
        (-0.12, "avg@4", "sampled, avg@4", pictures.COLORS[1]),
    ]:
        whiskers(
            accuracy,
            [select(report, arm, right("clean", kind), steps) for arm in arms],
            places + offset,
            color,
            label=name,
        )
    accuracy.set_yticks(places, [ARMS[arm].label for arm in arms])
    accuracy.set_xlabel("right answers on clean held-out canvases, %")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}  # nothing lies there
    accuracy.legend(**above)
    conditions = report["grading"]["conditions"]
    rows = np.arange(len(conditions))[::-1]
    others = [arm for arm in arms if arm in SWEPT]
    for number, arm in enumerate(others):
        differences = [
            paired(select(report, arm, right(name), steps), select(report, "grpo", right(name), steps))
            for name in conditions
        ]
        offset = 0.12 - 0.24 * number
        whiskers(shifts, differences, rows + offset, pictures.COLORS[2 + number], label=ARMS[arm].label)
    shifts.axvline(0, color=pictures.GREY, linewidth=1)
    shifts.set_yticks(rows, conditions)
    shifts.set_xlabel("greedy accuracy minus GRPO's, points")
    shifts.legend(**above)
    pictures.save(figure, path)


def whiskers(axes: Any, groups: list[Values], places: np.ndarray, color: str, label: str) -> None:
    """Means with their intervals, at heights of the axes."""
    means, lows, highs = np.array([lab.interval(values) for values in groups]).T
    axes.errorbar(
        means, places, xerr=[means - lows, highs - means], fmt="o", color=color, label=label, capsize=3, markersize=5
    )

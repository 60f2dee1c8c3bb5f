# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of the temptation benchmark, from its JSON alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trl_cppo.run.card.markdown import table

from ..learning.report import cell, difference, paired, select, whiskers
from ..lib import pictures
from .arms import ARMS
from .captions import CONDITIONS

Run = dict[str, Any]
SHOWN = {"wrong": "caption wrong", "absent": "no caption", "training": "as in training", "right": "caption right"}


def graded(condition: str, kind: str) -> Callable[[Run], float]:
    return lambda run: 100 * run["conditions"][condition][kind]


def looked(name: str, factor: float = 1.0) -> Callable[[Run], float]:
    return lambda run: factor * run["tokens"][name]


def _rows(report: dict[str, Any], steps: int) -> list[tuple[str, str, int]]:
    """Label, arm and steps of what the file holds."""
    found = [("warm start", "grpo", 0), *((arm.label, name, steps) for name, arm in ARMS.items())]
    return [row for row in found if select(report, row[1], graded("wrong", "right"), row[2])]


def _accuracies(report: dict[str, Any], steps: int, kind: str) -> str:
    """GRPO and the start as they are, the others as differences to GRPO on the same prompts."""
    lines = []
    for label, arm, length in _rows(report, steps):
        cells = []
        for condition in CONDITIONS:
            figure = graded(condition, kind)
            values = select(report, arm, figure, length)
            plain = arm == "grpo"
            cells.append(cell(values) if plain else difference(values, select(report, "grpo", figure, steps)))
        lines.append([label, len(values), *cells])
    title = {"right": "greedy", "sampled": "avg@4"}[kind]
    return table(lines, [f"{title}; below GRPO: difference to it", "runs", *(SHOWN[name] for name in CONDITIONS)])


def _signals(report: dict[str, Any], steps: int) -> str:
    figures = {
        "reads the caption's wrong digit, %": graded("wrong", "follows"),
        "captions all right, of right rollouts, %": looked("agreeing_of_right", 100),
        "d⁻ where the caption is right": looked("removed_divergence_where_right"),
        "d⁻ where it is wrong": looked("removed_divergence_where_wrong"),
        "ΔH over all tokens, nats": looked("entropy_shift_of_all"),
    }
    lines = [
        [label, *(cell(select(report, arm, figure, length), 2 if "d⁻" in name or "ΔH" in name else 1)
                  for name, figure in figures.items())]
        for label, arm, length in _rows(report, steps)
    ]  # fmt: skip
    return table(lines, ["", *figures])


def tables(report: dict[str, Any], steps: int) -> list[str]:
    return [_accuracies(report, steps, "right"), _accuracies(report, steps, "sampled"), _signals(report, steps)]


def choice_table(report: dict[str, Any]) -> str:
    """Markdown: what the settings were chosen from, on the validation split; mean over seeds."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in report.get("runs", {}).values():
        groups.setdefault(_what_was_tried(run["settings"]), []).append(run)
    kinds = [(kind, name) for kind in ("right", "sampled") for name in CONDITIONS]
    lines = []
    for tried in sorted(groups, key=lambda tried: (tried[0] != "GRPO", tried)):
        runs = groups[tried]
        means = [np.mean([graded(name, kind)(run) for run in runs]) for kind, name in kinds]
        lines.append([*tried, len(runs), *(f"{mean:.1f}" for mean in means)])
    heads = [f"{kind}, {SHOWN[name]}" for kind in ("greedy", "avg@4") for name in CONDITIONS]
    return table(lines, ["on validation: removing views", "λ", "τ", "bound", "runs", *heads])


def _what_was_tried(settings: dict[str, Any]) -> tuple[str, ...]:
    if not settings["cpl_coef"]:
        return "GRPO", "–", "–", "–"
    views = settings.get("information_removing")
    bound = settings.get("cpl_max_gradient_ratio")
    return (
        "another image" if views == ["another_image"] else "the authors'",
        f"{settings['cpl_coef']:g}",
        f"{settings.get('cpl_temperature', 0.1):g}",
        "–" if bound is None else f"{bound:g}",
    )


def picture(report: dict[str, Any], steps: int, path: Path) -> None:
    """What GRPO gains and loses, and by arm the difference to it where the caption is wrong, absent and as in training."""
    figure, [[gains, differences]] = pictures.new_figure(2, width=5.6, height=4.2)
    names = list(CONDITIONS)
    places = np.arange(len(names))[::-1]
    for number, (label, length) in enumerate([("warm start", 0), ("GRPO", steps)]):
        groups = [select(report, "grpo", graded(name, "right"), length) for name in names]
        whiskers(gains, groups, places + 0.1 - 0.2 * number, pictures.COLORS[number], label)
    gains.set_yticks(places, [SHOWN[name] for name in names])
    gains.set_xlabel("greedy accuracy, %")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "fontsize": 8}
    gains.legend(**above)
    arms = [row for row in _rows(report, steps) if row[1] != "grpo"]
    rows = np.arange(len(arms))[::-1]
    for number, condition in enumerate(["wrong", "absent", "training"]):
        figure_of = graded(condition, "right")
        base = select(report, "grpo", figure_of, steps)
        groups = [paired(select(report, arm, figure_of, length), base) for _, arm, length in arms]
        whiskers(differences, groups, rows + 0.2 - 0.2 * number, pictures.COLORS[2 + number], SHOWN[condition])
    differences.axvline(0, color=pictures.GREY, linewidth=1)
    differences.set_yticks(rows, [label for label, _, _ in arms], fontsize=8)
    differences.set_xlabel("greedy accuracy minus GRPO's, points")
    differences.legend(**above)
    pictures.save(figure, path)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture and the Markdown tables of the detector's grades, from their JSON alone."""

from pathlib import Path
from typing import Any

from trl_cppo.run.card.markdown import table

from ..lib import pictures
from . import measures

START = "warm start"
SCORES = {
    "relative_shift": "ΔH / H⁻ (authors)",
    "shift": "ΔH",
    "k3": "k3 of the sampled token",
    "kl": "exact KL",
    "log_prob_drop": "log-prob drop",
    "removed_entropy": "H⁻ alone",
    "entropy": "H alone (no view)",
}
DRAWN = measures.MAIN_SCORES
MARKED = dict(zip(measures.MAIN_FAMILIES, zip(DRAWN[1:], "sD^", strict=True), strict=True))  # family: score, marker
KINDS = {
    "noise_boxes": "boxes of noise",
    "zoom_crop": "side of the crop",
    "gaussian_blur": "σ of the blur in pixels",
    "black_patches": "share of patches black",
}
MIXTURE = "authors' views"


def _color(score: str) -> str:
    return pictures.COLORS[DRAWN.index(score)]


def authors_views(report: dict[str, Any], group: str) -> dict[str, Any]:
    return next(view for view in report["groups"][group]["views"] if view["kind"] == "mixture")


def find_rule(rated: list[dict[str, Any]], rule: tuple[str, float]) -> dict[str, Any]:
    return next(entry for entry in rated if tuple(entry["rule"]) == rule)


def chosen_rule(report: dict[str, Any], family: str) -> tuple[str, float]:
    return next(tuple(entry["rule"]) for entry in report["choice"]["chosen"] if entry["rule"][0] == family)


def _precision_recall(axes: Any, report: dict[str, Any]) -> None:
    view = authors_views(report, START)["all"]
    recalls = report["settings"]["recalls"]
    for score in DRAWN:
        axes.plot(recalls, view["scores"][score]["precision_at_recalls"], color=_color(score), label=SCORES[score])
    points = [(measures.AUTHORS, "relative_shift", "o")]
    points += [(chosen_rule(report, family), *place) for family, place in MARKED.items()]
    for rule, score, marker in points:
        rated = find_rule(view["rules"], rule)
        name = "authors' rule: top half" if rule == measures.AUTHORS else measures.in_words(rule)
        axes.plot(
            rated["recall"]["mean"], rated["precision"]["mean"], marker, color=_color(score), markersize=9,
            markeredgecolor=pictures.GREY, label=name,
        )  # fmt: skip
    share = report["groups"][START]["share_of_true_tokens"]["all"]
    axes.axhline(share, color=pictures.GREY, linestyle="--", linewidth=1)
    axes.text(0.02, share + 0.015, "all tokens", fontsize=8)
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03), xlim=(0, 1.02), title="Authors' views")


def _ratios(axes: Any, report: dict[str, Any]) -> None:
    rated = authors_views(report, START)["all"]["rules"]
    rows = [find_rule(rated, ("top_relative_shift", ratio)) for ratio in measures.RATIOS]
    places = {"precision": ("--", 0.3, -0.2), "recall": (":", 0.5, -0.07), "f1": ("-", 0.7, 0.03)}  # of the words
    for name, (style, ratio, above) in places.items():
        means = [row[name]["mean"] for row in rows]
        axes.plot(measures.RATIOS, means, style, color=_color("relative_shift"))
        place = (ratio, means[measures.RATIOS.index(ratio)] + above)
        axes.annotate(name.replace("f1", "F1"), place, fontsize=8)
    floor = chosen_rule(report, "top_half_above_floor")
    value = find_rule(rated, floor)["f1"]["mean"]
    axes.axhline(value, color=_color("shift"))
    axes.annotate(f"F1 of {measures.in_words(floor)}", (1, value + 0.03), ha="right", fontsize=8)
    axes.set(xlabel="ratio of the authors' rule", ylim=(0, 1.03), title="Authors' rule, other ratios")


def _strengths(axes: Any, report: dict[str, Any], kind: str) -> None:
    views = [view for view in report["groups"][START]["views"] if view["kind"] == kind]
    places = range(len(views))
    for score in DRAWN:
        figures = [view["all"]["scores"][score]["average_precision"] for view in views]
        axes.plot(places, [figure["mean"] for figure in figures], ".-", color=_color(score))
        low, high = ([figure[end] for figure in figures] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=_color(score), alpha=0.2, linewidth=0)
    axes.set_xticks(places, [f"{view['strength']:g}" for view in views])
    axes.set(xlabel=f"{KINDS[kind]} (weak to strong)", ylabel="average precision", ylim=(0, 1.03))
    axes.set_title(kind.replace("_", " ").capitalize())


def draw(report: dict[str, Any], path: Path) -> None:
    """Precision against recall, the ratio, and average precision against the strength of each kind of view."""
    figure, axes = pictures.new_figure(columns=3, rows=2, width=3.9, height=3.2)
    _precision_recall(axes[0, 0], report)
    _ratios(axes[1, 0], report)
    for place, kind in zip((axes[0, 1], axes[0, 2], axes[1, 1], axes[1, 2]), KINDS, strict=True):
        _strengths(place, report, kind)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    pictures.save(figure, path)


def _cell(figure: dict[str, float | None], interval: bool = True) -> str:
    if figure["mean"] is None:
        return "none"
    text = f"{figure['mean']:.3f}"
    return f"{text} [{figure['low']:.3f}, {figure['high']:.3f}]" if interval else text


def score_table(report: dict[str, Any], group: str) -> str:
    view = authors_views(report, group)
    rows = [
        [words, *(_cell(view[rows]["scores"][score][grade]) for rows in ("all", "right") for grade in ("auc", "average_precision"))]
        for score, words in SCORES.items()
    ]  # fmt: skip
    kinds = ["AUC", "average precision", "AUC, right sums", "average precision, right sums"]
    return table(rows, ["score", *kinds])


def rule_table(report: dict[str, Any], group: str) -> str:
    """The authors' rule, then the best of each family by the F1 on validation."""
    view = authors_views(report, group)
    rows = []
    for rule in [measures.AUTHORS, *(tuple(entry["rule"]) for entry in report["choice"]["chosen"])]:
        cells = [_cell(find_rule(view["all"]["rules"], rule)[grade]) for grade in ("precision", "recall", "f1")]
        gain = find_rule(view["all"]["rules"], rule)["f1_gain"]
        cells.append("" if rule == measures.AUTHORS else "+" + _cell(gain))
        right = find_rule(view["right"]["rules"], rule)
        cells.append(" / ".join(_cell(right[grade], interval=False) for grade in ("precision", "recall", "f1")))
        rows.append([measures.in_words(rule), *cells])
    return table(rows, ["rule", "precision", "recall", "F1", "F1 gained", "the three on right sums"])


def ratio_table(report: dict[str, Any], group: str) -> str:
    rated = authors_views(report, group)["all"]["rules"]
    rows = []
    for ratio in measures.RATIOS:
        pair = [find_rule(rated, (family, ratio)) for family in ("top_relative_shift", "top_shift")]
        rows.append([f"{ratio:g}", *(_cell(one[g], False) for one in pair for g in ("precision", "recall", "f1"))])
    grades = ["precision", "recall", "F1"]
    return table(rows, ["ratio", *(f"{g}, by ΔH / H⁻" for g in grades), *(f"{g}, by ΔH" for g in grades)])


def view_table(report: dict[str, Any], group: str) -> str:
    rules = [measures.AUTHORS, *(chosen_rule(report, family) for family in MARKED)]
    rows = []
    for view in report["groups"][group]["views"]:
        scores = view["all"]["scores"]
        cells = [_cell(scores[score]["auc"], False) for score in DRAWN]
        cells += [_cell(scores[score]["average_precision"], False) for score in DRAWN]
        cells += [_cell(find_rule(view["all"]["rules"], rule)["f1"], False) for rule in rules]
        rows.append([MIXTURE if view["kind"] == "mixture" else f"{view['kind']} {view['strength']:g}", *cells])
    names = ["ΔH / H⁻", "ΔH", "k3", "KL"]
    head = ["view", *(f"AUC {n}" for n in names), *(f"AP {n}" for n in names), "F1 authors' rule"]
    return table(rows, [*head, *(f"F1 {measures.in_words(rule)}" for rule in rules[1:])])


def group_table(report: dict[str, Any]) -> str:
    """Before and after training, under the authors' views."""
    rules = [measures.AUTHORS, *(chosen_rule(report, family) for family in MARKED)]
    rows = []
    for name, group in report["groups"].items():
        view = authors_views(report, name)["all"]
        cells = [f"{name} ({len(group['models'])})", f"{group['sampled_accuracy']['mean']:.3f}"]
        cells += [_cell(view["scores"][score]["auc"], False) for score in DRAWN]
        for rule in rules:
            rated = find_rule(view["rules"], rule)
            cells.append(" / ".join(_cell(rated[grade], False) for grade in ("precision", "recall", "f1")))
        rows.append(cells)
    head = [
        "models (number)",
        "sampled accuracy",
        "AUC ΔH / H⁻",
        "AUC ΔH",
        "AUC k3",
        "AUC KL",
        "authors' rule: P / R / F1",
    ]
    return table(rows, [*head, *(f"{measures.in_words(rule)}: P / R / F1" for rule in rules[1:])])


def tables(report: dict[str, Any]) -> str:
    """All of it as Markdown."""
    parts = ["## Before and after training, authors' views, test canvases", group_table(report)]
    for name in report["groups"]:
        parts += [f"## {name}: scores, authors' views", score_table(report, name)]
        parts += [f"## {name}: the best rule of each family, authors' views", rule_table(report, name)]
        parts += [f"## {name}: ratios, authors' views", ratio_table(report, name)]
        parts += [f"## {name}: views", view_table(report, name)]
    return "\n\n".join(parts)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Does CPPO's detector find the perception tokens? Graded on sampled rollouts of the digits task, whose perception tokens are known.

    OMP_NUM_THREADS=1 python -m benchmarks.detection --models 'GRPO=MODELS/*seed0-grpo-*' 'CPPO=MODELS/*seed0-cppo-steps*'
    python -m benchmarks.detection --tables     # Markdown, from the JSON alone
    python -m benchmarks.detection --picture    # docs/results/detection.svg, from the JSON alone

Scores, views and rules are those of `measures.py`. Rules are chosen on the split "validation", under the authors' views, on
the warm starts; all that is reported comes from the split "test". Intervals are bootstrapped over canvases, the same draws for
every model, and describe the mean over the models of a group.
"""

import argparse
import glob
import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trl_cppo import digits

from ..lib import digits_lab as lab
from ..lib.command import PICTURES, BenchmarkParser, read_json, write_json
from . import measures
from .report import START, draw, tables

DEFAULT_VIEW = ("mixture", 1)
CANVAS_SEEDS = {"validation": 50, "test": 51}
VIEW_SEED = 1_000_000
RECALLS = np.linspace(0.01, 1, 100)
LEAST_RECALL = 0.8  # of a rule that may be chosen
RANKING_DRAWS = (
    200  # the first of the bootstrap's draws: a draw of a ranking costs as much as a hundred of a selection
)


class Rollouts:
    """One completion of each canvas of a split by one model, and all that grades need of it."""

    def __init__(self, folder: Path, split: str, canvases: int):
        generator = np.random.default_rng(CANVAS_SEEDS[split])
        drawn = [digits.task.draw_canvas(split, generator) for _ in range(canvases)]
        self.images = [image for image, _ in drawn]
        self.model, self.processor = lab.load(folder)
        self.completions = lab.sample(self.model, self.processor, self.images, seed=CANVAS_SEEDS[split])
        mask = lab.completion_mask(self.processor, self.completions)
        self.truth = lab.true_perception_tokens(self.processor, self.completions)
        texts = self.processor.batch_decode(self.completions, skip_special_tokens=True)
        right = [
            digits.task.boxes_the_sum(text, str(sum(shown))) for text, (_, shown) in zip(texts, drawn, strict=True)
        ]
        self.right = torch.tensor(right)
        # The gate passes rollouts that beat their group: with this reward, right sums.
        self.masks = {"all": mask, "right": mask & self.right.unsqueeze(1)}
        self.anchor = lab.log_distributions(self.model, self.processor, self.images, self.completions)

    def scores(self, views: list[Any]) -> measures.Scores:
        removed = lab.log_distributions(self.model, self.processor, views, self.completions)
        return measures.score_tokens(self.anchor, removed, self.completions)

    def rates(self, rule: tuple[str, float], scores: measures.Scores, rows: str, weights: np.ndarray) -> dict:
        mask = self.masks[rows]
        selected = measures.select(rule, scores, mask)
        return measures.rates(selected.numpy(), (self.truth & mask).numpy(), weights)

    def ranking(self, values: torch.Tensor, rows: str, weights: np.ndarray) -> dict[str, np.ndarray]:
        mask = self.masks[rows].numpy()
        row_of_token = np.nonzero(mask)[0]
        token_weights = weights[: 1 + RANKING_DRAWS, row_of_token]
        return measures.ranking(values.numpy()[mask], self.truth.numpy()[mask], token_weights)


def summarised(per_model: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    return {name: measures.summary(np.stack([one[name] for one in per_model])) for name in per_model[0]}


def rate_all(
    rollouts: list[Rollouts],
    scores: list[measures.Scores],
    rules: list[tuple[str, float]],
    rows: str,
    weights: np.ndarray,
) -> list[dict[str, Any]]:
    """Grades of some rules and the F1 that each gains over the first of them."""
    rated, first = [], []
    for rule in rules:
        grades = [one.rates(rule, given, rows, weights) for one, given in zip(rollouts, scores, strict=True)]
        first = first or [grade["f1"] for grade in grades]
        for grade, f1 in zip(grades, first, strict=True):
            grade["f1_gain"] = grade["f1"] - f1
        rated.append({"rule": list(rule), "words": measures.in_words(rule)} | summarised(grades))
    return rated


def grade_view(
    rollouts: list[Rollouts], kind: str, strength: float, rules: list[tuple[str, float]], weights: np.ndarray
) -> dict[str, Any]:
    """
    Every score and rule under the authors' views, for all rollouts and for those with a right sum; the main ones for all
    rollouts under another view.
    """
    images = measures.apply(kind, strength, rollouts[0].images, VIEW_SEED)
    scores = [one.scores(images) for one in rollouts]
    authors = (kind, strength) == DEFAULT_VIEW
    names = list(scores[0]) if authors else measures.MAIN_SCORES
    report: dict[str, Any] = {"kind": kind, "strength": strength}
    for rows in ("all", "right") if authors else ("all",):
        graded = {}
        for name in names:
            rankings = [one.ranking(given[name], rows, weights) for one, given in zip(rollouts, scores, strict=True)]
            curves = [ranking.pop("curve") for ranking in rankings]
            graded[name] = summarised(rankings)
            if authors:
                precision = np.mean([measures.on_grid(curve, RECALLS) for curve in curves], axis=0)
                graded[name]["precision_at_recalls"] = precision.round(4).tolist()
        report[rows] = {"scores": graded, "rules": rate_all(rollouts, scores, rules, rows, weights)}
    return report


def choose(rollouts: list[Rollouts]) -> dict[str, Any]:
    """Of each family the value of the best F1 on rollouts with a right sum, of those that keep enough recall; best family first."""
    images = measures.apply(*DEFAULT_VIEW, rollouts[0].images, VIEW_SEED)
    scores = [one.scores(images) for one in rollouts]
    once = measures.resampling_weights(len(images), draws=0)
    tried = defaultdict(list)
    for family, (_, values, _) in measures.FAMILIES.items():
        for value in values:
            rule = (family, value)
            entry: dict[str, Any] = {"rule": list(rule), "words": measures.in_words(rule)}
            for rows in ("right", "all"):
                [rated] = rate_all(rollouts, scores, [rule], rows, once)
                entry[rows] = {name: rated[name]["mean"] for name in ("precision", "recall", "f1")}
            tried[family].append(entry)

    def worth(entry: dict[str, Any]) -> tuple[bool, float]:
        return entry["right"]["recall"] >= LEAST_RECALL, entry["right"]["f1"]

    best = sorted((max(entries, key=worth) for entries in tried.values()), key=worth, reverse=True)
    return {"chosen": best, "tried": [entry for entries in tried.values() for entry in entries]}


def grade_group(folders: list[Path], chosen: list[tuple[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """All grades of the models in some folders, on test canvases."""
    rollouts = [Rollouts(folder, "test", options.canvases) for folder in folders]
    weights = measures.resampling_weights(options.canvases, options.draws)
    ratios = [(family, ratio) for family in ("top_relative_shift", "top_shift") for ratio in measures.RATIOS]
    everywhere = [measures.AUTHORS, *(rule for rule in chosen if rule[0] in measures.MAIN_FAMILIES)]
    under_authors_views = list(dict.fromkeys([*everywhere, *chosen, *ratios]))
    views = []
    for kind, strengths in measures.STRENGTHS.items():
        for strength in strengths[-2:] if options.smoke else strengths:
            rules = under_authors_views if (kind, strength) == DEFAULT_VIEW else everywhere
            views.append(grade_view(rollouts, kind, strength, rules, weights))
            print(f"  {kind} {strength:g}", flush=True, file=sys.stderr)
    share = {}
    for rows in ("all", "right"):
        share[rows] = [float(one.truth[one.masks[rows]].float().mean()) for one in rollouts]
    return {
        "sampled_accuracy": lab.mean_sd(float(one.right.float().mean()) for one in rollouts),
        "share_of_true_tokens": {rows: round(float(np.mean(values)), 4) for rows, values in share.items()},
        "views": views,
    }


def groups_of(options: argparse.Namespace) -> dict[str, list[Path]]:
    """The folders by the name of their group, the warm starts first: the choice is made on them."""
    groups = {START: [digits.warm_start(seed) for seed in options.seeds]}
    for text in options.models:
        name, _, pattern = text.partition("=")
        found = sorted(Path(folder) for folder in glob.glob(pattern))
        if not found:
            raise SystemExit(f"--models {text}: no such folder.")
        groups.setdefault(name, []).extend(found)
    return groups


def run(options: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "seeds": options.seeds, "canvases": options.canvases, "draws": options.draws, "ranking_draws": RANKING_DRAWS, "smoke": options.smoke,
        "canvas_seeds": CANVAS_SEEDS, "view_seed": VIEW_SEED, "least_recall": LEAST_RECALL,
        "recalls": RECALLS.round(2).tolist(), "strengths": measures.STRENGTHS,
        "rules": {family: values for family, (_, values, _) in measures.FAMILIES.items()},
    }  # fmt: skip
    settings = json.loads(json.dumps(settings))  # tuples as the file has them
    versions = {name: version(name) for name in ("trl-cppo", "torch", "torchvision", "transformers", "scikit-learn")}
    report = read_json(options.output) if options.output else {}
    if report.get("settings") != settings or report.get("versions") != versions:
        report = {"settings": settings, "versions": versions, "groups": {}}
    for name, folders in groups_of(options).items():
        names = ["/".join(folder.parts[-2:]) for folder in folders]
        if report["groups"].get(name, {}).get("models") == names:
            continue
        print(name, flush=True, file=sys.stderr)
        if name == START:
            report["choice"] = choose([Rollouts(folder, "validation", options.canvases) for folder in folders])
        chosen = [tuple(entry["rule"]) for entry in report["choice"]["chosen"]]
        grades = grade_group(folders, chosen, options)
        report["groups"][name] = {"models": names, **grades}
        if options.output:
            write_json(options.output, report)
    return report


def main() -> None:
    parser = BenchmarkParser("detection", __doc__, smoke="one warm start, 40 canvases, two strengths a view")
    parser.add_argument(
        "--models", nargs="*", default=[], metavar="NAME=FOLDERS", help="a group of trained models, given by a pattern"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the warm starts")
    parser.add_argument("--canvases", type=int, default=500, help="of each split, one rollout each")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    options = parser.parse_args()
    if parser.show(options, tables, lambda report: draw(report, PICTURES / "detection.svg")):
        return
    if options.smoke:
        options.seeds, options.canvases, options.draws = [0], 40, 50
        print(json.dumps(run(options)))
    else:
        run(options)


if __name__ == "__main__":
    main()

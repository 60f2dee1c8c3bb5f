# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of the gradient benchmark, from its JSON alone."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from trl_cppo.run.card.markdown import table

from ..lib import digits_lab as lab
from ..lib import pictures
from .effects import EFFECTS

Batch = dict[str, Any]
SHOWN = {  # part: its label in the picture
    "grpo": "GRPO",
    "cpl": "CPL",
    "anchor": "· through the anchor",
    "positive": "· through the positive view",
    "negative": "· through the negative view",
    "cpl: tokens with d⁺ ≥ d⁻": "CPL, tokens with d⁺ ≥ d⁻",
    "cpl: tokens with d⁺ < d⁻": "CPL, tokens with d⁺ < d⁻",
}
PROXIES = {"logps": "at the log-probs", "metric": "there, times 1 − p (`cpl/gradient_ratio`)"}
SCORINGS = ("grpo", "anchor", "positive", "negative")


def all_batches(report: dict[str, Any]) -> list[Batch]:
    return [batch for entry in report["warm_starts"].values() for batch in entry["batches"]]


def _cell(values: Iterable[float], form: str = "{:+.3f}") -> str:
    statistics = lab.mean_sd(values)
    return f"{form} ± {form.replace('+', '')}".format(statistics["mean"], statistics["sd"])


def parts_table(report: dict[str, Any]) -> str:
    batches = all_batches(report)
    header = ["gradient of", "norm ÷ GRPO's", "cosine with GRPO's", *EFFECTS.values(), "signal"]

    def row(name: str) -> list[str]:
        parts = [batch["parts"][name] for batch in batches]
        signal = [entry["agreement"][name] for entry in report["warm_starts"].values()]
        return [
            name,
            _cell((part["ratio"] for part in parts), "{:.3g}"),
            _cell((part["cosine"] for part in parts), "{:+.2f}"),
            *(_cell((part["effects"][effect] for part in parts), "{:+.2f}") for effect in EFFECTS),
            _cell(signal, "{:.2f}"),
        ]

    return table(map(row, batches[0]["parts"]), header)


def claims_table(report: dict[str, Any]) -> str:
    """The effect of a step of length 1 on the log-prob of rewarded perception tokens: where it was made, and held out."""
    header = ["step against the gradient of", "on the batch itself", "on held-out canvases"]

    def cell(name: str, effect: str) -> str:
        values = {
            (int(warm_start), place): batch["parts"][name]["effects"][effect]
            for warm_start, entry in report["warm_starts"].items()
            for place, batch in enumerate(entry["batches"])
        }
        return "{:+.2f} ({:+.2f} … {:+.2f})".format(*lab.interval(values))

    return table(([name, cell(name, "same_batch"), cell(name, "perception")] for name in SCORINGS), header)


def step_table(report: dict[str, Any], coef: float = 0.01) -> str:
    """What one plain gradient step of learning rate 1 would change: GRPO's, and λ times each part of the CPL."""
    header = ["step", *(EFFECTS[effect] for effect in ("perception", "entropy", "reward", "shift"))]

    def row(name: str) -> list[str]:
        parts = [batch["parts"][name] for batch in all_batches(report)]
        scale = 1.0 if name == "grpo" else coef
        cells = [
            _cell((scale * part["norm"] * part["effects"][effect] for part in parts), "{:+.3f}")
            for effect in ("perception", "entropy", "reward", "shift")
        ]
        return [name if name == "grpo" else f"{coef} · {name}", *cells]

    return table(map(row, SHOWN), header)


def tokens_table(report: dict[str, Any]) -> str:
    batches = all_batches(report)
    rows = [
        [name, _cell((100 * batch["selected"][name] for batch in batches), "{:.1f}") + " %"]
        for name in batches[0]["selected"]
    ]
    return table(rows, ["of the selected tokens", "share"])


def follows(ratios: list[dict[str, float]], proxy: str) -> dict[str, float]:
    """How a proxy of the ratio follows the ratio at the weights: their quotient, and the correlation of their logarithms."""
    quotients = lab.mean_sd(entry[proxy] / entry["weights"] for entry in ratios)
    logs = np.log([[entry[name] for entry in ratios] for name in (proxy, "weights")])
    return quotients | {"correlation": float(np.corrcoef(logs)[0, 1]) if len(ratios) > 2 else math.nan}


def proxies_table(report: dict[str, Any]) -> str:
    groups = {"batches of the warm starts": [batch["ratios"] for batch in all_batches(report)]}
    groups |= {f"training, λ = {coef}": track for coef, track in report["training"].items()}
    rows = []
    for name, ratios in groups.items():
        for proxy, label in PROXIES.items():
            found = follows(ratios, proxy)
            quotient = f"{found['mean']:.2f} ± {found['sd']:.2f}"
            rows.append([name, str(len(ratios)), label, quotient, f"{found['correlation']:.2f}"])
    return table(rows, ["measured on", "times", "proxy", "proxy ÷ ratio at the weights", "correlation of logs"])


def training_table(report: dict[str, Any], window: int = 5) -> str:
    """The runs in windows of some measurements: geometric mean of the ratios, mean of the reward."""
    rows = []
    for coef, track in report["training"].items():
        for start in range(0, len(track), window):
            part = track[start : start + window]
            names = ("weights", *PROXIES)
            ratios = [f"{math.exp(np.mean(np.log([entry[name] for entry in part]))):.2f}" for name in names]
            reward = f"{np.mean([entry['reward'] for entry in part]):.3f}"
            rows.append([coef, f"{part[0]['step']}–{part[-1]['step']}", *ratios, reward])
    return table(rows, ["λ", "steps", "λ‖CPL‖ ÷ ‖GRPO‖ at the weights", *PROXIES.values(), "reward"])


def tables(report: dict[str, Any]) -> str:
    settings, batches = report["settings"], all_batches(report)
    accuracies = [entry["sampled_accuracy"] for entry in report["warm_starts"].values()]
    error = max(batch["error_of_sum"] for batch in batches)
    sections = [
        f"Mean ± sd over {len(batches)} batches of {len(accuracies)} warm starts (sampled accuracy "
        f"{', '.join(f'{value:.3f}' for value in accuracies)}); 32 prompts × 8 rollouts a batch, {settings['canvases']} held-out "
        f"canvases × {settings['samples']} completions. Effects: change in first order for a step of length 1 against the "
        f"gradient. Anchor, positive and negative add up to the whole to {error:.0e}. Signal: the mean product of two batches' "
        "gradients over the mean square of one, mean ± sd over warm starts.",
        parts_table(report),
        "Log-prob of the rewarded perception tokens, with two-level 95 % bootstrap intervals over warm starts and batches:",
        claims_table(report),
        "One plain gradient step:",
        step_table(report),
        tokens_table(report),
        proxies_table(report),
        training_table(report),
    ]
    return "\n\n".join(sections)


def picture(report: dict[str, Any], path: Path) -> None:
    """Bars for the parts, a dot for each warm start: norms, and what a step does to rewarded perception tokens."""
    figure, [[norms, own, held_out]] = pictures.new_figure(3, width=3.9, height=3.4)
    places = np.arange(len(SHOWN))[::-1]

    def bars(axes: Any, figure_of: Callable[[dict[str, Any]], float], color: str, title: str) -> None:
        means = np.array(
            [
                [np.mean([figure_of(batch["parts"][name]) for batch in entry["batches"]]) for name in SHOWN]
                for entry in report["warm_starts"].values()
            ]
        )
        axes.barh(places, means.mean(axis=0), color=color, height=0.6)
        for values in means:
            axes.plot(
                values, places, "o", color=pictures.GREY, markersize=5, markeredgecolor="white", markeredgewidth=0.7
            )
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(places, SHOWN.values() if axes is norms else [])
        axes.tick_params(axis="y", length=0)

    bars(norms, lambda part: part["ratio"], pictures.COLORS[0], "gradient's norm")
    bars(own, lambda part: part["effects"]["same_batch"], pictures.COLORS[1], "log-prob, the batch itself")
    bars(held_out, lambda part: part["effects"]["perception"], pictures.COLORS[2], "log-prob, held-out canvases")
    norms.set_xlabel("relative to GRPO's, at λ = 1")
    for axes in (own, held_out):
        axes.axvline(0, color=pictures.GREY, linewidth=1)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("change for a step of length 1, nats")
    pictures.save(figure, path)

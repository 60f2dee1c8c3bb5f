# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The tables and the picture of a report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_cppo.run.card.markdown import table

from ..lib.pictures import COLORS, GREY, new_figure, save
from .arms import ARMS, AT_ONCE, GRPO

GIB = 2**30
LABELS = {name: arm.label for part in ARMS.values() for name, arm in part.items()}
HEAD = ["", "seconds", "/ GRPO", "peak, GiB", "/ GRPO", "tokens read", "tokens / s", "attention"]
SMOKE = "A SMOKE RUN of a small model, which tells nothing of a GPU's speed."
DRAWN = {
    "grpo_packed": "v",
    "cppo_packed_0.5": "o",
    "cppo_packed_0.5_one": "d",
    "cppo_plain_0.5": "s",
    "every_row": "^",
}


def tables(report: dict[str, Any]) -> str:
    """Markdown; what is not as it should be comes first."""
    warnings = [report["unmet"], SMOKE if report["smoke"] else ""]
    parts = [*filter(None, warnings), about(report), correctness_table(report)]
    for prompt, completion in _measured(report):
        parts.append(f"Prompt {prompt:,}, completions {completion:,}:")
        parts.append(table(_lines(report, prompt, completion), HEAD))
    skipped = [
        f"{LABELS[name]} at ({point['prompt']}, {point['completion']})"
        for point in report["points"]
        for name in point["skipped"]
    ]
    return "\n\n".join(parts + ([f"Not measured, for want of time: {'; '.join(skipped)}."] if skipped else []))


def _measured(report: dict[str, Any]) -> list[tuple[int, int]]:
    """The lengths of prompt and completion at which anything was."""
    return list(dict.fromkeys((point["prompt"], point["completion"]) for point in report["points"] if point["arms"]))


def about(report: dict[str, Any]) -> str:
    """What was measured, in two sentences."""
    device, layers = report["device"], report["layers"]
    facts = [f"{device['gib']} GiB, CUDA {device['cuda']}, driver {device['driver']}"] if device["gib"] else []
    facts += [f"{name} {number}" for name, number in report["versions"].items()]
    depth = ", ".join(f"{layers['measured'][kind]} of {layers['whole'][kind]} {kind}" for kind in layers["whole"])
    weights = f"{report['weights']['bytes'] / GIB:.1f} GiB of {report['weights']['dtype']} weights"
    return (
        f"{device['name']} ({'; '.join(facts)}); TRL's head in {report['head']}. {report['model']}'s shape{' made small' * report['smoke']}, "
        f"layers: {depth}; {weights}, and as much of gradients."
    )


def correctness_table(report: dict[str, Any]) -> str:
    """The largest errors of each type and layout over the families, beside what is allowed; and the families that did not run."""
    rows = [row for row in report["correctness"] if "error" not in row]
    lines = []
    for dtype, layout in dict.fromkeys((row["dtype"], row["layout"]) for row in rows):
        same = [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)]
        figures = [
            f"{max(row[kind] for row in same):.1e} ({report['allowed'][dtype][kind]:g})"
            for kind in ("scores", "gradients")
        ]
        lines.append([dtype, layout, len({row["family"] for row in same}), *figures])
    head = [
        "against the CPU in float32",
        "rows",
        "families",
        "scores, nats (allowed)",
        "gradients, relative (allowed)",
    ]
    failed = [f"{row['family']} did not run: {row['error']}." for row in report["correctness"] if "error" in row]
    return "\n\n".join([table(lines, head), *failed])


def _lines(report: dict[str, Any], prompt: int, completion: int) -> Iterator[list[str]]:
    """A line an arm; GRPO's once."""
    seen = set()
    for point in report["points"]:
        if (point["prompt"], point["completion"]) != (prompt, completion):
            continue
        for name, figures in point["arms"].items():
            if name in seen:
                continue
            seen.add(name)
            if "seconds" not in figures:
                yield [LABELS[name], figures.get("error", "out of memory"), *[""] * (len(HEAD) - 2)]
                continue
            peak = figures["peak_bytes"]
            yield [
                LABELS[name], f"{figures['seconds']:.3f}", _text(ratio(point, name, "seconds"), "{:.2f}"),
                _text(peak and peak / GIB, "{:.1f}"), _text(ratio(point, name, "peak_bytes"), "{:.2f}"),
                f"{figures['tokens']:,}", f"{figures['tokens_per_second']:,.0f}", ", ".join(figures["attention"]),
            ]  # fmt: skip


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def ratio(point: dict[str, Any], name: str, figure: str) -> float | None:
    """To GRPO's in the same rounds; `None` where one of the two is not known."""
    base = AT_ONCE + GRPO if name.startswith(AT_ONCE) else GRPO
    own, grpo = (point["arms"].get(arm, {}).get(figure) for arm in (name, base))
    return None if own is None or grpo is None else own / grpo


def _styles() -> Iterator[tuple[str, dict[str, str]]]:
    """The arms that are drawn, each beside its twin whose vision tower attends at once, if it has one."""
    for (arm, marker), color in zip(DRAWN.items(), COLORS, strict=False):
        for name, fill in ((arm, "none"), (AT_ONCE + arm, color)):
            if name in LABELS:
                yield name, {"color": color, "marker": marker, "markerfacecolor": fill}


def draw(report: dict[str, Any], path: Path) -> None:
    """Ratios to GRPO's update at each point: seconds on the left, peaks on the right; filled where the vision tower attends at once."""
    if report["smoke"]:
        raise SystemExit("This is the report of a smoke run, of which no picture is drawn.")
    figure, [panels] = new_figure(columns=2, height=4.4)
    places = _measured(report)
    for panel, kind, title in zip(panels, ("seconds", "peak_bytes"), ("Seconds", "Peak memory"), strict=True):
        panel.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="GRPOTrainer")
        for name, style in _styles():
            found = {
                places.index((point["prompt"], point["completion"])): ratio(point, name, kind)
                for point in report["points"]
                if name in point["arms"]
            }
            known = {place: value for place, value in found.items() if value is not None}
            panel.plot(known.keys(), known.values(), linestyle="", label=LABELS[name], **style)
        panel.set_xticks(range(len(places)), [f"{prompt}, {completion}" for prompt, completion in places])
        panel.set(title=f"{title} of an update / GRPO's", xlabel="prompt, completion", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(report["device"]["name"], color=GREY, fontsize=11)
    save(figure, path)

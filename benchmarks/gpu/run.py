# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: is the device right, how many layers fit, what does an update take."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from ..cost.scale import small_config
from ..lib.command import read_json, write_json
from ..lib.shapes import Row, depth_of, load_config, with_depth
from .arms import ARMS, GROUP, ROWS, SMOKE, head_of, prompt_tokens
from .correctness import ALLOWED, PACKED, check_families
from .machine import Machine, installed_versions, unmet_requirements
from .updates import Updates, build, find_depth, measure_point, weight_bytes

MODEL = "qwen2_5_vl_3b"
FEW = ["qwen2_5_vl", "idefics3", "llava_next"]  # pixels by patch, by row and by tile


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report, written after each part where `options.output` is given; an interrupted one is gone on with."""
    start = time.monotonic()
    machine = Machine("cpu" if options.smoke and not torch.cuda.is_available() else "cuda")
    head = _head(options, machine)
    report = read_json(options.output) if options.output else {}
    points = list(_points(options.smoke))
    if {name: report.get(name) for name in head} != head or _is_complete(report, points):
        report = {
            **head,
            "correctness": check_families(machine.device, FEW if options.smoke else PACKED),
            "points": [],
        }
        _keep(options, report)
    updates, config = Updates(machine), small_config() if options.smoke else load_config(MODEL)
    dtype = torch.float32 if options.smoke else torch.bfloat16
    if "layers" not in report:
        longest = max((row for _, row in points), key=lambda row: prompt_tokens(row) + row.completion)
        layers = depth_of(find_depth(updates, config, longest, dtype))
        report["layers"] = {"measured": asdict(layers), "whole": asdict(depth_of(config))}
    config = with_depth(config, type(depth_of(config))(**report["layers"]["measured"]))
    model = build(config, machine.device, dtype)
    report["weights"] = {"dtype": str(dtype).removeprefix("torch."), "bytes": weight_bytes(model)}
    done = [point for point in report["points"] if not point["skipped"]]
    report["points"] = done
    for part, row in points:
        name = {"arms_of": part, "prompt": prompt_tokens(row), "completion": row.completion, "group": GROUP}
        if not any(name.items() <= point.items() for point in done):
            measured = measure_point(
                updates,
                model,
                row,
                ARMS[part],
                options.repeats,
                lambda: 60 * options.minutes - (time.monotonic() - start),
            )
            report["points"].append(name | measured)
            _keep(options, report)
    report["minutes"] = round((time.monotonic() - start) / 60, 2)
    _keep(options, report)
    return report


def _points(smoke: bool) -> Iterator[tuple[str, Row]]:
    """The main arms at all points, then the others."""
    yield from ((part, row) for part in ARMS for row in (SMOKE if smoke else ROWS))


def _is_complete(report: dict[str, Any], points: list[tuple[str, Row]]) -> bool:
    done = report.get("points", [])
    return len(done) == len(points) and not any(point["skipped"] for point in done)


def _head(options: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """What must be the same for a run to be gone on with."""
    return {
        "smoke": options.smoke,
        "device": machine.facts(),
        "versions": installed_versions(),
        "unmet": unmet_requirements(),
        "head": head_of(machine.device),
        "model": MODEL,
        "repeats": options.repeats,
        "allowed": {str(dtype).removeprefix("torch."): asdict(errors) for dtype, errors in ALLOWED.items()},
    }


def _keep(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.output:
        write_json(options.output, report)

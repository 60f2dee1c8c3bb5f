# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Where the gradient of the Contrastive Perception Loss goes: its parts against GRPO's, on batches of the embedded digits run.

    python -m benchmarks.gradients              # into benchmarks/results/gradients/gradients.json, about 8 minutes of one core
    python -m benchmarks.gradients --tables     # Markdown tables from the file
    python -m benchmarks.gradients --picture    # docs/results/gradients.svg from the file

Of each part: its norm over that of GRPO's gradient, its cosine with it, and what a step of length 1 against it changes in first order on
held-out canvases. Then the ratio of the two norms along short training runs, and how well the ratio at the log-probabilities tells it.
Warm starts and runs that are in the file are not repeated.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..lib.command import PICTURES, BenchmarkParser, read_json, write_json
from .measure import Settings, measure_training, measure_warm_start
from .report import picture, tables


def rounded(value: Any) -> Any:
    """Five significant digits of every float in a report."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def run(settings: Settings, output: Path | None) -> dict[str, Any]:
    """All that is missing in the file; written after each warm start and each run."""
    fresh = {"settings": rounded(asdict(settings)), "warm_starts": {}, "training": {}}
    fresh["versions"] = {name: version(name) for name in ("trl-cppo", "trl", "transformers", "torch")}
    report = (read_json(output) if output else {}) or fresh
    if report["settings"] != fresh["settings"]:
        raise SystemExit(f"{output} holds a run with {report['settings']}: use these settings, or another file.")
    jobs = [("warm_starts", seed, measure_warm_start) for seed in range(settings.warm_starts)]
    jobs += [("training", coef, measure_training) for coef in settings.coefs]
    for group, key, measure in jobs:
        if str(key) not in report[group]:
            report[group][str(key)] = rounded(measure(key, settings))
            if output:
                write_json(output, report)
    return report


def main() -> None:
    parser = BenchmarkParser("gradients", __doc__, smoke="one batch and four steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if parser.show(options, tables, lambda report: picture(report, PICTURES / "gradients.svg")):
        return
    if options.smoke:
        short = Settings(warm_starts=1, batches=1, canvases=20, samples=2, steps=4, coefs=(0.2,))
        print(json.dumps(run(short, options.output)))
    else:
        run(Settings(), options.output)


if __name__ == "__main__":
    main()

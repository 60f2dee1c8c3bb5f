# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Is CPPO right on this GPU, and what does its update take there? At most eight minutes on one GPU of 80 GB; nothing is downloaded.

    python -m benchmarks.gpu                      # tables, and gpu.json among the results
    python -m benchmarks.gpu --tables --picture   # tables and gpu.svg from that file, without a run
    python -m benchmarks.gpu --smoke              # the same code on a CPU, small: is it ready for a GPU?

First, tiny models of all families that are packed: log-probs, entropies and gradients on the GPU, in float32 (without TF32) and
in bfloat16, packed and in plain rows, k3 and exact KL, against plain rows on the CPU in float32. What is wrong ends the run.

Then, random bfloat16 weights in the shape of Qwen2.5-VL-3B, with gradient checkpointing as GRPOConfig has it, and with as many
quarters of the layers as fit: loss and backward of the 8 rollouts of one prompt, as one micro-batch, image processing of the views
included. Arms take turns after an update each that is not timed; seconds are medians between CUDA events. Peaks are above the
weights and their gradients. The main arms come first at all lengths, then the others; after `--minutes` what is left is skipped
and named. The file is written after each point, and an interrupted call goes on where it stopped; a finished one is measured anew.
"""

import sys

import torch

from ..lib.command import PICTURES, BenchmarkParser, run_and_print
from .machine import unmet_requirements


def main() -> None:
    parser = BenchmarkParser("gpu", __doc__, smoke="three families, a small model, one short point, one repeat")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="timed updates of each arm at each point")
    options = parser.parse_args()
    if not (options.tables or options.picture or options.smoke or torch.cuda.is_available()):
        parser.error("PyTorch finds no GPU here. On a CPU, --smoke runs the same code small.")
    unmet = unmet_requirements()
    if unmet:
        print(unmet, file=sys.stderr)
    try:
        from .report import draw, tables
        from .run import run
    except ImportError as error:
        raise SystemExit(f"trl-cppo does not run on what is installed: {error}") from error
    if options.smoke:
        options.repeats = 1
    if not parser.show(options, tables, lambda report: draw(report, PICTURES / "gpu.svg")):
        run_and_print(options, run, tables)


if __name__ == "__main__":
    main()

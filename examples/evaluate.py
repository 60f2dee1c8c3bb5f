# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["trl-cppo[digits,math,peft]"]
# ///
r"""
Evaluate a vision-language model: greedy accuracy, avg@N, pass@N, each with an interval; compare two models.

The embedded task (any machine, without the Hub), after `accelerate launch examples/train_cppo.py`:

    python examples/evaluate.py --model cppo-digits --dataset digits

A model and a data set (Hub ids or local folders; columns `prompt`, `image` or `images`, `solution`), on eight GPUs;
`data/geometry3k` is what prepare_dataset.py makes:

    accelerate launch --num_processes 8 examples/evaluate.py \
        --model Qwen2.5-VL-3B-CPPO --dataset data/geometry3k --split test --num_samples 8

Two evaluations of the same questions:

    python examples/evaluate.py --compare before.json after.json

The same command again goes on where an interrupted one stopped. `--config file.yaml` sets several flags.

The same as `trl-cppo evaluate`, whose code is in trl_cppo/commands/evaluate.
"""

import sys

from trl_cppo.commands.line import run_command


def main(arguments: list[str] | None = None) -> None:
    run_command("evaluate", sys.argv[1:] if arguments is None else arguments, "evaluate.py")


if __name__ == "__main__":
    main()

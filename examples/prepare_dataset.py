# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["trl-cppo"]
# ///
r"""
Bring hiyouga/geometry3k, TIGER-Lab/ViRL39K, lmms-lab/multimodal-open-r1-8k-verified or a data set of their columns into
what CPPOTrainer and GRPOTrainer read.

    python examples/prepare_dataset.py --dataset hiyouga/geometry3k --output data/geometry3k \
        --model Qwen/Qwen2.5-VL-3B-Instruct --max_prompt_length 512

Or files of your own: jsonl, json, csv, tsv, parquet, a folder of photos with metadata (docs/data.md).

    python examples/prepare_dataset.py mine.jsonl --question q --answer a --image path --output data/mine

The output is a folder of parquet files for `load_dataset(folder)` and `examples/train_cppo.py --dataset_name folder`. The
same command again does nothing.

The same as `trl-cppo prepare`, whose code is in trl_cppo/commands/prepare.
"""

import sys

from trl_cppo.commands.line import run_command


def main(arguments: list[str] | None = None) -> None:
    run_command("prepare", sys.argv[1:] if arguments is None else arguments, "prepare_dataset.py")


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0

# /// script
# dependencies = ["trl-cppo[digits,math,peft]"]
# ///
r"""
Train a vision-language model with CPPO.

Without arguments: a tiny Qwen2.5-VL on real handwritten digits, on any machine, in a few minutes, without the Hub.

    accelerate launch examples/train_cppo.py

With a model and a data set (Hub ids or local folders; columns `prompt`, `image` or `images`, `solution`):

    python examples/prepare_dataset.py --dataset hiyouga/geometry3k --output data/geometry3k \
        --model Qwen/Qwen2.5-VL-3B-Instruct --max_prompt_length 512
    accelerate launch examples/train_cppo.py \
        --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct --dataset_name data/geometry3k \
        --output_dir Qwen2.5-VL-3B-CPPO \
        --learning_rate 1e-6 --max_completion_length 2048 --num_generations 8

Every field of CPPOConfig, TRL's ScriptArguments and ModelConfig is a flag, and `--config file.yaml` sets several.

The same as `trl-cppo train`, whose code is in trl_cppo/commands/train.
"""

import sys

from trl_cppo.commands.line import run_command


def main(arguments: list[str] | None = None) -> None:
    run_command("train", sys.argv[1:] if arguments is None else arguments, "train_cppo.py")


if __name__ == "__main__":
    main()

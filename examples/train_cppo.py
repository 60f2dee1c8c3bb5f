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
"""

import functools
import json
import logging
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, IterableDataset
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import TrainerCallback
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_cppo import CPPOConfig, CPPOTrainer, limit_pixels
from trl_cppo.commands.loading import (
    MATH_REWARDS,
    RewardCountError,
    check_folder,
    leave,
    load_rewards,
    load_split,
    stop,
)
from trl_cppo.rewards import boxed_accuracy_reward, think_boxed_format_reward
from trl_cppo.run.card import CardExample
from trl_cppo.run.card.markdown import is_hub_id
from trl_cppo.run.card.plotting import metric_history

DIGITS_CONFIG = Path(__file__).parent / "configs" / "digits.yaml"


@dataclass
class CPPOScriptArguments(ScriptArguments):
    """TRL's script arguments and the choice of rewards."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards: boxed_accuracy_reward, think_boxed_format_reward, TRL's accuracy_reward, a file and its function such "
            "as ./my_rewards.py:my_reward, or a dotted import path. Default: 0.9 * boxed_accuracy_reward + 0.1 * think_boxed_format_reward, "
            "the authors' mixture."
        },
    )
    eval_canvases: int = field(
        default=500, metadata={"help": "Held-out canvases that the embedded digits run measures its accuracy on."}
    )
    eval_every: int = field(
        default=20, metadata={"help": "Steps between two measurements of the embedded digits run."}
    )


@dataclass
class Job:
    """What to train on what."""

    model: str
    train_dataset: Dataset | IterableDataset
    eval_dataset: Dataset | IterableDataset | None
    reward_funcs: list[Any]
    reward_weights: list[float] | None
    callbacks: list[TrainerCallback]
    card_example: CardExample | None = None


def parse() -> tuple[CPPOScriptArguments, CPPOConfig, ModelConfig]:
    parser = TrlParser((CPPOScriptArguments, CPPOConfig, ModelConfig))
    # Looked at alone first: CPPOConfig's own defaults (bf16) raise on a machine without a GPU.
    look = TrlParser((CPPOScriptArguments, ModelConfig), add_help=False)
    script_args, model_args, *_ = look.parse_args_and_config(return_remaining_strings=True)
    if is_embedded(script_args, model_args):
        parser.set_defaults_with_config(**yaml.safe_load(DIGITS_CONFIG.read_text()))  # below the user's file and flags
    return parser.parse_args_and_config()


def is_embedded(script_args: CPPOScriptArguments, model_args: ModelConfig) -> bool:
    """Whether this is the embedded digits run: neither a model nor a data set is given."""
    return model_args.model_name_or_path is None and script_args.dataset_name is None


def job_from_arguments(script_args: CPPOScriptArguments, training_args: CPPOConfig, model_args: ModelConfig) -> Job:
    for flag, value in [
        ("--model_name_or_path", model_args.model_name_or_path),
        ("--dataset_name", script_args.dataset_name),
    ]:
        if value is None:
            raise ValueError(
                f"{flag} is missing. Give a model and a data set, or neither for the embedded digits run."
            )
    check_folder("--model_name_or_path", model_args.model_name_or_path)
    functions, weights = load_rewards(script_args.reward_funcs)
    graded = any(function in MATH_REWARDS.values() for function in functions)
    required = ("prompt", "solution") if graded else ("prompt",)
    load = functools.partial(
        load_split,
        script_args.dataset_name,
        required=required,
        config=script_args.dataset_config,
        streaming=script_args.dataset_streaming,
        graded=boxed_accuracy_reward in functions,
    )
    train_dataset = load(script_args.dataset_train_split)
    eval_dataset = load(script_args.dataset_test_split) if training_args.eval_strategy != "no" else None
    return Job(model_args.model_name_or_path, train_dataset, eval_dataset, functions, weights, [])


def digits_job(script_args: CPPOScriptArguments, training_args: CPPOConfig) -> Job:
    from trl_cppo import digits

    with training_args.main_process_first(desc="warm start"):
        model = digits.warm_start(seed=0)
    held_out = digits.make_dataset("held_out", script_args.eval_canvases, seed=1)
    if training_args.max_pixels or training_args.min_pixels:  # measured on the images that are trained on
        limit = functools.partial(
            limit_pixels, max_pixels=training_args.max_pixels, min_pixels=training_args.min_pixels
        )
        held_out = held_out.map(lambda row: {"image": limit(row["image"])})
    return Job(
        model=str(model),
        train_dataset=digits.make_dataset("rl", 4000, seed=training_args.seed),
        eval_dataset=held_out if training_args.eval_strategy != "no" else None,
        reward_funcs=[digits.sum_reward, think_boxed_format_reward],
        reward_weights=[0.9, 0.1],
        callbacks=[digits.HeldOutAccuracy(held_out, every=script_args.eval_every)],
        card_example=CardExample(held_out[0]["image"], digits.task.PROMPT),
    )


def model_init_kwargs(training_args: CPPOConfig, model_args: ModelConfig) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def make_trainer(job: Job, training_args: CPPOConfig, model_args: ModelConfig) -> CPPOTrainer:
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    training_args.reward_weights = training_args.reward_weights or job.reward_weights
    return CPPOTrainer(
        model=job.model,
        reward_funcs=job.reward_funcs,
        args=training_args,
        train_dataset=job.train_dataset,
        eval_dataset=job.eval_dataset,
        callbacks=job.callbacks,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def write_metrics(trainer: CPPOTrainer) -> None:
    """`metrics.json` into the output folder. No clock is in it: equal runs give equal files."""
    args = trainer.args
    history = metric_history(trainer.state.log_history)
    settings = ["seed", "max_steps", "learning_rate", "num_generations", "cpl_coef", "cpl_temperature"]
    settings += ["cpl_divergence", "cpl_reduction", "perception_token_ratio", "perception_score", "gate_by_advantage"]
    settings += [
        "beta",
        "min_entropy_shift",
        "cpl_max_gradient_ratio",
        "information_preserving",
        "information_removing",
        "max_pixels",
        "min_pixels",
    ]
    report = {
        "steps": trainer.state.global_step,
        "settings": {name: getattr(args, name) for name in settings},
        "history": history,
    }
    if "held_out_accuracy" in history:
        values = [value for _, value in history["held_out_accuracy"]]
        report["held_out_accuracy"] = {"before": values[0], "after": values[-1]}
    output = Path(args.output_dir)
    (output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")


def show_messages() -> None:
    """What the package tells of a run besides warnings, such as the tokens of the longest prompt: once, on stderr."""
    ours = logging.getLogger("trl_cppo")
    if os.environ.get("RANK", "0") == "0" and not ours.handlers:
        ours.setLevel(logging.INFO)
        ours.addHandler(logging.StreamHandler())


def main() -> None:
    show_messages()
    try:
        script_args, training_args, model_args = parse()
        checkpoint = training_args.resume_from_checkpoint or ""
        if checkpoint.lower() == "true":  # the last complete one in the output folder
            training_args.resume_from_checkpoint = True
        elif checkpoint and not Path(checkpoint).is_dir():
            raise FileNotFoundError(f"--resume_from_checkpoint: there is no folder {checkpoint}.")
        if is_embedded(script_args, model_args):
            job = digits_job(script_args, training_args)
        else:
            job = job_from_arguments(script_args, training_args, model_args)
        trainer = make_trainer(job, training_args, model_args)
        trainer.check_data()
    except (ValueError, OSError, ImportError, AttributeError, NotImplementedError) as error:
        stop("train_cppo.py", error)
    trainer.card_example = job.card_example
    if is_hub_id(script_args.dataset_name):
        trainer.card_dataset = script_args.dataset_name
    try:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except RewardCountError as error:
        stop("train_cppo.py", error)

    trainer.save_model(training_args.output_dir)
    if trainer.accelerator.is_main_process:
        write_metrics(trainer)
    shown = "metrics.json and training.png"
    if find_spec("matplotlib") is None:
        shown = 'metrics.json (no training.png: it needs matplotlib, pip install "trl-cppo[digits]")'
    trainer.accelerator.print(f"Model, card, {shown} are in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    leave(trainer.accelerator.num_processes, trainer.accelerator.device.type)


if __name__ == "__main__":
    record(main)()  # torchrun's page then ends with the error that stopped a run

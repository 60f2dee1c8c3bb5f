# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What to train on what."""

import functools
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import TrainerCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from ...config import CPPOConfig
from ...method.image_size import limit_pixels
from ...rewards import boxed_accuracy_reward, think_boxed_format_reward
from ...run.card import CardExample
from ...trainer import CPPOTrainer
from ..loading import MATH_REWARDS, check_folder, check_parameters, load_rewards, load_split
from .arguments import CPPOScriptArguments


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
    card_held_out: list[CardExample] = field(default_factory=list)
    card_base: str | None = None


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
    if train_dataset.column_names is not None:  # of a stream they may not be known
        check_parameters(functions, train_dataset.column_names)
    eval_dataset = load(script_args.dataset_test_split) if training_args.eval_strategy != "no" else None
    return Job(model_args.model_name_or_path, train_dataset, eval_dataset, functions, weights, [])


def digits_job(script_args: CPPOScriptArguments, training_args: CPPOConfig) -> Job:
    from ... import digits

    with training_args.main_process_first(desc="warm start"):
        model = digits.warm_start(seed=0)
    held_out = digits.make_dataset("held_out", script_args.eval_canvases, seed=1)
    if training_args.max_pixels or training_args.min_pixels:  # measured on the images that are trained on
        limit = functools.partial(
            limit_pixels, max_pixels=training_args.max_pixels, min_pixels=training_args.min_pixels
        )
        held_out = held_out.map(lambda row: {"image": limit(row["image"])})
    rows = held_out.select(range(min(digits.evaluation.LOGGED, len(held_out))))
    examples = [CardExample(row["image"], digits.task.PROMPT, row["solution"]) for row in rows]
    return Job(
        model=str(model),
        train_dataset=digits.make_dataset("rl", 4000, seed=training_args.seed),
        eval_dataset=held_out if training_args.eval_strategy != "no" else None,
        reward_funcs=[digits.sum_reward, think_boxed_format_reward],
        reward_weights=[0.9, 0.1],
        callbacks=[digits.HeldOutAccuracy(held_out, every=script_args.eval_every, show=False)],
        card_example=examples[0],
        card_held_out=examples,
        card_base=f"a tiny Qwen2.5-VL (0.4 M parameters; trl_cppo.digits.warm_start made it in {digits.pretraining.STEPS} supervised "
        "steps on handwritten digits, with labels that confuse 3 and 8, 4 and 9, 1 and 7)",
    )


def model_init_kwargs(training_args: CPPOConfig, model_args: ModelConfig) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def make_trainer(
    job: Job, training_args: CPPOConfig, model_args: ModelConfig, trainer_class: type[CPPOTrainer] = CPPOTrainer
) -> CPPOTrainer:
    training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
    training_args.reward_weights = training_args.reward_weights or job.reward_weights
    return trainer_class(
        model=job.model,
        reward_funcs=job.reward_funcs,
        args=training_args,
        train_dataset=job.train_dataset,
        eval_dataset=job.eval_dataset,
        callbacks=job.callbacks,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Greedy accuracy on held-out canvases, alone and as a callback of a training run."""

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..config import CPPOConfig
from .model import chats
from .perception import perception_marks
from .task import MAX_RESPONSE_TOKENS, boxes_the_sum

LOGGED = 24  # canvases whose answers are logged, the first ones: card and picture show some of them


@torch.no_grad()
def greedy_responses(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, batch_size: int = 250
) -> list[str]:
    """
    The greedy response to each canvas, in the data set's order; see [`accuracy`].
    """
    training, responses = model.training, []
    model.eval()
    for batch in dataset.iter(batch_size):
        texts = chats(processor, [message["content"] for [message] in batch["prompt"]])
        images = [[image] for image in batch["image"]]
        inputs = processor(text=texts, images=images, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, max_new_tokens=MAX_RESPONSE_TOKENS, do_sample=False, top_k=None, use_cache=True)
        responses += processor.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)
    model.train(training)
    return responses


def accuracy(model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, batch_size: int = 250) -> float:
    """
    Share of canvases whose greedy response holds the right sum. Draws no random number and restores the model's mode.

    Args:
        model (`PreTrainedModel`): under ZeRO-3 or FSDP, call on every process: they decode in step.
        processor (`ProcessorMixin`): its processor.
        dataset (`Dataset`): what [`make_dataset`] returns.
        batch_size (`int`, *optional*, defaults to `250`): canvases decoded at once.
    """
    right = _are_right(greedy_responses(model, processor, dataset, batch_size), dataset)
    return sum(right) / len(right)


def _are_right(responses: list[str], dataset: Dataset) -> list[bool]:
    return [boxes_the_sum(text, solution) for text, solution in zip(responses, dataset["solution"], strict=True)]


class HeldOutAccuracy(TrainerCallback):
    """
    Logs into the trainer's log history, before the first step, every few steps and after the last: `held_out_accuracy`,
    `held_out_questions`, and of the first 24 of them `held_out_answers`, `held_out_answers_are_right` and, in a run with
    the CPL, `held_out_perception`: where in each answer which tokens are perception tokens, as
    [`~trl_cppo.digits.perception.perception_marks`] says.

    Args:
        dataset (`Dataset`): the held-out canvases.
        every (`int`): steps between two measurements.
        show (`bool`, *optional*, defaults to `True`): whether to print each accuracy.
    """

    def __init__(self, dataset: Dataset, every: int, show: bool = True):
        self.dataset = dataset
        self.every = every
        self.show = show

    def _measure(
        self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel, processor: ProcessorMixin
    ) -> None:
        measured = [entry["step"] for entry in state.log_history if "held_out_accuracy" in entry]
        if state.global_step in measured:  # resumed from a checkpoint of this step
            return
        responses = greedy_responses(model, processor, self.dataset)
        right = _are_right(responses, self.dataset)
        value = sum(right) / len(right)
        entry = {
            "step": state.global_step,
            "held_out_accuracy": value,
            "held_out_questions": len(right),  # the model card says on how many
            "held_out_answers": responses[:LOGGED],
            "held_out_answers_are_right": right[:LOGGED],
        }
        if isinstance(args, CPPOConfig) and args.cpl_coef != 0:
            answered = self.dataset.select(range(len(responses[:LOGGED])))
            entry["held_out_perception"] = perception_marks(model, processor, answered, responses[:LOGGED], args)
        state.log_history.append(entry)
        if self.show and state.is_world_process_zero:
            print(f"step {state.global_step}: held-out accuracy {value:.3f} on {len(right)} canvases", flush=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(args, state, kwargs["model"], kwargs["processing_class"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure(args, state, kwargs["model"], kwargs["processing_class"])

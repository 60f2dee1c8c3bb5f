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

from .task import MAX_RESPONSE_TOKENS, boxes_the_sum


@torch.no_grad()
def accuracy(model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, batch_size: int = 250) -> float:
    """
    Share of canvases whose greedy response holds the right sum. Draws no random number and restores the model's mode.

    Args:
        model (`PreTrainedModel`): under ZeRO-3 or FSDP, call on every process: they decode in step.
        processor (`ProcessorMixin`): its processor.
        dataset (`Dataset`): what [`make_dataset`] returns.
        batch_size (`int`, *optional*, defaults to `250`): canvases decoded at once.
    """
    training, right = model.training, 0
    model.eval()
    for batch in dataset.iter(batch_size):
        content = [{"type": "image"}, {"type": "text", "text": batch["prompt"][0][0]["content"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        images = [[image] for image in batch["image"]]
        inputs = processor(text=[prompt] * len(images), images=images, return_tensors="pt").to(model.device)
        ids = model.generate(**inputs, max_new_tokens=MAX_RESPONSE_TOKENS, do_sample=False, top_k=None, use_cache=True)
        responses = processor.batch_decode(ids[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)
        right += sum(
            boxes_the_sum(text, solution) for text, solution in zip(responses, batch["solution"], strict=True)
        )
    model.train(training)
    return right / len(dataset)


class HeldOutAccuracy(TrainerCallback):
    """
    Logs `held_out_accuracy` and `held_out_questions` into the trainer's log history: before the first step, every few steps, after the last.

    Args:
        dataset (`Dataset`): the held-out canvases.
        every (`int`): steps between two measurements.
    """

    def __init__(self, dataset: Dataset, every: int):
        self.dataset = dataset
        self.every = every

    def _measure(self, state: TrainerState, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        measured = [entry["step"] for entry in state.log_history if "held_out_accuracy" in entry]
        if state.global_step in measured:  # resumed from a checkpoint of this step
            return
        value = accuracy(model, processor, self.dataset)
        measured_on = {"held_out_questions": len(self.dataset)}  # the model card says on how many
        state.log_history.append({"step": state.global_step, "held_out_accuracy": value, **measured_on})
        if state.is_world_process_zero:
            print(
                f"step {state.global_step}: held-out accuracy {value:.3f} on {len(self.dataset)} canvases", flush=True
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measure(state, kwargs["model"], kwargs["processing_class"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure(state, kwargs["model"], kwargs["processing_class"])

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Completions of a batch of data set rows, greedy or sampled, from the prompts that GRPOTrainer would build.

Shapes: `B` rows of the batch, `P` tokens of the padded prompts, `T` tokens of the longest completion.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from accelerate.utils import is_peft_model
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, ProcessorMixin
from trl import prepare_multimodal_messages

from ...run.rows.checks import find_row_fault, images_of, may_be_a_rows_fault, row_name, row_names
from ...scoring.families import placeholder_ids, placeholder_texts
from .sampling import draw_uniforms, sampling_processors


@dataclass
class Completion:
    """
    What a model wrote.

    Attributes:
        text (`str`): without special tokens.
        ids (`list[int]`): with the end token, if there is one.
        clipped (`bool`): whether it was cut at the longest allowed length.
    """

    text: str
    ids: list[int]
    clipped: bool


class Generator(Protocol):
    """What completes the rows of a batch."""

    def encode(self, examples: list[dict[str, Any]]) -> Any:
        """Inputs of B rows. Raises a `ValueError` naming row and column."""

    def complete(self, inputs: Any, rows: list[int], samples: list[int | None]) -> Iterable[list[Completion]]:
        """For each number of a sample, `None` being the greedy one, the completions of the B rows."""


class Codec:
    """
    From rows to model inputs and from token ids to completions, as in GRPOTrainer's rollouts: its chat template call, left
    padding, end tokens.

    Args:
        model (`PreTrainedModel`): not kept; its configurations are read.
        processor (`ProcessorMixin`): its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._processor, self._tokenizer = processor, tokenizer
        self._placeholders = placeholder_texts(model, processor)
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        self.end_ids = sorted({tokenizer.eos_token_id, *own} - {None})

    def encode(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """
        Model inputs of B rows, on the CPU: prompts of shape `(B, P)`, padded on the left, and the family's pixel tensors.

        Args:
            examples (`list[dict]`): B rows of conversational `prompt` and `images`, `image` or images in the prompt.

        Raises:
            `ValueError`: naming row and column, if a prompt is no list of messages or an image cannot be processed.
        """
        try:
            return self._apply_chat_template([build_prompt(example) for example in examples])
        except Exception as error:
            if not may_be_a_rows_fault(error):
                raise
            fault = find_row_fault(examples, self._processor.image_processor, self._placeholders)
            fault = fault or f"{row_names(examples)} cannot be turned into model inputs: {error}"
            raise ValueError(fault) from error

    def _apply_chat_template(self, prompts: list[list[dict[str, Any]]]) -> BatchFeature:
        return self._processor.apply_chat_template(
            prompts,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )

    def completion(self, ids: list[int]) -> Completion:
        """What was written before the first end token, of token ids that may go on behind it."""
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), None)
        ids = ids if end is None else ids[: end + 1]
        return Completion(self._tokenizer.decode(ids, skip_special_tokens=True), ids, clipped=end is None)


class CompletionGenerator:
    """
    Completes prompts by transformers, as GRPOTrainer's rollouts: suppressed image and video placeholders; nothing from the
    model's own `generation_config` but the end tokens.

    Args:
        model (`PreTrainedModel`): put into evaluation mode; its `generation_config` is replaced.
        processor (`ProcessorMixin`): its processor.
        max_completion_length (`int`): in tokens.
        temperature (`float`, *optional*, defaults to `1.0`): of the samples.
        top_p (`float`, *optional*, defaults to `1.0`): nucleus of the samples.
        seed (`int`, *optional*, defaults to `0`): of the samples.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        max_completion_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ):
        self._model, self._codec = model.eval(), Codec(model, processor)
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._length = max_completion_length
        # The model's own settings (Qwen2.5-VL: a repetition penalty) would fill every gap that the call leaves.
        settings = GenerationConfig(
            max_new_tokens=max_completion_length,
            do_sample=False,  # SeededSampler draws
            pad_token_id=processor.tokenizer.pad_token_id,
            bos_token_id=processor.tokenizer.bos_token_id,
            eos_token_id=self._codec.end_ids,
            suppress_tokens=placeholder_ids(model) or None,
            disable_compile=True,
        )
        model.generation_config = settings
        if is_peft_model(model):  # which asks its base model
            model.get_base_model().generation_config = settings

    def encode(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """What [`Codec.encode`] returns, on the model's device and of its type."""
        return self._codec.encode(examples).to(self._model.device, dtype=self._model.dtype)  # ids stay integers

    def complete(self, inputs: BatchFeature, rows: list[int], samples: list[int | None]) -> Iterator[list[Completion]]:
        """One sample after the other: each of B rows."""
        return (self.generate(inputs, rows, sample) for sample in samples)

    def generate(self, inputs: BatchFeature, rows: list[int], sample: int | None) -> list[Completion]:
        """
        One completion for each of the B rows.

        Args:
            inputs (`BatchFeature`): what [`~CompletionGenerator.encode`] returns.
            rows (`list[int]`): the rows' places in the data set, which the draws belong to.
            sample (`int`, *optional*): number of the sample; `None` for the greedy completion.
        """
        prompt_length = inputs["input_ids"].size(1)
        processors = None
        if sample is not None:
            uniforms = draw_uniforms(self._seed, rows, sample, self._length).to(self._model.device)
            processors = sampling_processors(self._temperature, self._top_p, uniforms, prompt_length)
        output = self._model.generate(**inputs, logits_processor=processors)
        return [self._codec.completion(ids) for ids in output[:, prompt_length:].tolist()]


def build_prompt(example: dict[str, Any]) -> list[dict[str, Any]]:
    """
    A row's messages with its images in them, by TRL's rules.

    Raises:
        `ValueError`: naming row and column, if the prompt is not conversational or does not fit the images.
    """
    prompt = example["prompt"]
    if not (isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt)):
        raise ValueError(
            f"{row_name(example, 0)}, column 'prompt': expected a list of messages with role and content, got "
            f"{type(prompt).__name__}. Write [{{'role': 'user', 'content': ...}}]."
        )
    column, images = images_of(example)
    return prepare_multimodal_messages(prompt, images if column != "prompt" else None)

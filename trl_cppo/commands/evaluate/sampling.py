# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Sampling whose draws belong to a question and a sample, not to a batch.

Shapes: `B` rows of the batch, `T` tokens of the longest completion, `V` vocabulary.
"""

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


class SeededSampler(LogitsProcessor):
    """
    Draws the next token of each row from the row's own numbers and leaves no other token possible.

    `generate` draws a batch from one generator, so that a row's sample depends on its neighbours. Here it does not: an
    evaluation gives the same samples for any batch size and number of processes, and after an interruption.

    Args:
        uniforms (`torch.Tensor` of shape `(B, T)`): numbers in [0, 1), float64; what [`draw_uniforms`] returns.
        prompt_length (`int`): tokens of the padded prompts.
    """

    def __init__(self, uniforms: torch.Tensor, prompt_length: int):
        self._uniforms = uniforms
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of shape `(B, V)`: 0 for the token drawn, −∞ for the others."""
        step = input_ids.size(1) - self._prompt_length
        cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)  # float32 loses the tail of 150,000 tokens
        threshold = self._uniforms[:, step : step + 1] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True)  # right: never a token of probability 0
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


def draw_uniforms(seed: int, rows: list[int], sample: int, length: int) -> torch.Tensor:
    """
    The numbers that sample number `sample` of each row is drawn with.

    Args:
        seed (`int`): of the evaluation.
        rows (`list[int]`): B places in the data set.
        sample (`int`): from 0 to N − 1.
        length (`int`): T.

    Returns:
        `torch.Tensor` of shape `(B, T)`: in [0, 1 − 2⁻²⁴], float64.
    """
    draws = [np.random.default_rng([seed, row, sample]).random(length, dtype=np.float32) for row in rows]
    return torch.from_numpy(np.stack(draws)).double()


def sampling_processors(
    temperature: float, top_p: float, uniforms: torch.Tensor, prompt_length: int
) -> LogitsProcessorList:
    """Temperature, then nucleus, then the draw: the order in which `generate` samples, for `do_sample=False`."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    processors.append(SeededSampler(uniforms, prompt_length))
    return processors

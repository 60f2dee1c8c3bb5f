# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Where in a response the perception tokens stand, by the settings of a run; for the picture of a training."""

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..config import CPPOConfig
from ..method.losses import token_scores
from ..method.objective import Objective
from ..method.view_maker import ViewMaker
from ..method.views import get_view
from ..run.token_text import TokenText, TokenTexts
from .model import chat
from .task import MAX_RESPONSE_TOKENS

Marks = list[tuple[int, int, float]]


@torch.no_grad()
def perception_marks(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, responses: list[str], args: CPPOConfig
) -> list[Marks]:
    """
    The perception tokens of each response, which a training with these settings would select if the response were gated.

    Each row is one forward of two rows, the image and its removing view. Draws no random number.

    Args:
        model (`PreTrainedModel`): its mode is restored. Under ZeRO-3 or FSDP, call on every process: all make as many forwards.
        processor (`ProcessorMixin`): its processor.
        dataset (`Dataset`): the canvases, one a response.
        responses (`list[str]`): what the model said to them.
        args ([`CPPOConfig`]): views by name, seed, temperature, and what selects.

    Returns:
        `list[list[tuple[int, int, float]]]`: of each response, for each perception token its first character, the one after its
            last, and by how many nats its entropy rises. The end token, which has no character, is left out.
    """
    tokenizer, objective = processor.tokenizer, Objective.of(args)
    names = (args.information_preserving, args.information_removing)
    maker = ViewMaker(*([get_view(name) for name in kind] for kind in names), seed=args.seed)
    token_texts = TokenTexts(tokenizer)
    training, found = model.training, []
    model.eval()
    for place, (row, text) in enumerate(zip(dataset, responses, strict=True)):
        cut = len(tokenizer(text)["input_ids"]) >= MAX_RESPONSE_TOKENS
        whole = text if cut else text + tokenizer.eos_token
        ids = tokenizer(whole)["input_ids"]
        [removed] = maker([row["image"]], "held_out", place, others=[dataset[place - 1]["image"]]).removed
        texts = [chat(processor, row["prompt"][0]["content"]) + whole] * 2
        inputs = processor(text=texts, images=[[row["image"]], [removed]], return_tensors="pt").to(model.device)
        logits = model(**inputs).logits[:, -len(ids) - 1 : -1].float() / args.temperature  # (2, T, V)
        entropy, without = torch.distributions.Categorical(logits=logits).entropy()[:, None]  # (1, T) each
        [selected] = objective.select(entropy, without, torch.ones_like(entropy, dtype=torch.bool))
        [shifts] = token_scores(entropy, without, "entropy_shift")
        found.append(_marks(token_texts(ids), len(text), selected.tolist(), shifts.tolist()))
    model.train(training)
    return found


def _marks(tokens: list[TokenText], length: int, selected: list[bool], shifts: list[float]) -> Marks:
    marks, start = [], 0
    for token, chosen, shift in zip(tokens, selected, shifts, strict=True):
        end = start + len(token.text) * (token.part == 1)
        if chosen and end <= length:
            marks.append((start, end, round(shift, 4)))
        start = end
    return marks

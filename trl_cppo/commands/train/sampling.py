# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How far a long generation is, where transformers samples."""

import sys
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList, TrainerCallback

PATIENCE = 10  # seconds; a generation that takes less shows nothing


class _Count(StoppingCriteria):
    """Asked after each token, never stops, and neither draws a random number nor waits for the device."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class SamplingBar(TrainerCallback):
    """
    A bar of the tokens that a generation has sampled, once it takes longer than [`PATIENCE`]; gone when it is done.

    The model's `generate` is another one while `train` runs: TRL hands it a configuration, which takes no criteria.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if args.disable_tqdm or not state.is_world_process_zero:
            return
        generate = model.generate

        def generate_with_bar(*args, **kwargs):
            limit = kwargs.get("max_new_tokens") or getattr(kwargs.get("generation_config"), "max_new_tokens", None)
            with _bar(limit) as bar:
                criteria = [*(kwargs.pop("stopping_criteria", None) or []), _Count(bar)]
                return generate(*args, stopping_criteria=StoppingCriteriaList(criteria), **kwargs)

        model.generate = generate_with_bar

    def on_train_end(self, args, state, control, model=None, **kwargs):
        vars(model).pop("generate", None)


def _bar(limit: int | None) -> tqdm:
    # A file gets a line now and then, not ten a second.
    every = 0.5 if sys.stderr.isatty() else 30
    form = "sampling {n_fmt} of at most {total_fmt} tokens, {elapsed} so far, at most {remaining} left"
    return tqdm(total=limit, delay=PATIENCE, leave=False, mininterval=every, miniters=1, bar_format=form)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Around the saving of a model: when its weights last changed, and no card by another hand."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import is_peft_model
from torch import nn
from transformers import TrainerCallback


class WeightsClock(TrainerCallback):
    """When the weights last changed, in seconds of the epoch: an older picture or evaluation is one of other weights."""

    def __init__(self):
        self.time = time.time()

    def on_step_end(self, args, state, control, **kwargs):
        self.time = time.time()


@contextmanager
def without_peft_card(model: nn.Module) -> Iterator[None]:
    """
    PEFT writes a card of its own before the weights. It fails where it cannot read an older one, and names the base model's
    local path, which would go to the Hub where ours fails.
    """
    if not is_peft_model(model):
        yield
        return
    model.create_or_update_model_card = lambda output_dir: None
    try:
        yield
    finally:
        del model.create_or_update_model_card

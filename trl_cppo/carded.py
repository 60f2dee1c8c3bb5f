# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The part of the trainer that puts a card beside every model it saves."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from accelerate.utils import is_peft_model
from torch import nn

from .completions_table import TabledGRPOTrainer
from .model_card import CardExample, WeightsClock, write_card
from .upstream import decorating


class CardedGRPOTrainer(TabledGRPOTrainer):
    """
    GRPOTrainer that writes our card, wherever it saves the model. Only the main process writes.

    Attributes:
        card_example ([`~trl_cppo.model_card.CardExample`], *optional*):
            Set it to an image and a question of yours, which may be published, for the model card's quick start.
        card_dataset (`str`, *optional*):
            Set it to the Hub id of the training data, if the data set does not know it, for the model card.
        weights_clock ([`~trl_cppo.model_card.WeightsClock`]): when the weights last changed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.card_example: CardExample | None = None
        self.card_dataset: str | None = None
        self.weights_clock = WeightsClock()
        self.add_callback(self.weights_clock)
        self._saving = False  # a checkpoint, which is not lost for its card

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write `README.md` into the output folder; see [`~trl_cppo.model_card.write_card`]. TRL calls this at every
        checkpoint and before every upload. What fails raises, but for a checkpoint, which is saved without its card then.
        """
        with decorating("the model card") if self._saving else nullcontext():
            super().create_model_card(model_name, dataset_name, tags)
            if self.is_world_process_zero():
                write_card(self, model_name, dataset_name)

    def _save_checkpoint(self, model, trial) -> None:
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)
        with _without_peft_card(self.accelerator.unwrap_model(self.model)):
            super().save_model(output_dir, _internal_call)
        # TRL leaves a checkpoint without a card. Here and not after the checkpoint is complete, for by then it may have
        # been sent to the Hub.
        if (output_dir is None and _internal_call) or not self.is_world_process_zero():  # a push makes the card itself
            return
        with decorating(f"the model card of {folder}"):
            self._write_cards(folder)

    def _write_cards(self, folder: Path) -> None:
        output = Path(self.args.output_dir)
        if folder.resolve() == output.resolve() or not (output / "README.md").is_file():
            self.create_model_card()
        if folder.resolve() != output.resolve():
            folder.mkdir(parents=True, exist_ok=True)  # FSDP saves sharded weights later, in a folder of their own
            write_card(self, checkpoint=folder)


@contextmanager
def _without_peft_card(model: nn.Module) -> Iterator[None]:
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

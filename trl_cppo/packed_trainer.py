# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""GRPOTrainer that scores the rollouts of one prompt in one packed row. It knows nothing of CPPO's loss.

Shapes: `B` rows of a micro-batch, `S` tokens of prompt and completion, `T` completion tokens.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.grpo_trainer as grpo_module
from transformers.utils import logging

from .carded import CardedGRPOTrainer
from .families import has_pixels_by_row, images_are_ambiguous
from .packed_forward import PackedForwards
from .packing_choice import ScoringCost, mrope_index, packing_obstacle
from .shared_prefix import Packing, pack_scoring, packed_positions, plan_packing, same_prompts

FLOPS_RATIO = "shared_prefix/flops_ratio"  # the metric: of scoring a micro-batch, estimated; 1 where it is not packed

logger = logging.get_logger(__name__)


def bind_scoring(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of `GRPOTrainer._get_per_token_logps_and_entropies` by name."""
    score = functools.partial(grpo_module.GRPOTrainer._get_per_token_logps_and_entropies, None)
    return inspect.signature(score).bind(*args, **kwargs).arguments


class SharedPrefixGRPOTrainer(CardedGRPOTrainer):
    """
    GRPOTrainer with `share_prefix` (see [`CPPOConfig`]): the same log-probabilities and gradients for fewer tokens.

    Attributes:
        packing ([`~shared_prefix.Packing`], *optional*): of the scoring that is running, if it is packed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packing: Packing | None = None
        self._prompt_keys: list[int] | None = None  # of the rows that are being scored: which are of one prompt
        obstacle = self._packing_obstacle()
        if self.args.share_prefix is True and obstacle is not None:
            raise ValueError(f"share_prefix=True is not possible: {obstacle}. Or use share_prefix='auto' or False.")
        self._shares_prefix = bool(self.args.share_prefix) and obstacle is None
        if not self._shares_prefix:
            if self.args.share_prefix:
                logger.info(f"share_prefix='auto' scores each rollout in a row of its own: {obstacle}.")
            return
        self._scoring_cost = ScoringCost.of(self.model)
        self._pixels_by_row = has_pixels_by_row(self.model)
        self._packed_forwards = PackedForwards(self.model.config.get_text_config()._attn_implementation)
        for model in (self.model, self.ref_model):
            if model is not None:
                self._packed_forwards.attach(model)

    def _packing_obstacle(self) -> str | None:
        if self.args.share_prefix == "auto" and self.args.cpl_coef == 0:
            return "with cpl_coef=0 a run equals GRPOTrainer's bit for bit, and packed sums round otherwise"
        if self.tools or self.environment_factories is not None:
            return "tools and environments may put images into completions"
        if self.args.per_device_train_batch_size == 1:
            return "micro-batches of one row; per_device_train_batch_size should be a multiple of num_generations"
        return packing_obstacle(self.model, self.aux_loss_enabled)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._shares_prefix:
            return super()._generate_and_score_completions(inputs)
        first_row = self.accelerator.process_index * len(inputs)
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        keys = [(first_row + row) // group_size for row in range(len(inputs))]
        with self._scoring_rows_of(keys):  # by the old policy and the reference
            batch = super()._generate_and_score_completions(inputs)
        return {**batch, "prompt_keys": torch.tensor(keys, device=batch["advantages"].device)}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self._shares_prefix:
            return super()._prepare_inputs(generation_batch)
        with _shuffling_prompts():
            return super()._prepare_inputs(generation_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        keys = inputs["prompt_keys"].tolist() if "prompt_keys" in inputs else None
        with self._scoring_rows_of(keys):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if keys is not None:
            self._metrics["train" if self.model.training else "eval"][FLOPS_RATIO].append(self._flops_ratio)
        return loss

    @contextmanager
    def _scoring_rows_of(self, keys: list[int] | None) -> Iterator[None]:
        self._prompt_keys = keys
        try:
            yield
        finally:
            self._prompt_keys = None

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        if self._prompt_keys is None:
            return score(model, *args, **kwargs)
        scoring = bind_scoring(model, *args, **kwargs)
        packed, packing = self._packed(scoring)
        if packing is None:
            return score(**scoring)
        rope_index = mrope_index(self.model)
        positions = packed_positions(scoring, packed, packing, rope_index)
        self.packing = packing
        try:
            with self._packed_forwards.score(packing, positions, packed.get("batch_size") or len(packing.rows)):
                logps, entropies, aux_loss = score(**packed)
        finally:
            self.packing = None
        return packing.unpack(logps), None if entropies is None else packing.unpack(entropies), aux_loss

    def _packed(self, scoring: dict[str, Any]) -> tuple[dict[str, Any], Packing | None]:
        """The packed arguments and their packing, or the arguments and `None` where packing is impossible or dearer."""
        self._flops_ratio = 1.0
        groups = same_prompts(scoring, self._prompt_keys, self._pixels_by_row)
        if len(groups) == scoring["input_ids"].size(0):
            return scoring, None
        mask, num_scored = scoring["attention_mask"], scoring["logits_to_keep"]
        packing = plan_packing(mask, num_scored, groups, self.args.pad_to_multiple_of)
        packed = pack_scoring(scoring, packing, self._pixels_by_row)
        if images_are_ambiguous(self._pixels_by_row, packed.get("num_images")):
            return scoring, None
        ratio = self._scoring_cost(packed) / self._scoring_cost(scoring)
        if self.args.share_prefix == "auto" and ratio >= 1:
            return scoring, None
        self._flops_ratio = ratio
        return packed, packing


@contextmanager
def _shuffling_prompts() -> Iterator[None]:
    """
    While this is open, TRL's shuffle of a generation batch, before it cuts it into micro-batches, keeps the rollouts of a
    prompt together. It draws what TRL draws, so that the rollouts of later steps are those of GRPOTrainer.
    """
    shuffle = grpo_module.shuffle_sequence_dict

    def shuffle_prompts(batch: dict[str, Any]) -> dict[str, Any]:
        keys = batch["prompt_keys"].tolist()
        drawn = shuffle({"row": list(range(len(keys)))})["row"]
        places = {key: place for place, key in reversed(list(enumerate(keys[row] for row in drawn)))}
        order = sorted(range(len(keys)), key=lambda row: (places[keys[row]], row))

        def ordered(values: Any) -> Any:
            if values is None or (isinstance(values, torch.Tensor) and values.dim() == 0):
                return values
            return values[order] if isinstance(values, torch.Tensor) else [values[row] for row in order]

        return {name: ordered(values) for name, values in batch.items()}

    grpo_module.shuffle_sequence_dict = shuffle_prompts
    try:
        yield
    finally:
        grpo_module.shuffle_sequence_dict = shuffle

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""GRPOTrainer that scores the rollouts of one prompt in one packed row. It knows nothing of CPPO's loss.

Shapes: `B` rows of a micro-batch, `S` tokens of prompt and completion, `T` completion tokens.
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.grpo_trainer as grpo_module
from accelerate.logging import get_logger

from .carded import CardedGRPOTrainer
from .families import has_pixels_by_row, placeholder_ids
from .packing_choice import mrope_index, packing_obstacle
from .prefix_attention import PackedForwards
from .regrouping import micro_batches_matter, regrouped, window_size
from .shared_prefix import Packing, pack_scoring, packed_positions, plan_packing, same_prompts, tokens_saved
from .view_batch import SCORING_ARGUMENTS

TOKEN_RATIO = "shared_prefix/token_ratio"  # the metric: tokens of a packed micro-batch over those of plain rows, or 1
# Attention among packed prompts calls its kernel twice a prompt. On a CPU and a small model (benchmarks/prefix_overhead.py) packing
# takes 0.89 to 1.27 of the time of plain rows where a prompt saves up to 23 tokens, 0.93 or less from 33 on.
MIN_TOKENS_SAVED = 32  # a prompt, views counted as prompts, on average

logger = get_logger(__name__)


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
        self._prompt_keys: list[Hashable] | None = None  # of the rows that are being scored: which are of one prompt
        self._token_ratio = 1.0  # of the last scoring
        self._plain_because: str | None = None  # likewise: why it was not packed
        self._told = False
        obstacle = self._packing_obstacle()
        if self.args.share_prefix is True and obstacle is not None:
            raise ValueError(f"share_prefix=True is not possible: {obstacle}. Or use share_prefix='auto' or False.")
        self._shares_prefix = bool(self.args.share_prefix) and obstacle is None
        if not self._shares_prefix:
            if self.args.share_prefix:
                self._say_plain(obstacle)
            return
        if self.args.share_prefix is True and window_size(self.args) < self.args.steps_per_generation:
            logger.warning(
                "share_prefix=True brings the rollouts of a prompt together within a generation batch of "
                f"{self.args.steps_per_generation} micro-batches, so optimizer steps hold fewer prompts, and more rollouts of each, "
                "than GRPOTrainer's. share_prefix='auto' keeps its steps."
            )
        self._pixels_by_row = has_pixels_by_row(self.model)
        self._placeholder_ids = placeholder_ids(self.model)
        self._packed_forwards = PackedForwards()
        self._model_hooks.append(self._packed_forwards)

    def _say_plain(self, obstacle: str) -> None:
        """Once a run: with `cpl_coef=0` it is meant so."""
        if self.args.cpl_coef != 0 and not self._told:
            logger.warning(
                f"share_prefix={self.args.share_prefix!r} scores each rollout in a row of its own, as GRPOTrainer: {obstacle}. "
                "share_prefix=False leaves this message out."
            )
        self._told = True

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        ratios = self._metrics["train"].get(TOKEN_RATIO, []) if self.model.training else []
        if ratios and min(ratios) == 1 and self._plain_because is not None:
            self._say_plain(self._plain_because)
        self._told = self._told or bool(ratios)  # a first window that packs is followed by others
        super().log(logs, *args, **kwargs)

    def _packing_obstacle(self) -> str | None:
        if self.args.share_prefix == "auto" and self.args.cpl_coef == 0:
            return "with cpl_coef=0 a run equals GRPOTrainer's bit for bit, and packed sums round otherwise"
        if self.tools or self.environment_factories is not None:
            return "tools and environments may put images into completions"
        if self.args.neftune_noise_alpha is not None:
            return "NEFTune's noise depends on the length of a row; unset neftune_noise_alpha"
        if self.args.per_device_train_batch_size == 1:
            return "micro-batches of one row; per_device_train_batch_size should be a multiple of num_generations"
        obstacles = [packing_obstacle(model, self.aux_loss_enabled) for model in self._scored_models()]
        return next((obstacle for obstacle in obstacles if obstacle is not None), None)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._shares_prefix:
            return super()._generate_and_score_completions(inputs)
        keys = self._prompts_of_rows(len(inputs))
        with self._scoring_rows_of(keys):  # by the old policy and the reference
            batch = super()._generate_and_score_completions(inputs)
        return {**batch, "prompt_keys": torch.tensor(keys, device=batch["advantages"].device)}

    def _prompts_of_rows(self, num_rows: int) -> list[int]:
        """Of this process's rows of a generation batch: each one's prompt, by its place in the global batch."""
        first_row = self.accelerator.process_index * num_rows
        return [(first_row + row) // self._group_size for row in range(num_rows)]

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        cut = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self._shares_prefix or self._buffered_inputs is cut:  # nothing was generated to be trained on
            return inputs
        self._buffered_inputs = self._regrouped(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _regrouped(self, micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A generation batch with the rollouts of a prompt together, as far as `share_prefix` lets them leave their place."""
        if self.args.share_prefix is True:
            return regrouped(micro_batches)
        if micro_batches_matter(self.args):
            return micro_batches
        size, result = window_size(self.args), []
        for start in range(0, len(micro_batches), size):
            window = micro_batches[start : start + size]
            together = regrouped(window)
            result += together if any(map(self._will_pack, together)) else window
        return result

    def _will_pack(self, micro_batch: dict[str, Any]) -> bool:
        """Whether the loss of a micro-batch will be computed from packed rows."""
        scoring = {name: micro_batch.get(name) for name in SCORING_ARGUMENTS}
        for name, parts in (("input_ids", "ids"), ("attention_mask", "mask")):
            scoring[name] = torch.cat([micro_batch[f"prompt_{parts}"], micro_batch[f"completion_{parts}"]], dim=1)
        scoring["logits_to_keep"] = micro_batch["completion_ids"].size(1)
        prompts = same_prompts(scoring, micro_batch["prompt_keys"].tolist(), self._pixels_by_row)
        # The views of a prompt are shared by those of its rollouts that have some.
        views = micro_batch.get("cpl_views") or [None] * len(micro_batch["prompt_keys"])
        viewed = [[row for row in members if views[row] is not None] for members in prompts]
        return self._row_obstacle(scoring, [prompts], 2 * [members for members in viewed if members]) is None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        keys = inputs["prompt_keys"].tolist() if "prompt_keys" in inputs else None
        with self._scoring_rows_of(keys):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if keys is not None:
            self._metrics[self._mode][TOKEN_RATIO].append(self._token_ratio)
        return loss

    @contextmanager
    def _scoring_rows_of(self, keys: list[Hashable] | None) -> Iterator[None]:
        self._prompt_keys = keys
        try:
            yield
        finally:
            self._prompt_keys = None

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        score = super()._get_per_token_logps_and_entropies
        self.attach_hooks()  # which train and evaluate have done
        if self._prompt_keys is None:
            return score(model, *args, **kwargs)
        scoring = bind_scoring(model, *args, **kwargs)
        parts = self._parts(scoring)
        self._token_ratio = 1.0
        self._plain_because = self._row_obstacle(scoring, parts)
        if self._plain_because is not None:
            return score(**scoring)
        mask, num_scored = scoring["attention_mask"], scoring["logits_to_keep"]
        packings = [plan_packing(mask, num_scored, prompts) for prompts in parts]
        self._token_ratio = sum(packing.labelled.numel() for packing in packings) / mask.numel()
        scored = [self._score_packed(score, scoring, packing) for packing in packings]
        logps, entropies = (None if values[0] is None else torch.cat(values) for values in zip(*scored, strict=True))
        return logps, entropies, None

    def _parts(self, scoring: dict[str, Any]) -> list[list[list[int]]]:
        """The rows by prompt, in the parts that TRL scores one after the other: as many on every process."""
        size = scoring.get("batch_size") or len(self._prompt_keys)
        keys = [(row // size, key) for row, key in enumerate(self._prompt_keys)]
        parts: dict[int, list[list[int]]] = {}
        for members in same_prompts(scoring, keys, self._pixels_by_row):
            parts.setdefault(members[0] // size, []).append(members)
        return [parts[number] for number in sorted(parts)]

    def _row_obstacle(
        self, scoring: dict[str, Any], parts: list[list[list[int]]], views: list[list[int]] | None = None
    ) -> str | None:
        """
        Why rows are scored as they are, or `None` if they are packed.

        Args:
            scoring (`dict[str, Any]`): the arguments of the scoring by name.
            parts (`list[list[list[int]]]`): see [`_parts`].
            views (`list[list[int]]`, *optional*): prompts of rows of views that are not in `scoring` yet, by their anchors' rows.
        """
        prompts = [members for part in parts for members in part]
        if all(len(members) == 1 for members in prompts):
            return "no two rollouts of a prompt came into one micro-batch; make per_device_train_batch_size a multiple of num_generations"
        last_of_prompts = scoring["input_ids"][:, -scoring["logits_to_keep"] - 1]  # each segment has a copy of it
        if torch.isin(last_of_prompts, last_of_prompts.new_tensor(self._placeholder_ids)).any():
            return "a prompt ends with an image"
        # Of several processes, each must run the vision tower (see ImagelessForwards, which appends a row of its own).
        num_images = scoring.get("num_images") or [0] * len(scoring["input_ids"])
        with_images = [any(num_images[row] for members in part for row in members) for part in parts]
        if self.accelerator.num_processes > 1 and not all(with_images):
            return "a micro-batch has no image, and every process must run the vision tower"
        saved = tokens_saved(scoring["attention_mask"], scoring["logits_to_keep"], prompts + (views or []))
        if self.args.share_prefix == "auto" and saved < MIN_TOKENS_SAVED:
            return f"a prompt's rollouts would save {saved:.0f} tokens on average, and below {MIN_TOKENS_SAVED} it does not pay"
        return None

    def _score_packed(
        self, score: Callable, scoring: dict[str, Any], packing: Packing
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities and entropies of the packed rows, each `(B', T)`, in their order."""
        packed = pack_scoring(scoring, packing, self._pixels_by_row)
        rope_index = mrope_index(self.accelerator.unwrap_model(scoring["model"]))
        positions = packed_positions(scoring, packed, packing, rope_index)
        self.packing = packing
        try:
            with self._packed_forwards.score(packing, positions):
                logps, entropies, _ = score(**packed)
        finally:
            self.packing = None
        return packing.unpack(logps), None if entropies is None else packing.unpack(entropies)

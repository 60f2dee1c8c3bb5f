# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Scoring the rollouts of one prompt behind one copy of it: the same log-probs, whatever is then done with them.

Shapes: `B` rows of a scoring, `S` tokens of prompt and completion, `T` completion tokens.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import extract_model_from_parallel, is_peft_model
from transformers import PreTrainedModel

from ..config import CPPOConfig
from .arguments import SCORING_ARGUMENTS
from .attention import PackedForwards, keeps_prompts_apart
from .families import PACKABLE_TEXT_MODELS, family_of, mrope_index, placeholder_ids
from .packing import Packing, pack_scoring, packed_positions, plan_packing, same_prompts, tokens_saved
from .regrouping import micro_batches_matter, regrouped, window_size

TOKEN_RATIO = "shared_prefix/token_ratio"  # the metric: tokens of a packed micro-batch over those of plain rows, or 1
# Tokens that packing must save a prompt, views counted as prompts, on average. On a CPU and a small model (benchmarks/cost/prefix_overhead.py)
# packing takes 0.82 of the time of plain rows or less from 4 on, the fewest that were measured. Elsewhere nothing was.
MIN_TOKENS_SAVED = {"cpu": 4}
UNMEASURED = 32
_PLAIN_ROWS = "share_prefix={!r} scores each rollout in a row of its own, as GRPOTrainer: {}. share_prefix=False leaves this message out."
_REGROUPED = (
    "share_prefix=True brings the rollouts of a prompt together within a generation batch of {} micro-batches, so optimizer "
    "steps hold fewer prompts, and more rollouts of each, than GRPOTrainer's. share_prefix='auto' keeps its steps."
)

logger = get_logger(__name__)


class SharedPrefix:
    """
    The same log-probabilities and gradients for fewer tokens.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the policy, for which [`packing_obstacle`] finds none.
        always_images (`bool`): whether each scoring must run the vision tower, which packed text alone does not.
        always (`bool`): whether to pack wherever it can be done, and not only where it pays.

    Attributes:
        always (`bool`): as given.
        token_ratio (`float`): tokens of the last scoring over those of plain rows with their padding, 1 if it was not packed.
        plain_because (`str`, *optional*): why it was not.
    """

    def __init__(self, model: PreTrainedModel, always_images: bool, always: bool):
        self.token_ratio = 1.0
        self.plain_because: str | None = None
        self._always_images = always_images
        self.always = always
        self._pixels_by_row = family_of(model).pixels_by_row
        self._placeholder_ids = placeholder_ids(model)
        self._packing: Packing | None = None  # of the scoring that is running
        self._told = False
        self._forwards = PackedForwards()
        self.attach, self.detach = self._forwards.attach, self._forwards.detach

    def score(self, score: Callable, scoring: dict[str, Any], keys: list[Hashable]) -> tuple:
        """
        What `score(**scoring)` returns, from packed rows where there is something to share.

        Args:
            score (`Callable`): `GRPOTrainer._get_per_token_logps_and_entropies`.
            scoring (`dict[str, Any]`): its arguments by name.
            keys (`list[Hashable]` of length B): which rows are of one prompt.
        """
        parts = self._parts(scoring, keys)
        self.token_ratio = 1.0
        self.plain_because = self._row_obstacle(scoring, parts)
        if self.plain_because is not None:
            return score(**scoring)
        mask, num_scored = scoring["attention_mask"], scoring["logits_to_keep"]
        packings = [plan_packing(mask, num_scored, prompts) for prompts in parts]
        self.token_ratio = sum(packing.labelled.numel() for packing in packings) / mask.numel()
        scored = [self._score_packed(score, scoring, packing) for packing in packings]
        logps, entropies = (None if values[0] is None else torch.cat(values) for values in zip(*scored, strict=True))
        return logps, entropies, None

    def positions(self, num_scored: int) -> torch.Tensor | None:
        """[`Packing.scored_positions`] of the scoring that is running; `None` if its rows are plain."""
        return None if self._packing is None else self._packing.scored_positions(num_scored)

    def warn_if_plain(self, token_ratios: list[float]) -> None:
        """At a log of the training, given the ratios since the last: say so, once, if the first losses were not all packed."""
        if token_ratios and not self._told:  # a first window that packs is followed by others
            self._told = True
            if min(token_ratios) == 1 and self.plain_because is not None:
                logger.warning(_PLAIN_ROWS.format(True if self.always else "auto", self.plain_because))

    def regroup(self, micro_batches: list[dict[str, Any]], args: CPPOConfig) -> list[dict[str, Any]]:
        """
        A generation batch with the rollouts of a prompt together, as far as `share_prefix` lets them leave their place: by
        default within an optimizer step, and where they are then packed.

        Args:
            micro_batches (`list[dict[str, Any]]`): see [`regrouped`].
        """
        if self.always:
            return regrouped(micro_batches)
        if micro_batches_matter(args):
            return micro_batches
        size, result = window_size(args), []
        for start in range(0, len(micro_batches), size):
            window = micro_batches[start : start + size]
            together = regrouped(window)
            result += together if any(map(self.will_pack, together)) else window
        return result

    def will_pack(self, micro_batch: dict[str, Any]) -> bool:
        """
        Whether the loss of a micro-batch will be computed from packed rows.

        Args:
            micro_batch (`dict[str, Any]`): as TRL makes it, with `prompt_keys` and, of rows that have views, `cpl_views`.
        """
        scoring = {name: micro_batch.get(name) for name in SCORING_ARGUMENTS}
        for name, parts in (("input_ids", "ids"), ("attention_mask", "mask")):
            scoring[name] = torch.cat([micro_batch[f"prompt_{parts}"], micro_batch[f"completion_{parts}"]], dim=1)
        scoring["logits_to_keep"] = micro_batch["completion_ids"].size(1)
        keys = micro_batch["prompt_keys"].tolist()
        prompts = same_prompts(scoring, keys, self._pixels_by_row)
        # The views of a prompt are shared by those of its rollouts that have some.
        views = micro_batch.get("cpl_views") or [None] * len(keys)
        viewed = [[row for row in members if views[row] is not None] for members in prompts]
        return self._row_obstacle(scoring, [prompts], 2 * [members for members in viewed if members]) is None

    def _parts(self, scoring: dict[str, Any], keys: list[Hashable]) -> list[list[list[int]]]:
        """The rows by prompt, in the parts that TRL scores one after the other: as many on every process."""
        size = scoring.get("batch_size") or len(keys)
        parts: dict[int, list[list[int]]] = {}
        for members in same_prompts(
            scoring, [(row // size, key) for row, key in enumerate(keys)], self._pixels_by_row
        ):
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
        # ImagelessForwards appends a row of its own then.
        num_images = scoring.get("num_images") or [0] * len(scoring["input_ids"])
        with_images = [any(num_images[row] for members in part for row in members) for part in parts]
        if self._always_images and not all(with_images):
            return "a micro-batch has no image, and every forward must run the vision tower"
        saved = tokens_saved(scoring["attention_mask"], scoring["logits_to_keep"], prompts + (views or []))
        least = MIN_TOKENS_SAVED.get(last_of_prompts.device.type, UNMEASURED)
        if not self.always and saved < least:
            return f"a prompt's rollouts would save {saved:.0f} tokens on average, and below {least} it does not pay"
        return None

    def _score_packed(
        self, score: Callable, scoring: dict[str, Any], packing: Packing
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities and entropies of the packed rows, each `(B', T)`, in their order."""
        packed = pack_scoring(scoring, packing, self._pixels_by_row)
        rope_index = mrope_index(extract_model_from_parallel(scoring["model"]))
        positions = packed_positions(scoring, packed, packing, rope_index)
        self._packing = packing
        try:
            with self._forwards.score(packing, positions):
                logps, entropies, _ = score(**packed)
        finally:
            self._packing = None
        return packing.unpack(logps), None if entropies is None else packing.unpack(entropies)


def share_prefix(
    share: bool | str,
    models: list[PreTrainedModel],
    args: CPPOConfig,
    has_aux_loss: bool,
    rollouts_bring_images: bool,
    always_images: bool,
) -> SharedPrefix | None:
    """
    What scores the rollouts of a prompt behind one copy of it; `None` where each has a row of its own.

    Args:
        share (`bool` or `str`): `False`: not; `"auto"`: where it can be done and pays; `True`: wherever it can be done.
        models, args, has_aux_loss, rollouts_bring_images: see [`packing_obstacle`].
        always_images (`bool`): see [`SharedPrefix`].

    Raises:
        `ValueError`: if `share` is `True` and it cannot be done.
    """
    if not share:
        return None
    always = share is True
    obstacle = packing_obstacle(models, args, has_aux_loss, rollouts_bring_images)
    if obstacle is None:
        if always and window_size(args) < args.steps_per_generation:
            logger.warning(_REGROUPED.format(args.steps_per_generation))
        return SharedPrefix(models[0], always_images, always)
    if always:
        raise ValueError(f"share_prefix=True is not possible: {obstacle}. Or use share_prefix='auto' or False.")
    logger.warning(_PLAIN_ROWS.format(share, obstacle))
    return None


def packing_obstacle(
    models: list[PreTrainedModel], args: CPPOConfig, has_aux_loss: bool, rollouts_bring_images: bool
) -> str | None:
    """
    Why the rollouts of a prompt cannot share its prefix in a run, or `None` if they can.

    Args:
        models (`list[PreTrainedModel]`): the policy and, if there is one, the reference.
        has_aux_loss (`bool`): whether the router's auxiliary loss is on.
        rollouts_bring_images (`bool`): whether a rollout may have images of its own, from tools or environments.
    """
    if rollouts_bring_images:
        return "tools and environments may put images into completions"
    if args.neftune_noise_alpha is not None:
        return "NEFTune's noise depends on the length of a row; unset neftune_noise_alpha"
    if args.per_device_train_batch_size == 1:
        return "micro-batches of one row; per_device_train_batch_size should be a multiple of num_generations"
    obstacle = next((obstacle for obstacle in map(_model_obstacle, models) if obstacle is not None), None)
    if obstacle is None and has_aux_loss:
        return "the router's auxiliary loss counts every rollout's prompt; set router_aux_loss_coef=0"
    return obstacle


def _model_obstacle(model: PreTrainedModel) -> str | None:
    family, text = model.config.model_type, model.config.get_text_config()
    if family_of(model).unpackable is not None:
        return f"{family} cannot: {family_of(model).unpackable}"
    if not keeps_prompts_apart(text._attn_implementation):
        return (
            f"the attention implementation {text._attn_implementation!r} cannot keep rollouts apart; load the model with "
            "attn_implementation='sdpa' or 'flash_attention_2'"
        )
    if text.model_type not in PACKABLE_TEXT_MODELS:
        return f"the text model {text.model_type} was not tested; known: {', '.join(PACKABLE_TEXT_MODELS)}"
    settings = text.to_dict()
    if set(settings.get("layer_types") or ["full_attention"]) != {"full_attention"} or (
        not settings.get("layer_types") and settings.get("sliding_window")
    ):
        return "layers of the text model attend in a sliding window, or not at all"
    if is_peft_model(model):
        adapter = model.active_peft_config
        if adapter.is_prompt_learning or adapter.to_dict().get("alora_invocation_tokens"):
            return "the adapter (PEFT's prompt learning or activated LoRA) counts tokens by row; train with LoRA"
    return None

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which models can score the rollouts of a prompt behind one copy of it."""

from collections.abc import Callable

from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from .config import CPPOConfig
from .prefix_attention import ATTENTION

# By `config.model_type`, each held by a test that its packed scores and gradients equal the unpacked ones.
_MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_FAMILIES = (*_MROPE_FAMILIES, "idefics2", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "smolvlm")
# Their text models, by the text configuration's `model_type`.
_TEXT_MODELS = ("llama", "mistral", "qwen2", "qwen3", *(f"{family}_text" for family in _MROPE_FAMILIES))
_BIDIRECTIONAL = "its image tokens attend to each other in both directions"
_STATEFUL = "some of its layers carry a state from token to token, which a mask cannot cut between rollouts"
_REASONS = {
    "gemma3": _BIDIRECTIONAL,
    "gemma4": _BIDIRECTIONAL,
    "paligemma": "its whole prompt attends in both directions",
    "lfm2_vl": _STATEFUL,
    "qwen3_5": _STATEFUL,
    "qwen3_5_moe": _STATEFUL,
}


def mrope_index(model: PreTrainedModel) -> Callable | None:
    """The model's function of multimodal rotary positions, or `None` where it has none."""
    base = model.get_base_model() if is_peft_model(model) else model
    return base.model.get_rope_index if base.config.model_type in _MROPE_FAMILIES else None


def packing_obstacle(
    models: list[PreTrainedModel], args: CPPOConfig, has_aux_loss: bool, own_images: bool
) -> str | None:
    """
    Why the rollouts of a prompt cannot share its prefix in a run, or `None` if they can.

    Args:
        models (`list[PreTrainedModel]`): the policy and, if there is one, the reference.
        has_aux_loss (`bool`): whether the router's auxiliary loss is on.
        own_images (`bool`): whether a rollout may have images of its own, from tools or environments.
    """
    if own_images:
        return "tools and environments may put images into completions"
    if args.neftune_noise_alpha is not None:
        return "NEFTune's noise depends on the length of a row; unset neftune_noise_alpha"
    if args.per_device_train_batch_size == 1:
        return "micro-batches of one row; per_device_train_batch_size should be a multiple of num_generations"
    if has_aux_loss:
        return "the router's auxiliary loss counts every rollout's prompt; set router_aux_loss_coef=0"
    return next((obstacle for obstacle in map(_model_obstacle, models) if obstacle is not None), None)


def _model_obstacle(model: PreTrainedModel) -> str | None:
    family, text = model.config.model_type, model.config.get_text_config()
    if family not in _FAMILIES:
        return f"{family} cannot: {_REASONS.get(family, 'it was not tested')}"
    if text._attn_implementation not in ("sdpa", ATTENTION):
        return (
            f"the attention implementation {text._attn_implementation!r} cannot keep rollouts apart; load the model with "
            "attn_implementation='sdpa'"
        )
    if text.model_type not in _TEXT_MODELS:
        return f"the text model {text.model_type} was not tested; known: {', '.join(_TEXT_MODELS)}"
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

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether rollouts of one prompt can share a packed row, and whether it pays.

Shapes: `B` rows of `S` tokens as TRL scores them, `R` packed rows of `L` tokens.
"""

from dataclasses import dataclass
from typing import Any


from accelerate.utils import is_peft_model
from transformers import PreTrainedModel

from .packed_forward import MASKED_ATTENTION


# By `config.model_type`, each held by a test that its packed scores and gradients equal the unpacked ones.
_MROPE_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_FAMILIES = (*_MROPE_FAMILIES, "idefics2", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "smolvlm")
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


def mrope_index(model: PreTrainedModel) -> Any:
    """The model's function of multimodal rotary positions, or `None` where it has none."""
    base = model.get_base_model() if is_peft_model(model) else model
    return base.model.get_rope_index if base.config.model_type in _MROPE_FAMILIES else None


def packing_obstacle(model: PreTrainedModel, has_aux_loss: bool) -> str | None:
    """Why the rollouts of a prompt cannot share a row under this model, or `None` if they can."""
    family, text = model.config.model_type, model.config.get_text_config()
    if family not in _FAMILIES:
        return f"{family} cannot: {_REASONS.get(family, 'it was not tested')}"
    if text._attn_implementation not in MASKED_ATTENTION:
        return (
            f"the attention implementation {text._attn_implementation!r} takes no mask between rollouts; load the model "
            "with attn_implementation='sdpa'"
        )
    settings = text.to_dict()
    if set(settings.get("layer_types") or ["full_attention"]) != {"full_attention"} or (
        not settings.get("layer_types") and settings.get("sliding_window")
    ):
        return "layers of the text model attend in a sliding window, or not at all"
    if has_aux_loss:
        return "the router's auxiliary loss counts every rollout's prompt; set router_aux_loss_coef=0"
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        return "PEFT's prompt learning puts tokens of its own before each row; train with LoRA"
    return None


@dataclass(frozen=True)
class ScoringCost:
    """
    FLOPs of a scoring forward, without the fused head, whose work packing does not change on a GPU.

    Attributes:
        token (`float`): of one token in the text model's layers.
        pair (`float`): of one query and one key, in all layers; masked ones cost the same.
        patch (`float`): of one image patch in the vision tower, without its attention.
        patch_values (`int`): pixel values of one patch.
    """

    token: float
    pair: float
    patch: float
    patch_values: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "ScoringCost":
        text, vision = model.config.get_text_config().to_dict(), model.config.vision_config.to_dict()
        active = text["num_experts_per_tok"] / text["num_experts"] if text.get("num_experts") else 1.0
        parameters = {"text": 0.0, "vision": 0.0}
        for name, parameter in model.named_parameters():
            is_expert = ".experts." in name
            if parameter.dim() < 2 or "embed" in name or "lm_head" in name:
                continue
            size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves a parameter of no elements
            parameters["vision" if "vis" in name else "text"] += size * (active if is_expert else 1)
        heads = text["num_attention_heads"]
        head_dim = text.get("head_dim") or text["hidden_size"] // heads
        side = vision["patch_size"]
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return cls(
            token=2 * parameters["text"],
            pair=4 * heads * head_dim * text["num_hidden_layers"],
            patch=2 * parameters["vision"],
            patch_values=3 * height * width * vision.get("temporal_patch_size", 1),
        )

    def __call__(self, scoring: dict[str, Any]) -> float:
        """FLOPs of scoring arguments, packed or not: of their rows with padding, and their pixels."""
        num_rows, length = scoring["input_ids"].shape
        pixels = scoring.get("pixel_values")
        patches = 0 if pixels is None else pixels.numel() / self.patch_values
        return num_rows * (length * self.token + length**2 * self.pair) + patches * self.patch

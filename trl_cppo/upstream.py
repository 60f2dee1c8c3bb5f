# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Repairs of faults in TRL and transformers that would lose a CPPO run. Delete each once it is mended upstream."""

from typing import Any

from transformers import PreTrainedModel
from trl import GRPOTrainer


class RepairedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer without the two faults that the methods below name (trl 1.16, transformers 5.23)."""

    def _tokenize_prompts(self, prompts: list[Any]):
        # TRL marks the text-only rows of a mixed batch with None, which image processors have refused since
        # transformers 5 ("only a single or a list of entries is supported"). vLLM's side of TRL needs the None.
        prompt_ids, images, multimodal_fields = super()._tokenize_prompts(prompts)
        if images is not None and not self.use_vllm:
            images = [row_images or [] for row_images in images]
        return prompt_ids, images, multimodal_fields

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # Trainer compares a checkpoint's keys with the model's as they are. Qwen2-VL and others are saved under older
        # names, so nothing matches, a warning scrolls by and the run goes on from the INITIAL weights
        # (QwenLM/Qwen3-VL issue 1763). from_pretrained translates the names.
        target = self.model if model is None else model
        if not isinstance(target, PreTrainedModel) or self.is_fsdp_enabled:  # adapters and shards keep their names
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

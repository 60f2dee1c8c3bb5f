# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What a scoring forward does where none of its rows has an image.

Before it, a row without an image meets `run/rows/checks.py` (which images are a row's), `run/upstream.py` (None and [] in what TRL
takes), `scoring/families.py` (mixtures that TRL would cut wrongly) and `run/rows/rollout_views.py` (no views, so no CPL).

Shapes: `B` rows of the forward, `L` tokens of prompt and completion.
"""

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import ModelOutput

from .arguments import BY_ROW, PIXELS

_SIDE = 56  # pixels


class ImagelessForwards:
    """
    Hooks that let a model score rows without any image: TRL hands it pixels of no image there, which models refuse.

    One process drops them. Of several, each must run the vision tower: sharded weights are gathered, and gradients
    reduced, by the modules that ran, and a process that skips some meets the others in the wrong collective operation
    (a hang, a crash or wrong gradients, under ZeRO-1/2/3, FSDP2 and DDP). So one row with a grey image is appended,
    and taken off the result again; its gradient is zero. So it is on one process where the language model is frozen, for nothing
    else of the forward has a gradient.

    Args:
        processor (`ProcessorMixin`): makes the row.
        append_row (`bool`): whether to append it.
    """

    def __init__(self, processor: ProcessorMixin, append_row: bool):
        self._processor = processor
        self.append_row = append_row
        self._appended = False
        self._row: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self, model: PreTrainedModel) -> None:
        """Register the hooks; only forwards with TRL's `fused_lm_head=True`, which score, are touched."""
        self._handles.append(model.register_forward_pre_hook(self._before, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._after))

    def detach(self) -> None:
        """Leave the models as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        self._appended = False  # it may be left from a forward that failed
        if not kwargs.get("fused_lm_head") or _has_images(kwargs):
            return None
        kwargs = {name: value for name, value in kwargs.items() if name not in PIXELS}
        if self.append_row:
            kwargs = self._with_row(kwargs)
        self._appended = self.append_row
        return args, kwargs

    def _with_row(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not self._row:
            content = [{"type": "image"}, {"type": "text", "text": "."}]
            text = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            image = Image.new("RGB", (_SIDE, _SIDE), "gray")
            self._row = dict(self._processor(text=[text], images=[[image]], return_tensors="pt"))
        ids = kwargs["input_ids"]
        width = max(ids.size(1), self._row["input_ids"].size(1))
        extended = dict(kwargs)
        for name in BY_ROW:
            if name in self._row:
                rows = kwargs.get(name, torch.zeros_like(ids))
                extended[name] = torch.cat([_pad_left(rows, width), _pad_left(self._row[name].to(ids.device), width)])
        nothing = torch.full_like(extended["input_ids"][-1:], -100)  # no token of the row is scored
        extended["labels"] = torch.cat([_pad_left(kwargs["labels"], width, -100), nothing])
        pixels = {name: self._row[name].to(ids.device) for name in PIXELS if name in self._row}
        return {**extended, **pixels}

    def _after(self, module: torch.nn.Module, args: tuple, output: ModelOutput) -> ModelOutput:
        if self._appended:
            output.log_probs = output.log_probs[:-1] + 0 * output.log_probs[-1:].sum()
            if output.entropy is not None:
                output.entropy = output.entropy[:-1]
        return output


def _has_images(kwargs: dict[str, Any]) -> bool:
    # Idefics' and SmolVLM's pixels have an entry a row, and the models themselves skip the zeros that pad it.
    pixels = kwargs.get("pixel_values")
    return pixels is not None and len(pixels) > 0 and not (pixels.dim() == 5 and not pixels.any())


def _pad_left(tensor: torch.Tensor, width: int, value: int = 0) -> torch.Tensor:
    return F.pad(tensor, (width - tensor.size(1), 0), value=value)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What tells one evaluation from another: hashes of questions and weights, and the settings that results depend on."""

import hashlib
import json
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ....run.rows.checks import images_of
from ...line import changes
from ..errors import EvaluationError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


def question_hash(example: dict[str, Any]) -> str:
    """16 hexadecimal digits that change with a row's prompt, its solution or a pixel of its images."""
    parts = [example["prompt"], example.get("solution"), images_of(example)[1]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_hash_object).encode()).hexdigest()[:16]


def _hash_object(value: Any) -> str:
    if isinstance(value, Image.Image):
        return hashlib.sha256(f"{value.mode} {value.size}".encode() + value.tobytes()).hexdigest()
    return repr(value)


def weights_hash(model: PreTrainedModel) -> str:
    """
    16 hexadecimal digits that change when a model is trained on: from the sum of each tensor's bits as integers.

    A folder's name does not tell that the model in it was replaced.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        content = weight.detach().flatten().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64)
        digest.update(f"{name} {tuple(weight.shape)} {int(content)}\n".encode())
    return digest.hexdigest()[:16]


def check_same_settings(path: str, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """
    Refuse to go on with, or to replace, results of other settings.

    Raises:
        `EvaluationError`: naming the file, the settings that differ and the way out.
    """
    changed = changes(stored, settings)
    if changed:
        raise EvaluationError(
            f"{path} holds results of other settings. {changed}. Keep them and give another --output, or drop them with "
            "--overwrite."
        )

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The embedded task: a tiny Qwen2.5-VL adds two real handwritten digits. CPU only, no Hub, a few minutes.

Needs scikit-learn, which ships the digits (`pip install "trl-cppo[digits]"`).
"""

from .evaluation import HeldOutAccuracy, accuracy
from .model import build_model, build_processor, build_tokenizer
from .pretraining import warm_start
from .task import make_dataset, sum_reward

__all__ = [
    "HeldOutAccuracy",
    "accuracy",
    "build_model",
    "build_processor",
    "build_tokenizer",
    "make_dataset",
    "sum_reward",
    "warm_start",
]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501) as a trainer for Hugging Face TRL."""

from importlib.metadata import version

from .config import CPPOConfig
from .trainer import CPPOTrainer
from .views import get_view, register_view

__all__ = ["CPPOConfig", "CPPOTrainer", "get_view", "register_view"]
__version__ = version("trl-cppo")

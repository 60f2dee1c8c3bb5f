# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501) as a trainer for Hugging Face TRL."""

from importlib.metadata import version

from .method.image_size import limit_pixels
from .method.views import get_view, register_view
from .run.trl_contract import FITTING_TRL

try:
    from .commands.view_scoring import score_views
    from .config import CPPOConfig
    from .trainer import CPPOTrainer
except ImportError as error:
    if error.name is not None and error.name.partition(".")[0] == "trl":  # it has not, or no longer, what we import
        error.add_note(FITTING_TRL)
    raise

__all__ = ["CPPOConfig", "CPPOTrainer", "get_view", "limit_pixels", "register_view", "score_views"]
__version__ = version("trl-cppo")

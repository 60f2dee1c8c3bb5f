# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
CPPO (Contrastive Perception Policy Optimization, arXiv 2601.00501) as a trainer for Hugging Face TRL.

Each name is imported when it is first asked for (PEP 562): TRL and transformers take seconds, which `trl-cppo --help` has not.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .versions import FITTING_TRL, is_of_trl

if TYPE_CHECKING:
    from .commands.view_scoring import score_views
    from .config import CPPOConfig
    from .method.image_size import limit_pixels
    from .method.views import get_view, register_view
    from .trainer import CPPOTrainer

__all__ = ["CPPOConfig", "CPPOTrainer", "get_view", "limit_pixels", "register_view", "score_views"]
__version__ = version("trl-cppo")

_HOMES = {
    "CPPOConfig": ".config",
    "CPPOTrainer": ".trainer",
    "get_view": ".method.views",
    "limit_pixels": ".method.image_size",
    "register_view": ".method.views",
    "score_views": ".commands.view_scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name], __name__), name)
    except ImportError as error:
        if is_of_trl(error):
            error.add_note(FITTING_TRL)
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

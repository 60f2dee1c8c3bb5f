# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""ViRL39K, geometry3k, multimodal-open-r1 and data sets of their columns as conversational `prompt`, `images`, `solution`."""

from .build import prepare, write
from .rows import PROMPT_SUFFIX

__all__ = ["PROMPT_SUFFIX", "prepare", "write"]

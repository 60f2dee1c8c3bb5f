# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: README.md of every saved model. Everything in it is known, measured or left out."""

from .results import add_evaluation
from .writer import ModelCardMixin

__all__ = ["ModelCardMixin", "add_evaluation"]

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: Markdown of what is known of a model, its training and its results."""

from .model_card import CardExample, write_card
from .results import add_evaluation

__all__ = ["CardExample", "add_evaluation", "write_card"]

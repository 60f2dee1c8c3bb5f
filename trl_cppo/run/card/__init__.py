# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The model card: Markdown of what is known of a model, its training and its results. Facts in, `README.md` out."""

from .facts import CardExample, CardFacts, Hardware
from .markdown import is_hub_id
from .model_card import write_card
from .results import add_evaluation

__all__ = ["CardExample", "CardFacts", "Hardware", "add_evaluation", "is_hub_id", "write_card"]

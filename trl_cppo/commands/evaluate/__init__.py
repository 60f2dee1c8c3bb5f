# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a vision-language model: completions, scores, statistics, comparison. docs/evaluation.md says how."""

from .comparison import compare, comparison_table
from .generation import CompletionGenerator
from .records import Records
from .runner import evaluate_rows
from .summary import summarize, table

__all__ = ["CompletionGenerator", "Records", "compare", "comparison_table", "evaluate_rows", "summarize", "table"]

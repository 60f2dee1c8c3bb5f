# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a vision-language model: completions, scores, statistics, comparison. docs/evaluation.md says how."""

from .generation import CompletionGenerator
from .results.comparison import compare, comparison_table
from .results.records import Records
from .results.summary import summarize, table
from .runner import evaluate_rows

__all__ = ["CompletionGenerator", "Records", "compare", "comparison_table", "evaluate_rows", "summarize", "table"]

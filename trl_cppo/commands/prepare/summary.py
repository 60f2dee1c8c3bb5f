# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What became of a data set's rows, for people: how many were kept, which were left out, why, and what to do."""

import statistics
from collections import Counter

from datasets import DatasetDict

from ...run.rows.overview import count_images, images_text

_NAMED = 5  # rows of a reason


class Outcomes(Counter):
    """
    How many rows of a split were `"kept"`, and how many left out for each reason.

    Attributes:
        rows (`dict[str, list[int]]`): which, by reason; their places in the source.
        advice (`str`): what to do about them; empty if nothing.
    """

    def __init__(self, outcomes: list[str], advice: str = ""):
        super().__init__(outcomes)
        self.advice = advice
        self.rows: dict[str, list[int]] = {}
        for row, outcome in enumerate(outcomes):
            self.rows.setdefault(outcome, []).append(row)


def too_long(max_prompt_length: int) -> str:
    """The reason of a prompt that is too long."""
    return f"prompt of more than {max_prompt_length} tokens"


def left_out(outcomes: Outcomes) -> str:
    """The reasons in one line, with the first rows of each; empty if all rows were kept."""
    reasons = [(reason, count) for reason, count in outcomes.items() if reason != "kept"]
    return ", ".join(f"{count} left out ({reason}{_named(outcomes.rows[reason])})" for reason, count in reasons)


def _named(rows: list[int]) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"; row{'s' if len(rows) > 1 else ''} {', '.join(str(row) for row in rows[:_NAMED])}{more}"


def describe(dataset: DatasetDict, counts: dict[str, Outcomes]) -> str:
    """A line for each split, and what to do about rows that were left out."""
    lines = []
    for split, rows in dataset.items():
        parts = [f"{len(rows)} rows", left_out(counts[split]), images_text(count_images(rows))]
        if "num_tokens" in rows.column_names and len(rows):
            lengths = rows["num_tokens"][:]
            parts.append(f"prompts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}")
        lines.append(f"{split}: {', '.join(part for part in parts if part)}")
        lines += [counts[split].advice] if counts[split].advice else []
    return "\n".join(lines)

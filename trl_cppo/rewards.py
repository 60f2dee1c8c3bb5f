# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rewards that CPPO's authors use and TRL does not ship."""

import re
from typing import Any

_THINK_THEN_BOXED = re.compile(r"\s*<think>(?:(?!<think>).)*</think>(?:(?!</?think>).)*\\boxed\{.*\}.*", re.DOTALL)


def think_boxed_format_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    r"""
    1.0 where a completion reads `<think>…</think>…\boxed{…}…`, with one think block at its beginning, else 0.0.

    Args:
        completions (`list[list[dict[str, str]]]`): conversational completions of one assistant message.
        **kwargs: what TRL passes besides; not used.

    Returns:
        `list[float]`: one reward a completion.
    """
    return [float(_THINK_THEN_BOXED.fullmatch(message["content"]) is not None) for [message] in completions]

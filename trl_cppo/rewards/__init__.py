# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Rewards that read boxed answers, and what compares these."""

from .functions import boxed_accuracy_reward, think_boxed_format_reward

__all__ = ["boxed_accuracy_reward", "think_boxed_format_reward"]

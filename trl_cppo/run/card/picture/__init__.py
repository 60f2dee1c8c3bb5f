# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The picture of a training run: metrics over its steps, and answers before and after. Needs matplotlib (`pip install "trl-cppo[digits]"`)."""

from .plotting import Shown, metric_history, plot_training

__all__ = ["Shown", "metric_history", "plot_training"]

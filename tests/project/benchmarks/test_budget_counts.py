# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""With views of K rollouts a prompt, an update with long completions costs about GRPO's: counted on a narrow 3B."""

import torch

from benchmarks.cost.scale import PREFIX_GROUP, PROMPTS
from benchmarks.cost.scale_tables import BUDGET_ARM
from benchmarks.cost.shared_prefix import small_model
from benchmarks.lib.shapes import Row, ShapeBench

# By completion tokens and K, behind a prompt of 600, of 8 rollouts: the most FLOPs and bytes over those of GRPO's plain rows.
TARGETS = {1600: {1: 0.92, 2: 1.10}, 3200: {1: 1.05}}


def test_an_update_within_a_budget_keeps_to_the_targets():
    bench, config = ShapeBench("meta", torch.float32), small_model()
    for completion, targets in TARGETS.items():
        rows = [Row(*PROMPTS[600], completion)] * PREFIX_GROUP
        grpo = bench.update(config, rows, 0, "grpo")
        for budget, target in targets.items():
            own = bench.update(config, rows, budget, BUDGET_ARM)
            tokens = (600 + 8 * completion + 2 * (600 + budget * completion)) / (8 * (600 + completion))
            # Of attention and the tower there is less than of tokens, of the head more.
            assert 0.8 * tokens < own.flops / grpo.flops <= target, (completion, budget)
            assert own.saved_bytes / grpo.saved_bytes <= target
            assert max(own.peaks.values()) / max(grpo.peaks.values()) <= target

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The part of the trainer that keeps `max_pixels` and `min_pixels`, and says before the first step whether prompts fit."""

from typing import Any

from .families import ViewProcessor, placeholder_texts
from .packed_trainer import SharedPrefixGRPOTrainer
from .prompt_checks import check_prompts
from .prompt_lengths import report_prompt_lengths
from .row_images import RowImages


class SizedGRPOTrainer(SharedPrefixGRPOTrainer):
    """
    GRPOTrainer with `max_pixels` and `min_pixels` (see [`CPPOConfig`]).

    The rows of the data set are limited by the caller of `_generate_and_score_completions`, who shares them with the
    views; here, what tools and environments add.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        limits = self.args.max_pixels, self.args.min_pixels
        self._process_views = views = ViewProcessor(self.model, self.processing_class)
        self.row_images = RowImages(*limits, views.to_rgb, load_paths=self.use_vllm, convert=not views.converts)

    def train(self, *args, **kwargs):
        # On every process: one that stopped alone would leave the others waiting for it.
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        named = {
            f"the evaluation data set {key!r}" if key else "the evaluation data set": datasets[key] for key in datasets
        }
        placeholders = placeholder_texts(self.model, self.processing_class)
        for name, dataset in {"the training data set": self.train_dataset, **named}.items():
            check_prompts(dataset, name, placeholders)
        if self.is_world_process_zero():
            report_prompt_lengths(self)
        return super().train(*args, **kwargs)

    def _generate(self, prompts: list[Any]):
        if self.environment_factories is not None and self.row_images.active:
            # In place: TRL shows rewards and logs the list that it passed here, which it made for this batch.
            prompts[:] = self.row_images.prompts(prompts)
        return super()._generate(prompts)

    def _tool_call_loop(self, *args, **kwargs):
        if self.row_images.active:  # the names of each rollout's tools, which TRL sets anew for every batch
            self._sync_tool_dicts = [self._limiting(tools) for tools in self._sync_tool_dicts]
            self._async_tool_dicts = [self._limiting(tools) for tools in self._async_tool_dicts]
        return super()._tool_call_loop(*args, **kwargs)

    def _limiting(self, tools: dict[str, Any]) -> dict[str, Any]:
        return {name: self.row_images.tool(tool) for name, tool in tools.items()}

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Trainers that complete rows in a fixed way instead of sampling, so that two of them can be compared step by step."""

import random

from trl import GRPOTrainer

from trl_cppo import CPPOTrainer


class FixedRollouts:
    """In front of a trainer class. The completion of a row depends on the step and on its place in the global batch."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        first = self.accelerator.process_index * len(prompt_ids)
        rows = range(first, first + len(prompt_ids))
        return [self.completion(self.state.global_step, row) for row in rows], None

    def completion(self, step: int, row: int) -> list[int]:
        draw = random.Random(1000 * step + row)
        words = self._tokenizer.convert_tokens_to_ids([str(number) for number in range(28)])
        return [*draw.choices(words, k=draw.randint(3, 6)), self._tokenizer.eos_token_id]

    def log(self, logs: dict[str, float], *args) -> None:
        super().log(logs, *args)
        self.logged = [*getattr(self, "logged", []), dict(logs)]


class FixedCPPOTrainer(FixedRollouts, CPPOTrainer):
    pass


class FixedGRPOTrainer(FixedRollouts, GRPOTrainer):
    pass

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The columns that CPPO adds to TRL's table of completions, which `log_completions` turns on.

`B` rows of a batch on one process, `N` gated rows among them, `T` completion tokens.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object

from .dataset_checks import ROW_PLACE
from .token_text import TokenTexts
from .upstream import RepairedGRPOTrainer, decorating

PERCEPTION_TOKENS = "perception_tokens"
DATASET_ROW = "dataset_row"
_TABLE_ROW = "table_row"  # entry of a batch: each rollout's place among all that the table ever held


class TabledGRPOTrainer(RepairedGRPOTrainer):
    """
    GRPOTrainer whose completions table says which data set row each rollout is of and which its perception tokens are.

    `perception_tokens` holds the texts of the tokens that the latest loss of the rollout selected; `None` for a rollout
    without views, and for one whose loss is still to come (`steps_per_generation` > 1). `dataset_row` is the place in
    the training or evaluation data set, `None` for a stream. Without `log_completions`, or with `cpl_coef=0`, nothing
    is added or computed.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._num_tabled = 0  # rollouts, of all processes
        self._token_texts = TokenTexts(self._tokenizer)
        self._selections: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by table row: token ids, which of them

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.log_completions or self.args.cpl_coef == 0:
            return super()._generate_and_score_completions(inputs)
        # TRL gathers these with the rollouts, so that columns and rows of the table stay together.
        places = [example.get(ROW_PLACE) for example in inputs]
        self._log_completion_extra(DATASET_ROW, [None if place is None else place.row for place in places])
        self._log_completion_extra(PERCEPTION_TOKENS, [None] * len(inputs))
        batch = super()._generate_and_score_completions(inputs)
        first = self._num_tabled + self.accelerator.process_index * len(inputs)
        self._num_tabled += self.accelerator.num_processes * len(inputs)
        self._forget_old_rows()
        # A list, which TRL shuffles and splits by row.
        return {**batch, _TABLE_ROW: list(range(first, first + len(inputs)))}

    def _keep_selection(self, inputs: dict[str, Any], rows: list[int], selected: torch.Tensor) -> None:
        """
        Note what a loss selected, for the table.

        Args:
            inputs (`dict[str, Any]`): the micro-batch.
            rows (`list[int]` of length N): its gated rows.
            selected (`torch.Tensor` of shape `(N, T)`, bool): their perception tokens.
        """
        if _TABLE_ROW not in inputs:
            return
        lengths = inputs["completion_mask"].sum(dim=1).tolist()
        for row, row_selected in zip(rows, selected, strict=True):
            ids = inputs["completion_ids"][row, : lengths[row]]
            self._selections[inputs[_TABLE_ROW][row]] = (ids, row_selected[: lengths[row]])

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if not self.log_completions:
            super().log(logs, *args, **kwargs)
            return
        if self.args.cpl_coef != 0:
            self._fill_table()
        with decorating("the table of completions"):
            _even_contents(self._logs["prompt"], always="wandb" in self.args.report_to)
        with self._table_may_fail():
            super().log(logs, *args, **kwargs)

    @contextmanager
    def _table_may_fail(self) -> Iterator[None]:
        """TRL logs metrics, then writes and prints the table, in one method: errors of the latter alone are a warning."""
        before = len(self.state.log_history)
        try:
            yield
        except Exception:
            if len(self.state.log_history) == before or self._metrics[self._mode]:  # which TRL empties in between
                raise
            with decorating("the table of completions"):
                raise

    def _forget_old_rows(self) -> None:
        oldest = self._num_tabled - len(self._logs["advantages"])  # the table keeps the latest rows
        self._selections = {row: kept for row, kept in self._selections.items() if row >= oldest}

    def _fill_table(self) -> None:
        """Bring the selections of all processes into their rows of the table. A collective operation."""
        self._forget_old_rows()  # an evaluation may have pushed a training batch out whose losses are not all done
        texts = [(row, self._selected_texts(*kept)) for row, kept in self._selections.items()]
        self._selections.clear()
        for row, row_texts in gather_object(texts):
            self._logs["extra"][PERCEPTION_TOKENS][row - self._num_tabled] = row_texts  # counted from the end

    def _selected_texts(self, ids: torch.Tensor, selected: torch.Tensor) -> list[str]:
        pairs = zip(self._token_texts(ids.tolist()), selected.tolist(), strict=True)
        return [token.text for token, chosen in pairs if chosen]


def _even_contents(prompts: deque[Any], always: bool) -> None:
    """
    Make plain texts of all prompts' contents, in place: always, or where some are texts and some lists of parts.

    Either ends TRL's run at its first logging step: parquet "cannot mix list and non-list" (one process, or one
    evaluation batch, is text-only), and W&B's table takes no list of an image and a text part ("incompatible types").
    """
    conversations = [prompt for prompt in prompts if isinstance(prompt, list)]
    kinds = {type(message.get("content")) for prompt in conversations for message in prompt}
    if list in kinds and (always or len(kinds) > 1):
        for place, prompt in enumerate(prompts):
            prompts[place] = [{**message, "content": _as_text(message.get("content"))} for message in prompt]


def _as_text(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"[{part['type'].upper()}]" for part in content)

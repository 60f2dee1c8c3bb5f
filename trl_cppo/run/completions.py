# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The columns that CPPO adds to TRL's table of completions, which `log_completions` turns on.

`B` rows of a batch on one process, `N` gated rows among them, `T` completion tokens.
"""

from collections import deque
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from .rows.checks import ROW_PLACE
from .token_text import TokenTexts

PERCEPTION_TOKENS = "perception_tokens"
DATASET_ROW = "dataset_row"
TABLE_ROW = "table_row"  # entry of a batch: each rollout's place among all that the table ever held


class CompletionsTable:
    """
    Says in the table which data set row each rollout is of and which its perception tokens are.

    `perception_tokens` holds the texts of the tokens that the latest loss of the rollout selected; `None` for a rollout
    without views, and for one whose loss is still to come (`steps_per_generation` > 1). `dataset_row` is the place in
    the training or evaluation data set, `None` for a stream.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        process_index, num_processes (`int`): of the run.

    Attributes:
        selections (`dict`): by their rows of the table: token ids, and which of them a loss selected.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, process_index: int, num_processes: int):
        self.selections: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._process_index, self._num_processes = process_index, num_processes
        self._num_tabled = 0  # rollouts, of all processes
        self._token_texts = TokenTexts(tokenizer)

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        """What TRL is to log of the B rows of a generation batch, before it scores them."""
        places = [row.get(ROW_PLACE) for row in rows]
        numbers = [None if place is None else place.row for place in places]
        return {DATASET_ROW: numbers, PERCEPTION_TOKENS: [None] * len(rows)}

    def begin(self, num_rows: int, num_kept: int) -> list[int]:
        """
        The entry [`TABLE_ROW`] of a generation batch that TRL has logged.

        Args:
            num_rows (`int`): B.
            num_kept (`int`): how many rollouts, of all processes, the table keeps by now.
        """
        first = self._num_tabled + self._process_index * num_rows
        self._num_tabled += self._num_processes * num_rows
        self._forget(num_kept)
        return list(range(first, first + num_rows))

    def note(self, inputs: dict[str, Any], rows: list[int], selected: torch.Tensor) -> None:
        """
        Note what a loss selected.

        Args:
            inputs (`dict[str, Any]`): the micro-batch.
            rows (`list[int]` of length N): its gated rows.
            selected (`torch.Tensor` of shape `(N, T)`, bool): their perception tokens.
        """
        lengths = inputs["completion_mask"].sum(dim=1).tolist()
        for row, row_selected in zip(rows, selected, strict=True):
            ids = inputs["completion_ids"][row, : lengths[row]]
            self.selections[inputs[TABLE_ROW][row]] = (ids, row_selected[: lengths[row]])

    def fill(self, column: deque[Any]) -> None:
        """Bring the selections of all processes into the column `perception_tokens`, in place. A collective operation."""
        self._forget(len(column))  # an evaluation may have pushed a training batch out whose losses are not all done
        texts = [(row, self._selected_texts(*kept)) for row, kept in self.selections.items()]
        self.selections.clear()
        for row, row_texts in gather_object(texts):
            column[row - self._num_tabled] = row_texts  # counted from the end

    def _forget(self, num_kept: int) -> None:
        oldest = self._num_tabled - num_kept
        self.selections = {row: kept for row, kept in self.selections.items() if row >= oldest}

    def _selected_texts(self, ids: torch.Tensor, selected: torch.Tensor) -> list[str]:
        pairs = zip(self._token_texts(ids.tolist()), selected.tolist(), strict=True)
        return [token.text for token, chosen in pairs if chosen]


def even_contents(prompts: deque[Any], always: bool) -> None:
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

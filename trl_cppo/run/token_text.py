# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The text of single tokens, where a character may be spread over several of them."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character
_MAX_SPREAD = 8  # tokens; four bytes make a character, and a token may end one and begin the next


@dataclass(frozen=True)
class TokenText:
    """A token's text; of a character that several tokens make, each has the whole text and says which part it is."""

    text: str
    part: int = 1
    parts: int = 1


class TokenTexts:
    """
    Tells the text of each token of a completion, special tokens included.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model that wrote the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def __call__(self, ids: list[int]) -> list[TokenText]:
        """
        One text a token; those of the first parts, put together, are the completion's.

        Args:
            ids (`list[int]`): the tokens in their order. Bytes that never become a character stay U+FFFD.
        """
        texts, place = [], 0
        while place < len(ids):
            text, parts = self._of_one(ids[place]), 1
            if text.endswith(_BROKEN):
                text, parts = self._joined(ids[place : place + _MAX_SPREAD]) or (text, 1)
            texts += [TokenText(text, part, parts) for part in range(1, parts + 1)]
            place += parts
        return texts

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _of_one(self, token: int) -> str:
        if token not in self._alone:
            text = self._decode([token])
            # SentencePiece drops the space in front of what it takes for the first word.
            piece = self._tokenizer.convert_ids_to_tokens(token) or ""
            self._alone[token] = f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text
        return self._alone[token]

    def _joined(self, ids: list[int]) -> tuple[str, int] | None:
        for count in range(2, len(ids) + 1):
            text = self._decode(ids[:count])
            if _BROKEN not in text:
                return text, count
        return None

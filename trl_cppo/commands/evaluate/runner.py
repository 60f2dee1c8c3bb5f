# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Completes and scores the rows of a data set that no record holds yet."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

from ...run.rows.checks import LocatedRows, row_name
from ...run.rows.images import RowImages
from ..loading import RewardCountError
from .errors import EvaluationError
from .generation import Completion, Generator
from .results.identity import question_hash
from .results.records import Record


def evaluate_rows(
    rows: LocatedRows,
    indices: list[int],
    generator: Generator,
    reward: Callable[..., Any],
    *,
    greedy: bool = True,
    num_samples: int = 0,
    batch_size: int = 8,
    row_images: RowImages | None = None,
) -> Iterator[list[Record]]:
    """
    Evaluate rows, batch by batch.

    Args:
        rows (`LocatedRows`): the data set.
        indices (`list[int]`): which of its rows.
        generator (`Generator`): writes the completions.
        reward (`Callable`): a reward function as GRPOTrainer takes them.
        greedy (`bool`, *optional*, defaults to `True`): whether to complete each prompt greedily.
        num_samples (`int`, *optional*, defaults to `0`): sampled completions of each prompt.
        batch_size (`int`, *optional*, defaults to `8`): prompts completed at once; changes no result in float32.
        row_images (`RowImages`, *optional*): limits the images that the model and the reward see. A question is the same
            question under another limit.

    Yields:
        `list[Record]`: one a row of the batch.

    Raises:
        `EvaluationError`: naming the row, if it cannot be read, turned into model inputs or scored.
    """
    numbers: list[int | None] = [None] * greedy + list(range(num_samples))
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        try:
            examples = rows.__getitems__(batch)
            limited = examples if row_images is None else row_images.rows(examples)
            inputs = generator.encode(limited)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        scored = []
        for completions in generator.complete(inputs, batch, numbers):
            scores = _score(reward, limited, completions)
            scored.append([_describe(*pair) for pair in zip(completions, scores, strict=True)])
        yield [
            {
                "row": row,
                "question": question_hash(example),
                "greedy": column[0] if greedy else None,
                "samples": list(column[greedy:]),
                **_group_of(example),
            }
            for row, example, column in zip(batch, examples, zip(*scored, strict=True), strict=True)
        ]


def _group_of(example: dict[str, Any]) -> dict[str, Any]:
    """The questions that a benchmark scores together, as `prepare` has written it."""
    group = example.get("question_group")
    return {"group": group} if isinstance(group, dict) else {}


def _describe(completion: Completion, value: float | None) -> dict[str, Any]:
    return {
        "text": completion.text,
        "tokens": len(completion.ids),
        "clipped": completion.clipped,
        "score": value,
    }


def _score(
    reward: Callable[..., Any], examples: list[dict[str, Any]], completions: list[Completion]
) -> list[float | None]:
    try:
        return score(reward, examples, completions)
    except RewardCountError:
        raise
    except Exception as error:
        for position, pair in enumerate(zip(examples, completions, strict=True)):
            try:
                score(reward, *([entry] for entry in pair))
            except Exception as alone:
                name, kind = row_name(examples[position], position), type(alone).__name__
                raise EvaluationError(f"{name}: the reward {reward.__name__} fails with {kind}: {alone}") from alone
        raise error


def score(
    reward: Callable[..., Any], examples: list[dict[str, Any]], completions: list[Completion]
) -> list[float | None]:
    """
    The reward of one completion a row, called with the columns that GRPOTrainer passes.

    Args:
        reward (`Callable`): may be a coroutine function.
        examples (`list[dict]`): the rows.
        completions (`list[Completion]`): one a row.

    Returns:
        `list[float | None]`: `None` where the reward says that it cannot score.
    """
    columns = [name for name in examples[0] if name not in ("prompt", "completion", "completion_ids")]
    values = reward(
        prompts=[example["prompt"] for example in examples],
        completions=[[{"role": "assistant", "content": completion.text}] for completion in completions],
        completion_ids=[completion.ids for completion in completions],
        **{name: [example[name] for example in examples] for name in columns},
    )
    values = asyncio.run(values) if inspect.isawaitable(values) else values
    return [None if value is None or math.isnan(value) else float(value) for value in values]


def find_changed_row(rows: LocatedRows, records: dict[int, Record], batch_size: int = 64) -> str | None:
    """What errors call the first row whose prompt, solution or images are not those that were evaluated, if any."""
    indices = list(records)
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        for index, example in zip(batch, rows.__getitems__(batch), strict=True):
            if question_hash(example) != records[index]["question"]:
                return row_name(example, index)
    return None

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How many rows and tokens the forward of a micro-batch comes to with its views: told before a run, and when memory ran out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ...config import CPPOConfig
from ...scoring.regrouping import micro_batches_matter, window_size


def most_views(args: CPPOConfig) -> int:
    """The most rollouts of a prompt that have views: of a whole group, one is not above the mean."""
    compared = args.gate_by_advantage and args.multi_objective_aggregation != "normalize_then_sum"
    most = args.num_generations - compared
    return most if args.cpl_rollouts_per_prompt is None else min(most, args.cpl_rollouts_per_prompt)


def most_tokens(args: CPPOConfig, prompt: int, packs: bool) -> int:
    """
    The most tokens of a micro-batch's forward, prompts and completions as long as they may be.

    Args:
        prompt (`int`): tokens of the longest prompt.
        packs (`bool`): whether rollouts share their prompt's prefix where they lie in one micro-batch.
    """
    rows, group, completion, views = (
        args.per_device_train_batch_size,
        args.num_generations,
        args.max_completion_length,
        most_views(args),
    )
    brought = args.share_prefix is True or (
        not micro_batches_matter(args) and window_size(args) == args.steps_per_generation
    )
    if packs and brought and rows % group == 0:
        copies = completion + 1  # each behind a copy of the prompt's last token
        return rows // group * ((prompt - 1 + group * copies) + 2 * (prompt - 1 + views * copies))
    # TRL's shuffle may put rollouts with views alone into a micro-batch, as many as the generation batch has.
    viewed = min(rows, views * (args.generation_batch_size // group))
    return (rows + 2 * viewed) * (prompt + completion)


def forward_text(args: CPPOConfig, prompt: int, packs: bool) -> str:
    """A sentence on [`most_tokens`], with the way out where it is more than GRPO's; empty without views or a longest completion."""
    if args.cpl_coef == 0 or args.max_completion_length is None:
        return ""
    rows, most = args.per_device_train_batch_size, most_tokens(args, prompt, packs)
    grpo = rows * (prompt + args.max_completion_length)
    text = f" The loss of {rows} rows is a forward of at most {most:,} tokens, views included; GRPO's of {grpo:,}."
    if most <= grpo:
        return text
    return f"{text} If memory does not suffice: {_way_out(args)}"


def _way_out(args: CPPOConfig) -> str:
    return (
        f"set cpl_rollouts_per_prompt (now {args.cpl_rollouts_per_prompt}) to 1, or per_device_train_batch_size (now "
        f"{args.per_device_train_batch_size}) lower and gradient_accumulation_steps higher; `trl-cppo plan` tells what fits."
    )


def memory_note(args: CPPOConfig, rows: int, views: int, tokens: float) -> str:
    """What a scoring was that memory did not suffice for: so many rows, views among them, and their tokens."""
    return (
        f"The loss scored {rows} rows, {views} of them on views: {tokens:,.0f} tokens. To need less, {_way_out(args)}"
    )


@contextmanager
def noting_memory(note: Callable[[], str | None]) -> Iterator[None]:
    """While this is open, an error of a GPU's memory gets the note, if there is one."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        text = note()
        if text is not None:
            error.add_note(text)
        raise

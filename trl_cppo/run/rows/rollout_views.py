# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The views of a generation batch: of which rollouts, and which rollouts share them.

Shapes: `B` rollouts of one process.
"""

import textwrap
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ...config import CPPOConfig
from ...method.request import ViewPair
from .checks import row_name


@dataclass(frozen=True)
class RolloutImages:
    """What a rollout's images are, and where they come from."""

    column: str
    images: list[Any]
    shared: bool  # by all rollouts of its prompt; not where tools and environments return them


def check_others(args: CPPOConfig, evaluates: bool, num_generations_eval: int) -> None:
    """
    Raises:
        `ValueError`: if a process has the rollouts of one prompt alone in a generation batch, and a view wants another's image.
    """
    training = args.per_device_train_batch_size * args.steps_per_generation, args.num_generations
    evaluation = args.per_device_eval_batch_size, num_generations_eval
    way_out = "steps_per_generation (or gradient_accumulation_steps) or per_device_train_batch_size"
    for name, (rows, group), setting in [
        ("num_generations", training, way_out),
        *([("num_generations_eval", evaluation, "per_device_eval_batch_size")] if evaluates else []),
    ]:
        if rows <= group:
            raise ValueError(
                f"A view takes another prompt's image, but a process has {rows} rollouts of a generation batch and a prompt "
                f"takes {name}={group}: set {setting} higher, for two prompts or more."
            )


def other_images_of(images: list[RolloutImages], prompts: list[Hashable]) -> dict[Hashable, list[Any]]:
    """For each prompt the images of the other prompts' first rollouts, in their order."""
    firsts: dict[Hashable, list[Any]] = {}
    for prompt, of_row in zip(prompts, images, strict=True):
        firsts.setdefault(prompt, of_row.images)
    return {
        prompt: [image for other, shown in firsts.items() if other != prompt for image in shown] for prompt in firsts
    }


def make_views(
    make: Callable[[list[Any], Hashable], ViewPair],
    rows: list[dict[str, Any]],
    images: list[RolloutImages],
    num_images: list[int],
    prompts: list[Hashable],
    gated: list[bool],
) -> list[ViewPair | None]:
    """
    The views of each gated rollout with an image, `None` for the others. The rollouts of one prompt share theirs.

    Args:
        make (`Callable`): makes the views of a prompt, given its images and which it is.
        rows (`list[dict]` of length B): of the data set, one a rollout.
        images (`list[RolloutImages]` of length B): of each.
        num_images (`list[int]` of length B): how many it was scored with.
        prompts (`list[Hashable]` of length B): which rollouts are of one prompt.
        gated (`list[bool]` of length B): which have a CPL.

    Raises:
        `ValueError`: naming row and column, for an image that cannot be read, a view that raises, or a rollout that was
            scored with other images.
    """
    views, by_prompt = [], {}
    for place, (row, of_row, count, prompt) in enumerate(zip(rows, images, num_images, prompts, strict=True)):
        if len(of_row.images) != count and (of_row.shared or count):  # TRL drops images of overlong rollouts
            raise ValueError(
                f"{row_name(row, place)} has {len(of_row.images)} image(s) in column {of_row.column!r}, but its "
                f"rollout was scored with {count}. Give every row the same columns."
            )
        if not gated[place] or count == 0:
            views.append(None)
            continue
        if prompt not in by_prompt or not of_row.shared:
            try:
                by_prompt[prompt] = make(of_row.images, prompt)
            except ValueError as error:
                shown = textwrap.shorten(str(row.get("prompt")), 80)
                raise ValueError(
                    f"{row_name(row, place)} (prompt {shown}), column {of_row.column!r}, {error}"
                ) from error
        views.append(by_prompt[prompt])
    return views

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
What the models are graded on: the same canvases behind captions of several kinds, and what their tokens owe to the image.

Shapes: `B` canvases, `T` completion tokens.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from trl_cppo import digits
from trl_cppo.method.losses import token_divergence
from trl_cppo.method.view_maker import ViewMaker
from trl_cppo.method.views import get_view

from ..lib import digits_lab as lab

WARM, TRAINING = 0.5, 0.9  # how often a digit of a caption is right, in the warm start and in training
# Half of the warm start of other runs: a model that hardly reads is tempted most.
WARM_STEPS = 420
CONDITIONS = {"wrong": 0.0, "absent": None, "training": TRAINING, "right": 1.0}
SEEDS = {"validation": 31, "test": 32}


def caption_of(row: dict[str, Any]) -> list[int]:
    """The digits that a row's prompt names."""
    return [int(digit) for digit in row["prompt"][0]["content"].split(".")[0].split(",")]


def _questions(rows: Dataset) -> list[str]:
    return [message["content"] for [message] in rows["prompt"]]


def grade_condition(model: Any, processor: Any, rows: Dataset, sampled: int, samples: int) -> dict[str, float]:
    """Shares of right answers, greedy and sampled, and of greedy answers that read what the caption says where it is wrong."""
    decode, images, questions = processor.tokenizer.batch_decode, rows["image"], _questions(rows)

    def right(texts: list[str], solutions: list[str]) -> float:
        return float(np.mean([digits.task.boxes_the_sum(*pair) for pair in zip(texts, solutions, strict=True)]))

    greedy = decode(lab.sample(model, processor, images, None, prompts=questions), skip_special_tokens=True)
    drawn = lab.sample(model, processor, images[:sampled] * samples, seed=0, prompts=questions[:sampled] * samples)
    result = {
        "right": right(greedy, rows["solution"]),
        "sampled": right(decode(drawn, skip_special_tokens=True), rows["solution"][:sampled] * samples),
    }
    followed = _followed(greedy, rows) if "." in questions[0] else []
    return result | ({"follows": float(np.mean(followed))} if followed else {})


def _followed(texts: list[str], rows: Dataset) -> list[bool]:
    """Of each digit that a caption names wrongly, whether it is read so."""
    followed = []
    for text, row in zip(texts, rows, strict=True):
        read = lab.reading(text)
        for place, (named, true) in enumerate(zip(caption_of(row), row["digits"], strict=True)):
            if named != true:
                followed.append(read is not None and read[place] == named)
    return followed


def look_at_tokens(model: Any, processor: Any, rows: Dataset, views: list[str]) -> dict[str, float]:
    """
    What one sampled rollout of each canvas says of the CPL's signal, captions being as in training: which rows the gate would
    take, d⁻ of the digits by whether the caption names them rightly, and how the entropy of all tokens rises on the damaged view.
    """
    images, questions = rows["image"], _questions(rows)
    completions = lab.sample(model, processor, images, seed=1, prompts=questions)
    texts = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
    is_right = [digits.task.boxes_the_sum(*pair) for pair in zip(texts, rows["solution"], strict=True)]
    agrees = np.array([caption_of(row) == row["digits"] for row in rows])
    maker = ViewMaker([get_view("gaussian_blur")], [get_view(name) for name in views], seed=0)
    removed = [
        maker([image], place, others=[images[place - 1]]).removed[0]  # the one before, where a view takes another
        for place, image in enumerate(images)
    ]
    anchor, damaged = (
        lab.log_distributions(model, processor, shown, completions, questions) for shown in (images, removed)
    )
    mask = lab.completion_mask(processor, completions)
    shift = (lab.entropy(damaged) - lab.entropy(anchor))[mask].mean()
    logps = [scores.gather(2, completions[..., None])[..., 0] for scores in (anchor, damaged)]
    divergence = token_divergence(*logps)
    found = {True: [], False: []}
    truth = lab.true_perception_tokens(processor, completions)
    for row, of_row, mine, right in zip(rows, divergence, truth, is_right, strict=True):
        if right and int(mine.sum()) == len(row["digits"]):
            for value, named, true in zip(of_row[mine].tolist(), caption_of(row), row["digits"], strict=True):
                found[named == true].append(value)
    return {
        "agreeing": float(agrees.mean()),
        "agreeing_of_right": float(agrees[np.array(is_right)].mean()),
        "removed_divergence_where_right": float(np.mean(found[True])),
        "removed_divergence_where_wrong": float(np.mean(found[False])),
        "entropy_shift_of_all": float(shift),
    }


def held_out(condition: str, split: str, count: int) -> Dataset:
    """The canvases of a split behind captions of a condition: the same for each."""
    return digits.make_dataset(split, count, SEEDS[split], CONDITIONS[condition])


def warm_start(seed: int) -> Any:
    """The folder of the start whose captions are right half of the time."""
    return digits.warm_start(seed, WARM_STEPS, captions_right=WARM, progress=False)


@torch.no_grad()
def grade(model: Any, processor: Any, split: str, canvases: int, sampled: int, views: list[str]) -> dict[str, Any]:
    """All that a trained model is graded by."""
    conditions = {
        name: grade_condition(model, processor, held_out(name, split, canvases), sampled, samples=4)
        for name in CONDITIONS
    }
    tokens = look_at_tokens(model, processor, held_out("training", split, min(canvases, 500)), views)
    return {"conditions": conditions, "tokens": tokens}

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The digits task: canvases, prompts, responses, reward.

A canvas is 56×28 pixels, two cells side by side. Each holds one handwritten digit, 24 pixels a side, moved by up to 2
pixels; Gaussian noise lies over all of it. The answer is the sum of the digits.
"""

import re
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

PROMPT = "sum?"
DIGITS = 2  # of a canvas, side by side
CELL = 28  # pixels
WIDTH, HEIGHT = DIGITS * CELL, CELL
MAX_RESPONSE_TOKENS = 20  # a right response has 17, its end token included
DIGIT = 24  # pixels
JITTER = 2  # pixels
NOISE = 25.0  # standard deviation, of 255

# Parts of a fixed permutation of scikit-learn's 1,797 digits.
# "validation" and "test" part the held-out handwriting: choose settings on the one, report on the other.
_SPLITS = {
    "warm_start": (0, 600),
    "rl": (600, 1300),
    "held_out": (1300, 1797),
    "validation": (1300, 1450),
    "test": (1450, 1797),
}
_BOXED = re.compile(r"\\boxed\{(\d+)\}")


@cache
def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of shape `(n, 24, 24)`, float32 in [0, 255], and labels of shape `(n,)` of one split."""
    from sklearn.datasets import load_digits

    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}.")
    digits = load_digits()
    start, end = _SPLITS[split]
    chosen = np.random.default_rng(0).permutation(len(digits.images))[start:end]
    small = (digits.images[chosen] * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(x).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)) for x in small]
    return np.stack(large).astype(np.float32), digits.target[chosen]


def draw_canvas(split: str, generator: np.random.Generator) -> tuple[Image.Image, list[int]]:
    """
    One canvas and its digits.

    Args:
        split (`str`): `"warm_start"`, `"rl"`, `"held_out"`, `"validation"` or `"test"`: whose handwriting.
        generator (`np.random.Generator`): draws the digits, their places and the noise.

    Returns:
        `tuple[PIL.Image.Image, list[int]]`: an RGB image of 56×28 pixels; the digits from left to right.
    """
    images, labels = handwriting(split)
    chosen = generator.integers(0, len(images), DIGITS)
    canvas = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    margin = (CELL - DIGIT) // 2
    for cell, index in enumerate(chosen):
        top, left = generator.integers(-JITTER, JITTER + 1, 2) + margin + np.array([0, CELL * cell])
        canvas[top : top + DIGIT, left : left + DIGIT] = images[index]
    canvas += generator.normal(0.0, NOISE, canvas.shape)
    pixels = canvas.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB"), [int(digit) for digit in labels[chosen]]


def response(digits: list[int]) -> str:
    r"""The response of someone who reads these digits: `<think>see3,5.3+5=8.</think>\boxed{8}`."""
    first, second = digits
    total = first + second
    return f"<think>see{first},{second}.{first}+{second}={total}.</think>\\boxed{{{total}}}"


def caption(digits: list[int], right: float, generator: np.random.Generator) -> list[int]:
    """The digits as a text beside the image names them: each rightly with this probability, else as any other digit."""
    others = [(digit + int(step)) % 10 for digit, step in zip(digits, generator.integers(1, 10, DIGITS), strict=True)]
    is_right = generator.random(DIGITS) < right
    return [digit if kept else other for digit, other, kept in zip(digits, others, is_right, strict=True)]


def prompt(named: list[int] | None = None) -> str:
    """The question, behind a caption if digits are named: `sum?` or `3,5.sum?`."""
    return PROMPT if named is None else f"{','.join(map(str, named))}.{PROMPT}"


def make_dataset(split: str, num_rows: int, seed: int, captions_right: float | None = None) -> Dataset:
    """
    A data set of canvases in the columns that GRPOTrainer reads.

    Args:
        split (`str`): as in [`draw_canvas`].
        num_rows (`int`): canvases to draw.
        seed (`int`): of the draw; the same seed gives the same rows.
        captions_right (`float`, *optional*): how often the digits that a [`caption`] in the prompt names are right, from 0
            to 1. `None`: no caption. The canvases are the same for any of them.

    Returns:
        `Dataset`: `prompt` (one user message), `image`, `solution` (the sum as a string) and `digits`.
    """
    generator, captions = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = []
    for _ in range(num_rows):
        image, digits = draw_canvas(split, generator)
        named = None if captions_right is None else caption(digits, captions_right, captions)
        question = [{"role": "user", "content": prompt(named)}]
        rows.append({"prompt": question, "image": image, "solution": str(sum(digits)), "digits": digits})
    message = {"role": Value("string"), "content": Value("string")}
    features = {"prompt": List(message), "image": ImageFeature(), "solution": Value("string")}
    return Dataset.from_list(rows, features=Features({**features, "digits": List(Value("int64"))}))


def boxes_the_sum(text: str, solution: str) -> bool:
    r"""Whether the last `\boxed{}` of a response holds the sum."""
    answers = _BOXED.findall(text)
    return bool(answers) and answers[-1] == solution


def sum_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any) -> list[float]:
    r"""1.0 for a completion whose last `\boxed{}` holds the sum, else 0.0; one reward a completion."""
    pairs = zip(completions, solution, strict=True)
    return [float(boxes_the_sum(message["content"], expected)) for [message], expected in pairs]

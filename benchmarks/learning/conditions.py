# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The canvases on which trained digits models are graded: as in training, and shifted in ways that no view imitates.

Every condition shows the same digits of the same handwriting (the printed ones show the same numbers), so that conditions differ by
the shift alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trl_cppo import digits
from trl_cppo.digits.task import CELL, DIGIT, DIGITS, HEIGHT, JITTER, NOISE, WIDTH, handwriting

from ..lib import digits_lab as lab

_MARGIN = (CELL - DIGIT) // 2


@dataclass(frozen=True)
class Canvas:
    image: Image.Image
    digits: tuple[int, int]

    @property
    def solution(self) -> str:
        return str(sum(self.digits))

    @property
    def perception(self) -> str:
        """The start of a right response, up to the last digit that it reads."""
        return digits.task.response(list(self.digits)).split(".")[0] + "."


def _printed(labels: np.ndarray) -> np.ndarray:
    """The digits in the font that Pillow ships, shape `(n, 24, 24)`."""
    font = ImageFont.load_default(size=DIGIT)
    images = []
    for label in labels:
        image = Image.new("L", (DIGIT, DIGIT))
        ImageDraw.Draw(image).text((DIGIT / 2, DIGIT / 2), str(label), fill=255, font=font, anchor="mm")
        images.append(np.asarray(image, dtype=np.float32))
    return np.stack(images)


def _gradient(canvas: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A grey ramp behind the digits, from 0 to 90 of 255 in a random direction."""
    angle = draw.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / (WIDTH - 1)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    return np.maximum(canvas, 90 * (ramp - ramp.min()) / (ramp.max() - ramp.min()))


def _lines(canvas: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Three straight grey lines from edge to edge."""
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    for _ in range(3):
        across = draw.random() < 0.5
        begin, end = draw.uniform(0, HEIGHT if across else WIDTH, 2)
        ends = [(0, begin), (WIDTH, end)] if across else [(begin, 0), (end, HEIGHT)]
        ImageDraw.Draw(image).line(ends, fill=150, width=1)
    return np.asarray(image, dtype=np.float32)


def _downscale(image: Image.Image) -> Image.Image:
    small = image.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BILINEAR)
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Condition:
    """How canvases are drawn; the defaults are the training task's."""

    meaning: str
    jitter: int = JITTER  # pixels
    printed: bool = False
    behind: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    after: Callable[[Image.Image], Image.Image] | None = None
    perception_given: bool = False
    labels_from: int = 0  # the smallest digit shown


CONDITIONS = {
    "clean": Condition("as in training, other handwriting"),
    "font": Condition("printed digits", printed=True),
    "background": Condition("a grey ramp behind the digits", behind=_gradient),
    "position": Condition("digits moved by up to 5 pixels in place of 2, within the canvas", jitter=5),
    "downscaled": Condition("the canvas at half its resolution", after=_downscale),
    "lines": Condition("three grey lines across the canvas", behind=_lines),
    "given": Condition("digits of 5 and more; the right reading is given, the sum is left", perception_given=True, labels_from=5),
}  # fmt: skip


def _draw(condition: Condition, split: str, draw: np.random.Generator) -> Canvas:
    images, labels = handwriting(split)
    allowed = np.flatnonzero(labels >= condition.labels_from)
    chosen = allowed[draw.integers(0, len(allowed), DIGITS)]
    offsets = draw.integers(-JITTER, JITTER + 1, (DIGITS, 2))
    if condition.jitter != JITTER:
        offsets = draw.integers(-condition.jitter, condition.jitter + 1, (DIGITS, 2))
    shown = _printed(labels[chosen]) if condition.printed else images[chosen]
    canvas = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    for cell, (image, offset) in enumerate(zip(shown, offsets, strict=True)):
        corner = offset + _MARGIN + np.array([0, CELL * cell])
        top, left = np.clip(corner, 0, [HEIGHT - DIGIT, WIDTH - DIGIT])
        place = canvas[top : top + DIGIT, left : left + DIGIT]
        np.maximum(place, image, out=place)
    if condition.behind:
        canvas = condition.behind(canvas, draw)
    canvas = canvas + draw.normal(0.0, NOISE, canvas.shape)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).convert("RGB")
    return Canvas(condition.after(image) if condition.after else image, tuple(int(label) for label in labels[chosen]))


@cache
def canvases(name: str, split: str, count: int, seed: int) -> list[Canvas]:
    """Some canvases of a condition; each draws from a generator of its own, so the first ones do not depend on `count`."""
    condition = CONDITIONS[name]
    return [_draw(condition, split, np.random.default_rng([seed, place])) for place in range(count)]


def judge(text: str, canvas: Canvas) -> str:
    """`"right"`, `"misread"` (a digit was read wrongly), `"wrong_sum"` (read rightly, added wrongly) or `"format"`."""
    if digits.task.boxes_the_sum(text, canvas.solution):
        return "right"
    read = lab.reading(text)
    if not read:
        return "format"
    return "wrong_sum" if read == canvas.digits else "misread"

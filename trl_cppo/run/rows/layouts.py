# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which columns of a data set hold the question, the answer and the images: by the names of three data sets."""

from collections.abc import Collection
from dataclasses import dataclass

# TIGER-Lab/ViRL39K's names, hiyouga/geometry3k's, lmms-lab/multimodal-open-r1-8k-verified's. Where a data set has two of
# a kind, the first: an `answer` is the final one, a `solution` may be worked out.
QUESTIONS = ("question", "problem")
ANSWERS = ("answer", "solution")
IMAGES = ("images", "image")
EXTRAS = (  # kept as they are
    "qid", "category", "source", "PassRate_32BTrained", "PassRate_7BBase", "original_question", "original_answer",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The columns of a data set: of the question, the answer, the images, and those that are kept as they are."""

    question: str
    answer: str
    images: str
    extras: tuple[str, ...] = ()


def find_layout(columns: Collection[str]) -> Layout | None:
    """The columns by their names; `None` if there is none of a kind."""
    found = [next((name for name in names if name in columns), None) for names in (QUESTIONS, ANSWERS, IMAGES)]
    return None if None in found else Layout(*found, tuple(name for name in EXTRAS if name in columns))

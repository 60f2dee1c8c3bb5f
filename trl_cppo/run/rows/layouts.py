# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Which columns of a data set hold the question, the answer and the images: those a user names, or the names of three data sets."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

# TIGER-Lab/ViRL39K's names, hiyouga/geometry3k's, lmms-lab/multimodal-open-r1-8k-verified's; of an image folder's metadata.
# Where a data set has two of a kind, the first: an `answer` is the final one, a `solution` may be worked out.
QUESTIONS = ("question", "problem")
ANSWERS = ("answer", "solution")
IMAGES = ("images", "image", "file_name")
EXTRAS = (  # kept as they are
    "qid", "category", "source", "PassRate_32BTrained", "PassRate_7BBase", "original_question", "original_answer",
)  # fmt: skip
LEFT_OUT = (
    ".left_out.json"  # in a prepared folder: why rows of each split were left out; `datasets` passes over hidden files
)
RECORD = ".prepared.json"  # there likewise: the options that it was made with
CONVERSATIONS = ("messages", "conversations")  # of data for supervised training
PREPARE = "trl-cppo prepare"  # how errors say to prepare a data set


@dataclass(frozen=True)
class Layout:
    """
    The columns of a data set.

    Attributes:
        question (`str`): of the question.
        answer (`str`): of the right answer.
        images (`tuple[str, ...]`): of images, or lists of them, in the order in which they are shown.
        extras (`tuple[str, ...]`): that are kept as they are.
        final (`bool`): whether an answer without a mark is the final one; else it may be worked out.
    """

    question: str
    answer: str
    images: tuple[str, ...]
    extras: tuple[str, ...] = ()
    final: bool = True


def find_layout(
    columns: Collection[str],
    question: str | None = None,
    answer: str | None = None,
    images: Sequence[str] | None = None,
) -> Layout | None:
    """The columns by the names that are given, else by the known ones; `None` if there is none of a kind."""
    found = [
        name if name in columns else None if name else next((known for known in names if known in columns), None)
        for name, names in ((question, QUESTIONS), (answer, ANSWERS))
    ]
    shown = tuple(images) if images else tuple(name for name in IMAGES if name in columns)[:1]
    if None in found or not shown or not set(shown) <= set(columns):
        return None
    extras = tuple(name for name in EXTRAS if name in columns and name not in (*found, *shown))
    return Layout(*found, shown, extras, final=answer is not None or found[1] != "solution")


def prepare_command(source: str, columns: Collection[str]) -> str:
    """The command that prepares a data set of these columns, with a flag for each kind that has no known name."""
    kinds = (("question", QUESTIONS), ("answer", ANSWERS), ("image", IMAGES))
    flags = "".join(f" --{kind} COLUMN" for kind, known in kinds if not set(known) & set(columns))
    if "prompt" in columns:  # of texts: conversations need no command
        flags = flags.replace("--question COLUMN", "--question prompt")
    return f"{PREPARE} --dataset {shlex.quote(source)}{flags} --output data/prepared"


def about_conversations(columns: Collection[str]) -> str:
    """What to do first where the question stands in a conversation, for which no flag is a cure; else nothing."""
    found = next((name for name in CONVERSATIONS if name in columns and not set(QUESTIONS) & set(columns)), None)
    return (
        f" The conversations of {found!r} are not read: write each row's question and answer, their text alone, into columns first."
        if found
        else ""
    )

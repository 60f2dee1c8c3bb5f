# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The seven benchmarks of the paper, from the columns that each has on the Hub: how the question is put, what the answer is, how
exact a number must be, and which questions are scored together. docs/evaluation.md says where that is known from.
"""

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets

from ....rewards.grading import answers_match

IMAGE_ALONE = "Answer the question in the image."  # what is asked where the whole question is a picture
MADE = (
    "qid",
    "answer_tolerance",
    "question_group",
)  # columns besides question, answer and images; the latter two of some
_WEMATH_CHOICE = re.compile(r"\s*([A-Z])\. ?(.*)")


@dataclass(frozen=True)
class Item:
    """
    What is made of a row besides its image.

    Attributes:
        question (`str`): with its choices.
        answer (`str`): the right one; of a choice its letter, and its text where that tells it from the others.
        tolerance (`float`): by how much a number may differ.
        group (`str`): of questions that are scored together.
        part (`str`): which of them; `""`: they are numbered.
    """

    question: str
    answer: str
    tolerance: float = 0.0
    group: str = ""
    part: str = ""


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark on the Hub.

    Attributes:
        hub (`str`): its id.
        files (`str`): those of the split that is measured, a pattern.
        image (`str`): the column of the image.
        key (`str`): that of the row's name.
        read (`Callable`): makes an [`Item`] of a row without its image.
        group_scores (`tuple[str, ...]`): how groups are scored, by the names of `evaluate`.
    """

    hub: str
    files: str
    image: str
    key: str
    read: Callable[[dict[str, Any]], Item]
    group_scores: tuple[str, ...] = ()

    def rows(self, dataset: Dataset, name: str, skip_broken: bool = False) -> Dataset:
        """
        The columns `question`, `answer`, `images` and `qid` of a data set in the benchmark's own; with `answer_tolerance`
        and `question_group` (name, part, size, scores) where it has them.

        Args:
            dataset (`Dataset`): in the benchmark's columns.
            name (`str`): how errors call it.
            skip_broken (`bool`, *optional*, defaults to `False`): make a row without an answer of one that cannot be read.

        Raises:
            `ValueError`: for a column that is not there; naming the row, for an answer that is none of the choices.
        """
        if self.image not in dataset.column_names:
            raise ValueError(f"{name} has no column {self.image!r}; its columns are {dataset.column_names}.")
        rows = list(dataset.remove_columns(self.image))
        items = [self._item(row, number, name, skip_broken) for number, row in enumerate(rows)]
        made = {"question": [item.question for item in items], "answer": [item.answer for item in items]}
        made["qid"] = [str(row.get(self.key, number)) for number, row in enumerate(rows)]
        if any(item.tolerance for item in items):
            made["answer_tolerance"] = [item.tolerance for item in items]
        if self.group_scores:
            made["question_group"] = self._groups(items)
        images = dataset.select_columns(self.image).rename_column(self.image, "images")
        return concatenate_datasets([Dataset.from_dict(made), images], axis=1)

    def _item(self, row: dict[str, Any], number: int, name: str, skip_broken: bool) -> Item:
        try:
            return self.read(row)
        except KeyError as error:
            raise ValueError(f"{name} has no column {error}; its columns are {[*row, self.image]}.") from error
        except (ValueError, SyntaxError, TypeError, AttributeError) as error:
            if skip_broken:
                return Item("", "")
            message = f"Row {number} of {name}: {error}. Mend it, or leave such rows out: --skip_broken."
            raise ValueError(message) from error

    def _groups(self, items: list[Item]) -> list[dict[str, Any]]:
        sizes, seen, groups = Counter(item.group for item in items), Counter(), []
        for item in items:
            seen[item.group] += 1
            part = item.part or str(seen[item.group])
            size, scores = sizes[item.group], list(self.group_scores)
            groups.append({"name": item.group, "part": part, "size": size, "scores": scores})
        return groups


def choice(answer: str, choices: Sequence[str]) -> str:
    """
    What is graded against, of one of several choices: `B. 12 cm`, so that the letter is right and the text alone is, too.
    The letter alone where the text does not tell: empty, that of another choice, itself a letter, or of odd braces.

    Args:
        answer (`str`): the letter of the right choice, or else its text.
        choices (`Sequence[str]`): all texts.

    Raises:
        `ValueError`: if there is no such choice.
    """
    texts, answer = [str(text).strip() for text in choices], answer.strip()
    letters = [chr(ord("A") + place) for place in range(len(texts))]
    if answer not in letters and texts.count(answer) != 1:
        raise ValueError(f"the answer {answer!r} is none of its {len(texts)} choices")
    place = (letters if answer in letters else texts).index(answer)
    letter, text = letters[place], texts[place]
    whole = f"{letter}. {text}"
    # Graded without mathematics: of "A. B" or "A. and C." the letter alone would not be right.
    tells = text and texts.count(text) == 1
    tells = tells and text.count("{") == text.count("}") and "\\boxed" not in text
    return whole if tells and answers_match(whole, letter, lambda *_: False) else letter


def _listed(choices: Sequence[str]) -> str:
    return "".join(f"\n{chr(ord('A') + place)}. {text}" for place, text in enumerate(choices))


def _mathvista(row: dict[str, Any]) -> Item:
    """Its own `query` has hint, question, unit and choices. A decimal number is right if it rounds to the answer."""
    if row["question_type"] == "multi_choice":
        if row["answer"] not in row["choices"]:
            raise ValueError(f"the answer {row['answer']!r} is none of its {len(row['choices'])} choices")
        return Item(row["query"], choice(chr(ord("A") + row["choices"].index(row["answer"])), row["choices"]))
    tolerance = 0.5 * 10 ** -int(row["precision"]) if row["answer_type"] == "float" else 0.0
    return Item(row["query"], row["answer"], tolerance)


def _mathvision(row: dict[str, Any]) -> Item:
    options = row["options"] or []
    answer = choice(row["answer"], options) if options else row["answer"]
    return Item(row["question"] + _listed(options), answer)


def _mathverse(row: dict[str, Any]) -> Item:
    """The choices stand in the question, and the question of the version `Vision Only` in the image."""
    return Item((row["question"] or "").strip() or IMAGE_ALONE, row["answer"])


def _wemath(row: dict[str, Any]) -> Item:
    """Choices are `A. 45; B. 60`. Of a problem the steps are asked one by one, then the whole: keys `2steps_1` to `3steps_multi`."""
    steps, _, part = row["key"].partition("_")
    found = [_WEMATH_CHOICE.fullmatch(text) for text in row["option"].split(";")]
    plain = [match and match[1] for match in found] == [chr(ord("A") + place) for place in range(len(found))]
    answer = choice(row["answer"], [match[2] for match in found]) if plain else row["answer"]
    return Item(f"{row['question']}\n{row['option']}", answer, group=f"{steps} {row['ID']}", part=part)


def _dynamath(row: dict[str, Any]) -> Item:
    """Ten variants of a question have one id."""
    tolerance = 0.001 if row["answer_type"] == "float" else 0.0
    return Item(row["question"], row["ground_truth"], tolerance, group=row["id"])


def _logicvista(row: dict[str, Any]) -> Item:
    """The answer may be several letters, `A, C`; the choices stand in question or image."""
    return Item(row["question"], row["answer"])


def _mmmu_pro_vision(row: dict[str, Any]) -> Item:
    """Question and choices stand in the image; `options` has the latter as the text of a Python list."""
    options = row["options"]
    return Item(IMAGE_ALONE, choice(row["answer"], ast.literal_eval(options) if isinstance(options, str) else options))


BENCHMARKS = {
    "logicvista": Benchmark("lscpku/LogicVista", "data/test-*.parquet", "image", "id", _logicvista),
    "mathvista": Benchmark("AI4Math/MathVista", "data/testmini-*.parquet", "decoded_image", "pid", _mathvista),
    "wemath": Benchmark(
        "We-Math/We-Math", "data/testmini-*.parquet", "image_path", "ID", _wemath, ("strict", "loose")
    ),
    "dynamath": Benchmark(
        "DynaMath/DynaMath_Sample", "data/sample*.parquet", "decoded_image", "id", _dynamath, ("worst",)
    ),
    "mmmu_pro_vision": Benchmark("MMMU/MMMU_Pro", "vision/test-*.parquet", "image", "id", _mmmu_pro_vision),
    "mathvision": Benchmark("MathLLMs/MathVision", "data/testmini-*.parquet", "decoded_image", "id", _mathvision),
    "mathverse": Benchmark("AI4Math/MathVerse", "testmini.parquet", "image", "sample_index", _mathverse),
}

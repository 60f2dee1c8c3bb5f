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
from fractions import Fraction
from typing import Any

from datasets import Dataset, concatenate_datasets

from ....rewards.grading import answers_match

IMAGE_ALONE = "Answer the question in the image."  # what is asked where the whole question is a picture
# Columns besides question, answer and images; the latter two of some.
MADE = ("qid", "answer_tolerance", "question_group")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_WEMATH_CHOICE = re.compile(r"\s*([A-Z])\. ?(.*)")


@dataclass(frozen=True)
class Item:
    """
    What is made of a row besides its image.

    Attributes:
        question (`str`): with its choices.
        answer (`str`): the right one; of a choice its letter, and its text where that tells it from the others.
        tolerance (`float`): by how much a number may differ.
    """

    question: str
    answer: str
    tolerance: float = 0.0


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
        group (`Callable`, *optional*): of a row, which questions are scored together, and which of them it is (`""`: they are
            numbered).
        group_scores (`tuple[str, ...]`): how groups are scored, by the names of `evaluate`.
    """

    hub: str
    files: str
    image: str
    key: str
    read: Callable[[dict[str, Any]], Item]
    group: Callable[[dict[str, Any]], tuple[str, str]] | None = None
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
        if self.group:
            made["question_group"] = self._groups([self.group(row) for row in rows])
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

    def _groups(self, members: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """Of all rows, broken ones too: a group that lacks one is not scored."""
        sizes, seen, groups = Counter(name for name, _ in members), Counter(), []
        for name, part in members:
            seen[name] += 1
            entry = {"name": name, "part": part or str(seen[name]), "size": sizes[name]}
            groups.append({**entry, "scores": list(self.group_scores)})
        return groups


def choice(answer: str, choices: Sequence[str]) -> str:
    """
    What is graded against, of one of several choices: `B. 12 cm`, so that the letter is right and the text alone is, too.
    The letter alone where the text does not tell: empty, that of another choice or equal to it, itself a letter, or of odd braces.

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
    tells = text and texts.count(text) == 1 and not any(_alike(text, other) for other in texts if other != text)
    tells = tells and text.count("{") == text.count("}") and "\\boxed" not in text
    return whole if tells and answers_match(whole, letter, lambda *_: False) else letter


def _alike(text: str, other: str) -> bool:
    """Whether a grader of mathematics may take one choice for the other: numbers of one value, lists in another order."""
    parts, others = ([_value(part) for part in choice.split(",")] for choice in (text, other))
    return sorted(map(str, parts)) == sorted(map(str, others))


def _value(text: str) -> Fraction | str:
    """The number that a text is, a fraction or percentage too, or the text itself."""
    bare = _FRACTION.sub(r"\1/\2", text).strip("$% \\")
    try:
        return Fraction(bare)
    except (ValueError, ZeroDivisionError):
        return bare


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
    found = [_WEMATH_CHOICE.fullmatch(text) for text in row["option"].split(";")]
    plain = [match and match[1] for match in found] == [chr(ord("A") + place) for place in range(len(found))]
    answer = choice(row["answer"], [match[2] for match in found]) if plain else row["answer"]
    return Item(f"{row['question']}\n{row['option']}", answer)


def _wemath_group(row: dict[str, Any]) -> tuple[str, str]:
    steps, _, part = str(row["key"]).partition("_")
    return f"{steps} {row['ID']}", part


def _dynamath(row: dict[str, Any]) -> Item:
    tolerance = 0.001 if row["answer_type"] == "float" else 0.0
    return Item(row["question"], row["ground_truth"], tolerance)


def _dynamath_group(row: dict[str, Any]) -> tuple[str, str]:
    """Ten variants of a question have one id."""
    return str(row["id"]), ""


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
        "We-Math/We-Math", "data/testmini-*.parquet", "image_path", "ID", _wemath, _wemath_group, ("strict", "loose")
    ),
    "dynamath": Benchmark(
        "DynaMath/DynaMath_Sample",
        "data/sample*.parquet",
        "decoded_image",
        "id",
        _dynamath,
        _dynamath_group,
        ("worst",),
    ),
    "mmmu_pro_vision": Benchmark("MMMU/MMMU_Pro", "vision/test-*.parquet", "image", "id", _mmmu_pro_vision),
    "mathvision": Benchmark("MathLLMs/MathVision", "data/testmini-*.parquet", "decoded_image", "id", _mathvision),
    "mathverse": Benchmark("AI4Math/MathVerse", "testmini.parquet", "image", "sample_index", _mathverse),
}

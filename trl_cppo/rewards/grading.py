# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
When an answer counts as right: what is text is compared here, what is mathematics by a function that is passed in.

Pure functions of the standard library, of a time linear in the length of the text; what looks at units sees
`MAX_LENGTH` characters at most.
"""

import math
import re
from collections.abc import Callable

from .text import normalise
from .units import MEGA, split_unit

SOLUTION = "column 'solution'"  # how errors of a solution begin
MAX_LENGTH = 1000  # characters; beyond it an answer is right only as the same text

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKS = ("<think>", "</think>", "<answer>", "</answer>")
_LEAD_IN = re.compile(
    r"(?:the )?(?:(?:correct|final|right) )?(?:answer|option|choice)(?:(?: is)?:| is\b) *(?=\S)", re.IGNORECASE
)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer):? )?[(\[]?([A-Z])(?:[)\]]?[.:!,]*$|(?:[)\]][.:]?|[.:]) ?(.+)$)",
    re.IGNORECASE | re.DOTALL,
)
_MORE_CHOICES = re.compile(
    r"^(?:and\b|or\b|[&,/]|(?:[A-Z]\W*)+$)|\([A-Z]\)|\b[A-Z][.:)]|\b(?:option|choice) \(?[A-Z]\b"
)
_SEVERAL = re.compile(
    r"\(?[A-Z]\)?(?:(?:, ?and |, ?| and | ?& ?)\(?[A-Z]\)?)+"
)  # letters of a choice of several: "A, C"
_TOGETHER = re.compile(r"[A-Z]{2,}")  # the same written "AC"
_NO_CHOICE = re.compile(r",? ?\(?not \(?[A-Z]\)?\)?$")  # "A, not B" is A
_WORD = re.compile(r"[^\W\d_]+")
_NO_WORDS = set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi mod gcd lcm "
    "and or to than more less times over by".split()
)
# Two letters are a segment or a product, in any order, but for directions, words and theorems.
_ORDERED = {"ne", "nw", "se", "sw", "en", "wn", "es", "ws", "no", "on", "hl", "lh"}
_GENOTYPE = re.compile(r"(?:([A-Z])\1)+", re.IGNORECASE)
_SEQUENCE = re.compile(r"\d{4}([-/])\d{1,2}\1\d{1,2}|[A-Z](?:-[A-Z]){2,}|[A-Z](?: ?(?:→|->) ?[A-Z])+")
# Reversed, they are others: Roman numerals, and answers to several statements.
_PAIRS = re.compile(r"[IVX]{2}|XL|LX|[TF]{2}|[LR]{2}|[YN]{2}")
_RANGE = re.compile(r"(\d+(?:\.\d+)?) ?[-:] ?(\d+(?:\.\d+)?)( ?[^\W\d].*)?", re.DOTALL)
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)( ?[ap]m)?")
_NAMED = re.compile(r"([A-Za-z]\w*) ?= ?([^=]+)")
_LABEL = re.compile(r"^(?:[A-Z] ?(?=\([^()]*,[^()]*\)$)|[A-Za-z ]{4,}= ?(?=[^=]+$))")
_RELATION = re.compile(r"[<>]|\\(?:leq|geq|neq)(?![a-z])")


def last_boxed(text: str) -> str | None:
    r"""
    The content of the last `\boxed{…}`, the innermost where boxes are nested.

    The last one, since the prompt asks for the final answer in it, and boxes before it are steps of the reasoning. So a
    last box without its closing brace, cut off by the limit of the completion's length, is no answer: `None`, whatever
    was boxed before. `\{` and `\}` are no braces.
    """
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : match.start()].strip()
    return None


def final_answer(solution: str) -> str:
    r"""
    What a solution says in the end: the last `<answer>…</answer>`, in it or without one the last `\boxed{…}`, else all of
    it.

    What stands before `</think>` is reasoning, whose boxes and tags are steps, and counts only if nothing follows. What
    stands behind a `<think>` that is not closed was cut off and never counts.

    Raises:
        `TypeError`: if the solution is not a string.
        `ValueError`: if there is reasoning and no final answer. To compare with the reasoning would punish the right
            answer and praise an intermediate result.
    """
    if not isinstance(solution, str):
        raise TypeError(
            f"{SOLUTION}: a solution must be a string; got {solution!r}. Cast the column: "
            "dataset.cast_column(...), or leave the row out."
        )
    reasoning, _, rest = solution.rpartition("</think>")
    text = rest.partition("<think>")[0] if rest.strip() else reasoning
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    text = text[start + len("<answer>") : end] if start >= 0 else text
    boxed = last_boxed(text)
    answer = text.strip() if boxed is None else boxed
    marked = start >= 0 or boxed is not None
    if not (marked and answer) and any(mark in solution for mark in _MARKS):
        shown = solution if len(solution) <= 80 else f"{solution[:40]} … {solution[-40:]}"
        raise ValueError(
            f"{SOLUTION}: {shown!r} holds reasoning, but no final answer in \\boxed{{}} or <answer></answer>, so "
            "nothing can be graded against it. Put the final answer into \\boxed{}, or leave the row out."
        )
    return answer


def check_no_reasoning(solution: str) -> str:
    """
    The [`final_answer`] of a solution without reasoning.

    Reasoning is refused even in front of an answer, which would be found: other rewards take the reasoning's last number for
    it (TRL's `accuracy_reward` does), so that one column would mean two things.

    Raises:
        `TypeError`: if the solution is not a string.
        `ValueError`: if there is reasoning in it.
    """
    answer = final_answer(solution)
    if "<think>" in solution or "</think>" in solution:
        shown = solution if len(solution) <= 80 else f"{solution[:40]} … {solution[-40:]}"
        raise ValueError(
            f"{SOLUTION}: {shown!r} holds reasoning in front of the answer {answer[:80]!r}. Keep the answer alone: prepare "
            "the data set (docs/data.md), which does so, or take what is in <think></think> out."
        )
    return answer


def check_solution(solution: str) -> None:
    """
    Check that a completion can be right: with [`check_no_reasoning`], and that there is something to compare.

    Raises:
        `TypeError`: if the solution is not a string.
        `ValueError`: if there is reasoning in it, or an answer in which nothing is written.
    """
    answer = check_no_reasoning(solution)
    if not re.search(r"\d", answer) and not normalise(without_lead_in(normalise(answer))):  # a digit is something
        raise ValueError(
            f"{SOLUTION}: {solution[:80]!r} holds no answer, so no completion could be right. Add it, or leave "
            "the row out."
        )


def without_lead_in(text: str) -> str:
    """An answer without words such as "The correct answer is" in front, and then without its full stop."""
    lead_in = _LEAD_IN.match(text)
    return text[lead_in.end() :].removesuffix(".") if lead_in else text


def answers_match(gold: str, answer: str | None, equal: Callable[[str, str], bool]) -> bool:
    r"""
    Whether an answer is the gold one.

    Both without their lead-in, in this order: equal after normalisation; the letter of a multiple choice; names and
    words, where the gold is one; the same number of the same unit; else mathematics.

    Args:
        gold (`str`): the solution, whose [`final_answer`] counts.
        answer (`str` or `None`): what the model has boxed; `None` is wrong.
        equal (`Callable[[str, str], bool]`): compares two pieces of mathematics, the gold one first. Not called where
            the text decides, nor for an answer of more than `MAX_LENGTH` characters.

    Raises:
        `TypeError`: if the gold is not a string.
        `ValueError`: if it is reasoning without an answer.
    """
    gold = final_answer(gold)
    if answer is None or not answer or len(answer) > max(MAX_LENGTH, 2 * len(gold)):
        return False
    # The lead-in may be in a font command, or mathematics in its delimiters behind it.
    gold, answer = (normalise(without_lead_in(normalise(text))) for text in (gold, answer))
    if not gold or not answer:
        return False
    if gold.casefold() == answer.casefold():
        same_case = bool(MEGA.search(gold)) == bool(MEGA.search(answer)) and not _GENOTYPE.fullmatch(gold)
        return gold == answer or same_case  # Aa is not AA, MW is not mW
    letter, meaning = _choice(gold)
    if letter is not None and letter.isupper():  # a lower-case letter is a variable
        return _same_choice(letter, meaning, answer, equal)
    if _SEVERAL.fullmatch(gold) and _TOGETHER.fullmatch(answer):
        return sorted(answer) == sorted(re.findall("[A-Z]", gold))
    if is_name(gold) or is_text(gold):
        return _bare_text(answer) in (_bare_text(gold), _reversed_angle(gold))
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return False
    if re.search(r"\bangle \d", gold):  # of which math-verify sees the numbers
        return sorted(_sides(gold)) == sorted(_sides(answer))
    if _is_range(gold) or _is_clock(gold):
        return _same_span(gold, answer)
    parts = _named_parts(gold)
    if parts and "=" not in answer:
        return _equal_in_order(parts, answer, equal)
    return _equal_relations(*_without_label(gold, answer), equal)


def _same_choice(letter: str, meaning: str | None, answer: str, equal: Callable[[str, str], bool]) -> bool:
    chosen, _ = _choice(answer)
    if chosen is not None and (chosen.isupper() or chosen.upper() == letter):
        return chosen.upper() == letter  # whatever is written behind it
    return meaning is not None and answers_match(meaning, answer, equal)


def _choice(text: str) -> tuple[str | None, str | None]:
    """The letter of a multiple choice and what is written behind it: `(A)`, `A.`, `Option A`, `A. 12 cm`."""
    match = _CHOICE.match(_NO_CHOICE.sub("", text))
    if match is None or (match[2] is not None and _MORE_CHOICES.search(match[2])):  # "A. and B.": two are none
        return None, None
    return match[1], match[2]


def is_text(text: str) -> bool:
    """Whether it is words, not mathematics: math-verify takes `listen` for a product of letters, so for `silent`."""
    words = _WORD.findall(text.lower())
    plain = not re.search(r"[\d\\^_=+*/<>{}|%$°]", text)
    return plain and any(len(word) > 2 or word in ("yes", "no") for word in words) and not _NO_WORDS & set(words)


def is_name(text: str) -> bool:
    """Whether it is letters that stand in an order: `SAS`, `NE`, `Aa`, `H_2O`, `B-A-C`, `2023-01-05`; not the segment AB."""
    bare = re.sub(r"[_{}]", "", text)
    letters = "".join(_WORD.findall(bare))
    if _SEQUENCE.fullmatch(text) or text.lower() in _ORDERED or _PAIRS.fullmatch(text):
        return True
    return bool(re.fullmatch(r"[A-Z][A-Za-z\d]*", bare)) and len(letters) > 1 and not re.fullmatch("[A-Z]{2}", bare)


def _bare_text(text: str) -> str:
    return re.sub(r"^(?:the|an|a) (?=.)|[_{}]", "", text.casefold().strip(" .,;:!\"'“”‘’()"))


def _reversed_angle(gold: str) -> str:
    match = re.fullmatch(r"angle ([a-z])([a-z])([a-z])", _bare_text(gold))
    return f"angle {match[3]}{match[2]}{match[1]}" if match else _bare_text(gold)


def _sides(text: str) -> list[str]:
    return [" ".join(side.split()) for side in text.casefold().split("=")]


def _is_range(text: str) -> bool:
    """`60-70 kg`, and not the difference 70-60."""
    match = _RANGE.fullmatch(text)
    return match is not None and "-" in text and float(match[1]) < float(match[2])


def _is_clock(text: str) -> bool:
    """`10:30`, and not the ratio 9:16, which is in its lowest terms."""
    match = _CLOCK.fullmatch(text)
    return match is not None and (match[3] is not None or math.gcd(int(match[1]), int(match[2])) > 1)


def _same_span(gold: str, answer: str) -> bool:
    """Of two ranges or times: the same numbers, and the same unit where both have one."""
    match, other = _RANGE.fullmatch(gold), _RANGE.fullmatch(answer)
    if other is None or (float(match[1]), float(match[2])) != (float(other[1]), float(other[2])):
        return False
    units = [split_unit(f"1 {(found[3] or '').strip()}") for found in (match, other)]
    return not (match[3] and other[3]) or units[0] == units[1]


def _named_parts(text: str) -> dict[str, str]:
    """The values of `x = 3, y = 4` by their names; of anything else none."""
    matches = [_NAMED.fullmatch(part.strip()) for part in re.split(r",|;|\band\b", text)]
    named = {match[1]: match[2].strip() for match in matches if match is not None}
    return named if len(named) == len(matches) > 1 else {}


def _equal_in_order(parts: dict[str, str], answer: str, equal: Callable[[str, str], bool]) -> bool:
    """Values without their names, `(3, 4)`: in the order of the gold ones or of the alphabet."""
    values = [value.strip() for value in answer.strip("()").split(",")]
    orders = [list(parts.values()), [parts[name] for name in sorted(parts)]]
    return len(values) == len(parts) and any(
        all(_equal_quantities(gold, value, equal) for gold, value in zip(order, values, strict=True))
        for order in orders
    )


def _without_label(gold: str, answer: str) -> tuple[str, str]:
    """Without the name of a point or of a quantity, `A(3, -2)` or `Area = 5`, where one side alone has it."""
    bare = [_LABEL.sub("", text) for text in (gold, answer)]
    return (gold, answer) if gold != bare[0] and answer != bare[1] else (bare[0], bare[1])


def _equal_relations(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool:
    r"""`\geq 5`, which math-verify does not read, by its sign; and what stands before the last `=`."""
    signs, other_signs = _RELATION.findall(gold), _RELATION.findall(answer)
    if signs and other_signs and (_RELATION.match(gold) or _RELATION.match(answer)):  # one says no variable
        gold, answer = (re.sub(rf"^[A-Za-z] ?(?={_RELATION.pattern})", "", text) for text in (gold, answer))
        if not (_RELATION.match(gold) and _RELATION.match(answer)) or signs != other_signs or len(signs) > 1:
            return False
        gold, answer = (_RELATION.sub("", text).strip() for text in (gold, answer))
        return bool(gold and answer) and _equal_quantities(gold, answer, equal)
    if "=" in answer and "=" not in gold:  # of which math-verify sees the last side alone: 7 = 5
        *sides, _ = (side.strip() for side in answer.split("="))
        numbers = [side for side in sides if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side))]
        if not all(_equal_quantities(gold, number, equal) for number in numbers):
            return False
    return _equal_quantities(gold, answer, equal)


def _equal_quantities(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool:
    (gold_number, gold_unit), (number, unit) = split_unit(gold), split_unit(answer)
    if gold_unit and unit and gold_unit != unit:
        return False
    if (gold_unit and number.endswith("%")) or (unit and gold_number.endswith("%")):
        return False
    if gold_number == number:
        return True
    if any(re.search(r"(?<!\\frac )(?<!\\frac)\d \d", text) for text in (gold_number, number)):
        return False  # two numbers in a row, which math-verify adds
    return _equal_percentages(gold_number, number, equal)


def _equal_percentages(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool:
    bare_gold, bare = gold.removesuffix("%"), answer.removesuffix("%")
    if equal(bare_gold, bare):
        return True
    if (bare_gold != gold) == (bare != answer):
        return False
    if bare_gold != gold:
        return equal(f"\\frac{{{bare_gold}}}{{100}}", bare)
    return equal(bare_gold, f"\\frac{{{bare}}}{{100}}")

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
When an answer counts as right: what is text is compared here, what is mathematics by a function that is passed in.

Pure functions of the standard library, of a time linear in the length of the text; what looks at units sees
`MAX_LENGTH` characters at most.
"""

import re
from collections.abc import Callable

MAX_LENGTH = 1000  # characters; beyond it an answer is right only as the same text

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MARKS = ("<think>", "</think>", "<answer>", "</answer>")
_LEAD_IN = re.compile(
    r"(?:the )?(?:(?:correct|final|right) )?(?:answer|option|choice)(?:(?: is)?:| is\b) *(?=\S)", re.IGNORECASE
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|rm|bf|mbox|operatorname|boldsymbol)\s*\{"
)
_SPACE = re.compile(r"\\(?:quad|qquad)\b|(?<!\\)\\[,;:! ]|~|\s")
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer):? )?\(?([A-Z])(?:\)?[.:]?$|(?:\)[.:]?|[.:]) (.+)$)", re.IGNORECASE | re.DOTALL
)
_MORE_CHOICES = re.compile(r"^(?:and\b|or\b|[&,/]|(?:[A-Z]\W*)+$)|\([A-Z]\)|\b[A-Z][.:)]")
_WORD = re.compile(r"[^\W\d_]+")
_NO_WORDS = set(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi mod gcd lcm "
    "and or to than more less times over by".split()
)
_QUANTITY = re.compile(r"(.*(?:[\d)}\]]|\\pi))( ?)((?:[^\W\d_]|°)(?:[^\W\d_]|[°/ .])*(?:\^?\{?[23]\}?)?)$", re.DOTALL)
_UNITS = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "l": "liter liters litre litres",
    "ml": "milliliter milliliters millilitre millilitres",
    "n": "newton newtons",
    "j": "joule joules",
    "w": "watt watts",
    "v": "volt volts",
    "hz": "hertz",
    "pa": "pascal pascals",
    "°": "degree degrees deg",
    "°c": "celsius",
    "°f": "fahrenheit",
    "$": "dollar dollars usd",
}
_ALIASES = {alias: unit for unit, aliases in _UNITS.items() for alias in [unit, *aliases.split()]}


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
            f"column 'solution': a solution must be a string; got {solution!r}. Cast the column: "
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
            f"column 'solution': {shown!r} holds reasoning, but no final answer in \\boxed{{}} or <answer></answer>, so "
            "nothing can be graded against it. Put the final answer into \\boxed{}, or leave the row out."
        )
    return answer


def without_lead_in(text: str) -> str:
    """An answer without words such as "The correct answer is" in front, and then without its full stop."""
    lead_in = _LEAD_IN.match(text)
    return text[lead_in.end() :].removesuffix(".") if lead_in else text


def is_right(gold: str, answer: str | None, equal: Callable[[str, str], bool]) -> bool:
    r"""
    Whether an answer is the gold one.

    Both without their lead-in, in this order: equal after normalisation; the letter of a multiple choice; text, where the
    gold is text; the same number of the same unit; else mathematics.

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
        return True
    letter, meaning = _choice(gold)
    if letter is not None and letter.isupper():  # a lower-case letter is a variable
        chosen, _ = _choice(answer)
        return (chosen or "").upper() == letter or (meaning is not None and is_right(meaning, answer, equal))
    if is_text(gold):
        return _bare_text(gold) == _bare_text(answer)
    return _equal_quantities(gold, answer, equal) if max(len(gold), len(answer)) <= MAX_LENGTH else False


def normalise(text: str) -> str:
    r"""Text without math delimiters, font commands, repeated or LaTeX spaces, and a full stop at the end."""
    for old, new in [("−", "-"), ("\\%", "%"), ("\\$", "$"), ("²", "^2"), ("³", "^3"), ("{,}", ",")]:
        text = text.replace(old, new)
    text = re.sub(r"\\(?:left|right)(?![a-z])", "", text)
    text = re.sub(r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})|\\degree(?![a-z])", "°", text)
    text = " ".join(_SPACE.sub(" ", _unwrap(text)).split())
    for opening, closing in [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")]:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inside and opening not in inside:
            text = inside
    return text.strip().removesuffix(".").strip()


def _unwrap(text: str) -> str:
    """Font commands without their braces: a stack, for a model may nest them ten thousand deep."""
    pieces, stack, end = [], [], 0
    for match in re.finditer(rf"{_WRAPPER.pattern}|\\.|[{{}}]", text, re.DOTALL):
        pieces.append(text[end : match.start()])
        token, end = match.group(), match.end()
        if token == "{" or _WRAPPER.fullmatch(token):
            stack.append(token)
            pieces.append("{" if token == "{" else " ")
        elif token == "}":
            pieces.append("}" if not stack or stack.pop() == "{" else " ")
        else:
            pieces.append(token)
    return "".join([*pieces, text[end:]])


def _choice(text: str) -> tuple[str | None, str | None]:
    """The letter of a multiple choice and what is written behind it: `(A)`, `A.`, `Option A`, `A. 12 cm`."""
    match = _CHOICE.match(text)
    if match is None or (match[2] is not None and _MORE_CHOICES.search(match[2])):  # "A. and B.": two are none
        return None, None
    return match[1], match[2]


def is_text(text: str) -> bool:
    """Whether it is words, not mathematics: math-verify takes `listen` for a product of letters, so for `silent`."""
    words = _WORD.findall(text.lower())
    plain = not re.search(r"[\d\\^_=+*/<>{}|%$°]", text)
    return plain and any(len(word) > 3 or word in ("yes", "no") for word in words) and not _NO_WORDS & set(words)


def _bare_text(text: str) -> str:
    return re.sub(r"^(?:the|an|a) (?=.)", "", text.casefold().strip(" .,;:!\"'“”‘’()"))


def _equal_quantities(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool:
    (gold_number, gold_unit), (number, unit) = _split_unit(gold), _split_unit(answer)
    if gold_unit and unit and gold_unit != unit:
        return False
    return gold_number == number or equal(gold_number, number)


def _split_unit(text: str) -> tuple[str, str]:
    """
    A number and its unit, `""` if there is none: any words of several letters behind a space (`5 apples`), or a known
    unit with or without one (`5m`, but `5x` is five times x).
    """
    if text[:1] in ("$", "€", "£") and text[1:2].isdigit():
        return text[1:], text[0]
    match = _QUANTITY.match(text)
    if match is None:
        return text, ""
    number, space, unit = match.groups()
    words = _WORD.findall(unit.lower())
    known = unit.startswith("°") or all(word in _ALIASES for word in words)
    if _NO_WORDS & set(words) or not (known or space and all(len(word) > 1 for word in words)):
        return text, ""
    return number.strip(), _canonical(unit.lower())


def _canonical(unit: str) -> str:
    unit = re.sub(r"^(?:square|sq\.?) (.+)", r"\1 2", re.sub(r"^cubic (.+)", r"\1 3", unit))
    unit = re.sub(r"[\^{} .]", " ", unit.replace(" per ", "/"))
    words = _WORD.sub(lambda word: _ALIASES.get(word[0]) or word[0].removesuffix("s"), unit)
    return words.replace(" ", "").replace("°°", "°")

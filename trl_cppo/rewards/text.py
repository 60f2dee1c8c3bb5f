# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
One spelling for what is written in several: Unicode and LaTeX, 3.2e4 and 3.2 \times 10^{4}, "5 million" and 5000000.

Pure functions of the standard library, of a time linear in the length of the text.
"""

import re
import unicodedata
from decimal import Decimal

# What NFKC leaves as it is, in LaTeX; data sets of scanned and of Chinese papers are full of them.
_SIGNS = {
    "\\times ": "×✕", "\\div ": "÷", "\\cdot ": "·⋅∙•", "\\pm ": "±", "\\pi ": "π", "\\infty ": "∞", "\\leq ": "≤⩽≦",
    "\\geq ": "≥⩾≧", "\\neq ": "≠", "\\approx ": "≈", "\\cup ": "∪", "\\cap ": "∩", "\\in ": "∈", "\\emptyset ": "∅⌀",
    "\\perp ": "⊥⟂", "\\parallel ": "∥", "\\angle ": "∠", "\\triangle ": "△▵", "-": "−–—‐‑‒", "°": "º˚", "[": "【〔", "]": "】〕",
    "/": "⁄∕", "*": "∗", ".": "。", ",": "、",
}  # fmt: skip
_SIGN = str.maketrans({old: new for new, signs in _SIGNS.items() for old in signs})
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_SYNONYMS = {
    "le": "\\leq", "leqslant": "\\leq", "ge": "\\geq", "geqslant": "\\geq", "ne": "\\neq", "lt": "<", "gt": ">", "varnothing": "\\emptyset",
    "Omega": "Ω", "angle": " angle ", "triangle": " triangle ", "dfrac": "\\frac", "tfrac": "\\frac", "degree": "°",
}  # fmt: skip
_SYNONYM = re.compile(rf"\\({'|'.join(_SYNONYMS)})(?![A-Za-z])")

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|rm|bf|mbox|operatorname|boldsymbol)\s*\{"
)
_SPACE = re.compile(r"\\(?:quad|qquad)\b|(?<!\\)\\[,;:! ]|~|\s")
_DELIMITERS = [
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("**", "**"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
]

MAGNITUDES = {"ten": 1, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
_MAGNITUDE = re.compile(rf"(?<![\w.^])(\d+(?:\.\d+)?) ?({'|'.join(MAGNITUDES)}|dozen)s?\b", re.IGNORECASE)
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,] )(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?! ?\d|/)")
_MIXED = re.compile(r"(?<![\d.^/] )(?<![\d.^/])(\d+) (?:(\d+)/(\d+)(?![\d/.])|(?=\\frac ?\{\d+\} ?\{\d+\}))")
_TRIGONOMETRY = re.compile(
    r"\\?(sin|cos|tan|cot|sec|csc)((?:\^\d|\^\{\d\})?) ?[({]? ?(\d+(?:\.\d+)?) ?° ?[)}]?"
)  # of degrees


def normalise(text: str) -> str:
    r"""
    Text in one spelling: NFKC and LaTeX for Unicode; without math delimiters, font commands, repeated or LaTeX spaces,
    and a full stop at the end.
    """
    text = _as_latex(text)
    for old, new in [("\\%", "%"), ("{,}", ","), ("<=", "\\leq "), (">=", "\\geq "), ("!=", "\\neq ")]:
        text = text.replace(old, new)
    text = re.sub(r"(?<!\\)\$(\^[^$]{1,5})\$", r"\1", text).replace("\\$", "$")  # cm$^2$
    text = re.sub(r"\\(?:left|right)(?![a-z])", "", text)
    text = re.sub(r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})", "°", text)
    text = _SYNONYM.sub(lambda match: _SYNONYMS[match[1]], text)
    text = " ".join(_SPACE.sub(" ", _unwrap(text)).split()).replace("μ ", "μ")
    for opening, closing in _DELIMITERS:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inside and opening not in inside:
            text = inside
    text = text.strip().removesuffix(".").strip()
    text = re.sub(r"^(?:(?:=|\\approx(?![a-z])) ?(?=\S)|[a-z] ?\\in (?=[\[(]))", "", text)
    text = re.sub(r"\b([ap])\. ?m\b\.?", r"\1m", text)  # 9:30 a.m.
    return _numbers(text)


def _as_latex(text: str) -> str:
    # NFKC turns 10⁶ into 106 and 1½ into 11/2, so these come first.
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda match: f"^{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = re.sub("[₀-₉]+", lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = re.sub("[¼-¾⅐-⅞]", _fraction, text)
    text = re.sub(r"^\s*([A-Z])[、,](?=\S)", r"\1. ", text) if "、" in text else text  # A、12 is choice A
    text = unicodedata.normalize("NFKC", text.translate(_SIGN))
    text = re.sub(r"\\mu\s*(?=[A-Za-z\\])", "μ", text)
    return re.sub(
        r"([√∛∜])\s*(?:\(([^()]*)\)|(\{)|(\d+(?:\.\d+)?|[A-Za-z]|\\pi))",
        lambda match: _ROOTS[match[1]] + (match[3] or f"{{{match[2] or match[4] or ''}}}"),
        text,
    )


def _fraction(match: re.Match) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[0]).partition("\N{FRACTION SLASH}")
    return f"\\frac{{{numerator}}}{{{denominator}}}"


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


def _numbers(text: str) -> str:
    if not re.search(r"[()\[{]", text):  # (1,234) is a point
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    text = _MAGNITUDE.sub(_plain_number, text)
    text = _MIXED.sub(lambda match: f"{match[1]}\\frac{{{match[2]}}}{{{match[3]}}}" if match[2] else match[1], text)
    text = re.sub(r"(?<=\d) to (?=\d)", ":", text)
    text = re.sub(r"(?<=\d) ?(?:%|percent\b)", "%", text)
    text = _TRIGONOMETRY.sub(r"\\\1\2(\\frac{\3\\pi}{180})", text)
    return str(NUMBERS.index(text.lower())) if text.lower() in NUMBERS else text


def _plain_number(match: re.Match) -> str:
    word = match[2].lower()
    number = Decimal(match[1]) * (12 if word == "dozen" else 10 ** MAGNITUDES[word])
    return f"{number.normalize():f}"

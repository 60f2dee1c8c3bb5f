# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Numbers and their units, in text that [`~trl_cppo.rewards.text.normalise`] returned."""

import re

from .text import MAGNITUDES, NUMBERS

_WORD = re.compile(r"[^\W\d_]+")
# No units, though they stand behind a number as one: with them it is another number, or no number alone.
NO_UNITS = {
    *MAGNITUDES, *(f"{word}s" for word in MAGNITUDES), *NUMBERS,
    *"sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt pi mod gcd lcm".split(),
    *"and or to than more less times over by plus minus not if unless except fewer negative below dozen dozens score gross".split(),
    *"squared cubed factorial choose root half halves third thirds quarter quarters fourth fourths fifth fifths".split(),
    *"tenth tenths hundredth hundredths thousandth thousandths angle triangle".split(),
}  # fmt: skip
_UNITS = {
    "mm": "millimeter millimeters millimetre millimetres 毫米",
    "cm": "centimeter centimeters centimetre centimetres 厘米",
    "m": "meter meters metre metres 米",
    "km": "kilometer kilometers kilometre kilometres 千米 公里",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams 毫克",
    "g": "gram grams 克",
    "kg": "kilogram kilograms 千克 公斤",
    "lb": "lbs pound pounds",
    "s": "sec secs second seconds 秒",
    "min": "mins minute minutes 分钟",
    "h": "hr hrs hour hours 小时",
    "l": "liter liters litre litres 升",
    "ml": "milliliter milliliters millilitre millilitres 毫升",
    "n": "newton newtons 牛",
    "j": "joule joules",
    "w": "watt watts",
    "v": "volt volts",
    "ω": "ohm ohms",
    "hz": "hertz",
    "pa": "pascal pascals",
    "°": "degree degrees deg 度",
    "°c": "celsius",
    "°f": "fahrenheit",
    "$": "dollar dollars usd",
    "¥": "yuan rmb 元",
    "cm3": "cc",
    "a": "amp amps ampere amperes",
    "c": "coulomb coulombs",
    "f": "farad farads",
    "k": "kelvin kelvins",
    "t": "tesla teslas",
    "rad": "radian radians",
}
_SPACED = {"a", "c", "f", "k", "t"}  # 3A may be a product, 3 A is a current
MEGA = re.compile(r"(?<=[\d) ])M(?=(?:W|A|Hz|J|V|Pa|N|Ω|g)(?![A-Za-z]))")  # what differs from milli by its case alone
_ALIASES = {alias: unit for unit, aliases in _UNITS.items() for alias in [unit, *aliases.split()]}
_QUANTITY = re.compile(
    r"(.*(?:[\d)}\]]|\\pi))( ?)((?:[^\W\d_]|°)(?:[^\W\d_]|[°/ .]|\\cdot)*(?:\^?\{?[23]\}?)?)$", re.DOTALL
)
_BEHIND = re.compile(r" (?:long|wide|high|tall|deep|old|away|in (?:all|total))$")  # 5 years old


def split_unit(text: str) -> tuple[str, str]:
    """
    A number and its unit, `""` if there is none: any words of several letters behind a space (`5 apples`), or a known
    unit with or without one (`5m`, but `5x` is five times x). Of a list its numbers and their unit, if it is one.
    """
    parts = re.split(r" ?(?:[,;]|\band\b|\bor\b) ?", text)
    if len(parts) == 1 or re.search(r"[(\[]|\\\{", text):
        return _split_one(text)
    numbers, units = zip(*map(_split_one, parts), strict=True)
    return (", ".join(numbers), units[0]) if units[0] and len(set(units)) == 1 else (text, "")


def _split_one(text: str) -> tuple[str, str]:
    if text[:1] in ("$", "€", "£", "¥") and text[1:2].isdigit():
        return text[1:], text[0]
    text = _BEHIND.sub("", re.sub(r" ?\(([^()\d]+)\)$", r" \1", text))  # 24 (cm)
    match = _QUANTITY.match(text)
    if match is None:
        return text, ""
    number, space, unit = match.groups()
    words = _WORD.findall(unit.lower().replace("\\cdot", " "))
    variables = set("njwvacfkt") & set(_WORD.findall(unit))  # in lower case: 4n is four times n, 4 N a force
    if _SPACED & set(words) and not (space or "°" in unit):
        return text, ""
    known = unit.startswith("°") or not variables and all(word in _ALIASES or not word.isascii() for word in words)
    if NO_UNITS & set(words) or not (known or space and all(len(word) > 1 for word in words)):
        return text, ""
    return number.strip(), _canonical(MEGA.sub("mega", f" {unit}").strip().lower())


def _canonical(unit: str) -> str:
    unit = re.sub(r"平方(.+)", r"\1 2", re.sub(r"立方(.+)", r"\1 3", unit))
    unit = re.sub(r"^(?:square|sq\.?) (.+)", r"\1 2", re.sub(r"^cubic (.+)", r"\1 3", unit))
    unit = re.sub(r"[\^{} .]", " ", unit.replace(" per ", "/").replace("\\cdot", "*"))
    words = _WORD.sub(lambda word: _ALIASES.get(word[0]) or word[0].removesuffix("s"), unit)
    return words.replace(" ", "").replace("°°", "°")

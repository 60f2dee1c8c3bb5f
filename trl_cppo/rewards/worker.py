# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The process that compares two answers with math-verify. Run by its path: `python -P worker.py MEBIBYTES`.

It imports neither trl_cppo nor torch. It reads one JSON list `[gold, answer, tolerance, processor_seconds, clock_seconds]` a line
and writes one JSON value a line: `true`, which says that it is ready, then whether the answer is right, or `null` where
it overran. A forked child compares, and a new one takes the place of one that overran: a start takes a second or more.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# What is imported and built at the first use of its kind, before the fork and so once.
_FIRST = [
    ("\\frac{1}{2}", "0.5"), ("2\\sqrt{3}", "\\sqrt{12}"), ("x=5", "5"), ("\\{1, 2\\}", "(1, 2)"), ("x \\leq 2", "[1, 3)"),
    ("12\\pi", "37.7"), ("x^2 + 1", "1 + x^2"), ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\log 2"),
]  # fmt: skip


def main() -> None:
    # Replies go through a copy of standard output: what a library prints must not be taken for one.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    compare = load_comparison()
    for gold, answer in _FIRST:
        compare(gold, answer)
    replies.write("true\n")
    while (child := os.fork()) != 0:
        if os.waitpid(child, 0)[1] == 0:  # no more requests
            return
        replies.write("null\n")
    serve(compare, replies, int(sys.argv[1]) << 20)
    os._exit(0)


def serve(compare: Callable[..., bool], replies: TextIO, address_space: int) -> None:
    if sys.platform == "linux":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (address_space,) * 2)
    for limit in (signal.SIGPROF, signal.SIGALRM):  # the kernel ends the process, whatever it does, even as an orphan
        signal.signal(limit, signal.SIG_DFL)
    for line in sys.stdin:
        gold, answer, tolerance, processor_seconds, clock_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, processor_seconds)
        signal.setitimer(signal.ITIMER_REAL, clock_seconds)
        equal = compare(gold, answer, tolerance)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(equal) + "\n")


def load_comparison() -> Callable[..., bool]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # No ExprExtractionConfig, which takes the first number of what it cannot parse, and no fallback to text. No units:
    # math-verify's are any of a list of a hundred at the end, `h`, `o`, `square` and `more` among them.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    target = LatexExtractionConfig(boxed_match_priority=0, normalization_config=spelling)

    def parsed(text: str) -> list:
        # math-verify's own limits are Python signal handlers, which wait for the end of a long call into C.
        return parse(f"\\boxed{{{text}}}", (target,), fallback_mode="no_fallback", parsing_timeout=None)

    def compare(gold: str, answer: str, tolerance: float = 0.0) -> bool:
        expressions = parsed(gold), parsed(answer)
        if tolerance and all(expressions) and is_near(expressions[0][0], expressions[1][0], tolerance):
            return True
        try:
            decimals, digits = precision([*expressions[0], *expressions[1]])
        except Exception:  # sympy's on odd expressions are of any kind, and to `verify` they mean unequal, too
            return False
        return bool(verify(*expressions, decimals, digits, allow_set_relation_comp=True, timeout_seconds=None))

    return compare


def is_near(gold: Any, answer: Any, tolerance: float) -> bool:
    """Whether both are numbers, of `x = 5` the right side, that differ by at most so much. What is no real number is not near."""
    import sympy

    sides = [part.rhs if isinstance(part, sympy.Eq) else part for part in (gold, answer)]
    try:
        return abs(float(sides[0]) - float(sides[1])) <= tolerance
    except Exception:  # as above
        return False


def precision(expressions: list[Any]) -> tuple[int, int]:
    """
    math-verify's `float_rounding` and `numeric_precision`, from the smallest number that is not 0.

    Its default, six decimals, makes equal whatever is below 5e-7. So small numbers agree to five digits: 0.00012345 to
    eight decimals.
    """
    smallest = min((exponent for expression in expressions for exponent in magnitudes(expression)), default=0)
    return max(6, 4 - smallest), max(15, 15 - smallest)


def magnitudes(expression: Any) -> Iterator[int]:
    """The power of ten of each number in a number, list, set, interval, matrix or relation."""
    import sympy

    if isinstance(expression, sympy.MatrixBase):
        parts = expression.flat()
    elif not expression.is_number:
        parts = expression.args
    else:
        parts, value = [], abs(sympy.N(expression.doit()))
        if value.is_finite and not value.is_zero:
            yield int(sympy.floor(sympy.log(value, 10).evalf()))
    for part in parts:
        yield from magnitudes(part)


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
The process that compares two answers with math-verify. Run by its path: `python -P grading_worker.py SECONDS MEBIBYTES`.

It imports neither trl_cppo nor torch. It reads one JSON list `[gold, answer]` a line and writes one JSON boolean a line,
the first of which, `true`, says that it is ready.
"""

import json
import os
import resource
import signal
import sys


def main() -> None:
    seconds, mebibytes = float(sys.argv[1]), int(sys.argv[2])
    # Replies go through a copy of standard output: what a library prints must not be taken for one.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

    def parsed(text: str) -> list:
        # math-verify's own limits are Python signal handlers, which wait for the end of a long call into C.
        return parse(f"\\boxed{{{text}}}", targets, parsing_timeout=None)

    if sys.platform == "linux":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20,) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, whatever it does, even as an orphan
    replies.write("true\n")
    for line in sys.stdin:
        gold, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        equal = verify(parsed(gold), parsed(answer), timeout_seconds=None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(bool(equal)) + "\n")


if __name__ == "__main__":
    main()

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Timing arms against each other."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext


def seconds(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def take_turns(
    run: Callable[[str], None],
    arms: list[str],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    around: Callable[[str], AbstractContextManager] = nullcontext,
) -> list[dict[str, float]]:
    """
    Seconds of each arm, again and again; another arm begins each time, for the first may find a cold cache. `around` opens what is in
    force while an arm runs, outside of its time.
    """
    rounds = []
    for place in range(repeats):
        start, times = place % len(arms), {}
        for arm in arms[start:] + arms[:start]:
            with around(arm):
                times[arm] = seconds(lambda arm=arm: run(arm), clock)
        rounds.append(times)
    return rounds

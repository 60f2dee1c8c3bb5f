# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Timing arms against each other."""

import time
from collections.abc import Callable


def seconds(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def take_turns(
    run: Callable[[str], None], arms: list[str], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Seconds of each arm, again and again; another arm begins each time, for the first may find a cold cache."""
    rounds = []
    for place in range(repeats):
        start = place % len(arms)
        rounds.append({arm: seconds(lambda arm=arm: run(arm), clock) for arm in arms[start:] + arms[:start]})
    return rounds

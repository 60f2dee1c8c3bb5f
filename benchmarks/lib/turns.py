# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Timing arms against each other, and the parts of one."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Clock = Callable[[], float]
REST = "rest"  # what is in no part


def seconds(run: Callable[[], None], clock: Clock = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def take_turns(
    run: Callable[[str], None],
    arms: list[str],
    repeats: int,
    clock: Clock = time.perf_counter,
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


class Stopwatch:
    """
    What each part of a step takes. What a part does inside another counts to the inner one alone, so that they add up.

    Args:
        clocks (`dict[str, Callable]`): each tells what has been spent until now, in seconds or whatever it counts.

    Attributes:
        laps (`list[dict[str, dict[str, float]]]`): for each lap what each part took, [`REST`] among them, by each clock.
    """

    def __init__(self, clocks: dict[str, Clock]):
        self.clocks = clocks
        self.laps: list[dict[str, dict[str, float]]] = []
        self._open = [REST]
        self._spent: dict[str, Counter] = {}
        self._mark = self._now()

    def enter(self, part: str) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def lap(self) -> None:
        """Note what was spent since the last one."""
        self._charge()
        self.laps.append({part: dict(spent) for part, spent in self._spent.items()})
        self._spent = {}

    def _now(self) -> dict[str, float]:
        return {name: clock() for name, clock in self.clocks.items()}

    def _charge(self) -> None:
        now = self._now()
        self._spent.setdefault(self._open[-1], Counter()).update({name: now[name] - self._mark[name] for name in now})
        self._mark = now

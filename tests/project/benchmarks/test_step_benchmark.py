# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/cost/step.py: its parts add up to the step, and hold what their names say."""

import argparse

import pytest

from benchmarks.cost import step
from benchmarks.cost.pictures import draw_step
from benchmarks.lib.turns import REST, Stopwatch


def test_what_a_part_does_inside_another_counts_once():
    now = iter([0, 1, 3, 6, 10, 15, 21])
    watch = Stopwatch({"ticks": lambda: next(now)})
    watch.enter("outer")  # after 1 of the rest
    with watch.part("inner"):  # 3 − 1 of the outer one
        pass  # 6 − 3
    watch.leave()  # 10 − 6
    watch.lap()  # 15 − 10 of the rest
    [lap] = watch.laps
    assert {name: spent["ticks"] for name, spent in lap.items()} == {REST: 1 + 5, "outer": 2 + 4, "inner": 3}
    watch.lap()
    assert watch.laps[1] == {REST: {"ticks": 21 - 15}}  # each lap starts anew


def test_the_short_version_tells_the_parts_apart(warm_model, tmp_path):
    options = argparse.Namespace(rows=32, steps=1, repeats=1)
    row = step.measure("reference", options)
    arms = row["arms"]
    for name, arm in arms.items():
        for clock in ("seconds", "cpu_seconds", "flops"):
            parts = {part: value for part, value in arm[clock].items() if part != "step"}
            assert sum(parts.values()) == pytest.approx(arm[clock]["step"], abs=1e-4)
            assert parts.keys() == {*step.PARTS, REST}
        busy = {"generation", "old policy", "reference", "forward", "backward"}
        assert {part for part, value in arm["flops"].items() if value} - {"step"} == busy
        views = [arm["cpu_seconds"][part] for part in ("transforms", "image processing")]
        assert min(views) > 0 if name != "grpo" else max(views) == 0
        assert min(arm["cpu_seconds"][part] for part in {*busy, "prompts", "rewards", "optimizer"}) > 0
    flops = {name: arm["flops"] for name, arm in arms.items()}
    for name in ("cppo", "cppo_plain"):  # after an update samples may have other lengths
        assert flops[name]["generation"] == pytest.approx(flops["grpo"]["generation"], rel=0.1)
    assert flops["cppo_plain"]["old policy"] == pytest.approx(flops["grpo"]["old policy"], rel=0.1)
    assert flops["cppo"]["old policy"] < 0.7 * flops["grpo"]["old policy"]  # one image of four, and one prompt
    assert flops["cppo"]["forward"] < flops["cppo_plain"]["forward"] > flops["grpo"]["forward"]
    assert all(ratio > 0 for clock in step.CLOCKS for ratio in row[f"{clock}_ratio"].values())
    report = {"rows": [row, row]}
    assert step.tables(report).count("**whole step**") == 2
    draw_step(report, tmp_path / "step.svg")
    assert (tmp_path / "step.svg").read_text().count("CPPO, plain rows") == 1  # the second panel shares the names

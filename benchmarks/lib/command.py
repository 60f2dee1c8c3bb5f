# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What the commands of the benchmarks share: their options, and the JSON file that tables and pictures are made from."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PICTURES = Path(__file__).parents[2] / "docs" / "results"
Report = dict[str, Any]


class BenchmarkParser(argparse.ArgumentParser):
    """
    A parser with `--output`, `--tables`, `--picture` and `--smoke`.

    Args:
        module (`str`): the benchmark's below `benchmarks`. Its file, where no other is given, is called by it:
            `benchmarks/results/cost/scale.json` for `"cost.scale"`, `cost/cost.json` for `"cost"`; with `--smoke` there is none.
        doc (`str`): its docstring.
        smoke (`str`): what its short version is.
    """

    def __init__(self, module: str, doc: str, smoke: str):
        super().__init__(
            prog=f"python -m benchmarks.{module}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        folder, name = module.split(".")[0], module.split(".")[-1]
        self._default = RESULTS / folder / f"{name}.json"
        self.add_argument("--output", type=Path, help=f"JSON file (default: benchmarks/results/{folder}/{name}.json)")
        self.add_argument("--tables", action="store_true", help="print the tables of the file, run nothing")
        self.add_argument("--picture", action="store_true", help="draw the file into docs/results/, run nothing")
        self.add_argument(
            "--smoke", action="store_true", help=f"the short version, printed as JSON and not kept: {smoke}"
        )

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        options = super().parse_args(*args, **kwargs)
        if options.output is None and (options.tables or options.picture or not options.smoke):
            options.output = self._default
        return options

    def show(
        self, options: argparse.Namespace, tables: Callable[[Report], str], draw: Callable[[Report], None]
    ) -> bool:
        """Print the tables and draw the picture of the file, whichever is asked for; whether anything was."""
        if not (options.tables or options.picture):
            return False
        report = read_json(options.output)
        if not report:
            self.error(f"{options.output} does not exist: run the benchmark first.")
        if options.tables:
            print(tables(report))
        if options.picture:
            draw(report)
        return True


def run_and_print(options: argparse.Namespace, run: Callable[[argparse.Namespace], Report], tables: Callable) -> None:
    """Run, then print the report alone: as JSON with `--json` or `--smoke`, else its tables."""
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed writes its warnings to stdout
        report = run(options)
    print(json.dumps(report) if options.json or options.smoke else tables(report))


def measure_rows(options: argparse.Namespace, head: Report, jobs: list[Callable[[], Any]]) -> Report:
    """
    A report of `rows`, one a job, written after each where there is an `options.output`. An interrupted one of the same `head` goes on
    where it stopped, a finished one is measured anew.
    """
    report = read_json(options.output) if options.output else {}
    rows = report.get("rows", []) if {name: report.get(name) for name in head} == head else []
    if len(rows) == len(jobs):
        rows = []
    for job in jobs[len(rows) :]:
        rows.append(job())
        if options.output:
            write_json(options.output, {**head, "rows": rows})
    return {**head, "rows": rows}


def read_json(path: Path) -> Report:
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: Path, report: Report) -> None:
    """Whole or not at all, so that an interrupted run leaves a readable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(report) + "\n")
    draft.replace(path)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
The embedded digits run over several seeds, CPPO and GRPO (λ = 0), from one warm start. Prints one JSON object.

    python benchmarks/seeds.py --seeds 0 1 2 3 4

Held-out accuracy (greedy) is measured on 2,000 canvases before the first and after the last step. A run takes two to three
minutes of one core; `--workers` of them run side by side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trl_cppo import digits

SCRIPT = Path(__file__).parents[1] / "examples" / "train_cppo.py"
ARMS = {"grpo": 0.0, "cppo": 0.01}


def run(arm: str, seed: int, steps: int, canvases: int) -> dict[str, float]:
    """Accuracy before and after, and the mean reward of the first and the last 20 steps, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder, "seed": seed, "cpl_coef": ARMS[arm], "max_steps": steps, "eval_every": steps,
            "eval_canvases": canvases, "save_strategy": "no", "disable_tqdm": "true",
        }  # fmt: skip
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        result = subprocess.run([sys.executable, str(SCRIPT), *flags], env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        report = json.loads((Path(folder) / "metrics.json").read_text())
    reward = [value for _, value in report["history"]["reward"]]
    first, last = statistics.fmean(reward[:20]), statistics.fmean(reward[-20:])
    row = {"arm": arm, "seed": seed, **report["held_out_accuracy"], "reward_first": first, "reward_last": last}
    print(row, file=sys.stderr, flush=True)
    return row


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each figure, an arm at a time."""
    result = {}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        gains = {"gain": [row["after"] - row["before"] for row in own]}
        figures = {name: [row[name] for row in own] for name in ("before", "after", "reward_first", "reward_last")}
        result[arm] = {
            name: {"mean": round(statistics.fmean(values), 4), "sd": round(statistics.stdev(values), 4)}
            for name, values in {**figures, **gains}.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="at least two")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--canvases", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    digits.warm_start(seed=0)  # once, before the runs that share it
    jobs = [(arm, seed) for seed in options.seeds for arm in ARMS]
    with ThreadPoolExecutor(options.workers) as pool:
        rows = list(pool.map(lambda job: run(*job, options.steps, options.canvases), jobs))
    print(json.dumps({"steps": options.steps, "canvases": options.canvases, "rows": rows, "summary": summary(rows)}))


if __name__ == "__main__":
    main()

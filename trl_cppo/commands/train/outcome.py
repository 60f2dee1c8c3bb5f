# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is left of a run: `metrics.json`, and the three lines that end it."""

import dataclasses
import json
import math
import shlex
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...config import CPPOConfig
from ...run.card import Hardware
from ...run.card.held_out import wilson_interval
from ...run.card.picture import metric_history
from ...run.rows.layouts import RECORD
from ...trainer import CPPOTrainer
from ..loading import DIGITS
from .arguments import CPPOScriptArguments
from .step_lines import share_text

_TIMES = ("_time", "_runtime", "_per_second")  # ends of the names of what a clock measured
_SETTINGS = [
    "seed", "max_steps", "learning_rate", "num_generations", "cpl_coef", "cpl_temperature", "cpl_divergence", "cpl_reduction",
    "perception_token_ratio", "perception_score", "gate_by_advantage", "beta", "min_entropy_shift", "cpl_max_gradient_ratio",
    "cpl_rollouts_per_prompt", "information_preserving", "information_removing", "max_pixels", "min_pixels",
]  # fmt: skip
# Which the report takes too: a page of other views or smaller images would show what the run has not seen.
_SHARED_WITH_REPORT = [
    "max_completion_length", "max_pixels", "min_pixels", "temperature", "information_preserving", "information_removing",
    "perception_token_ratio", "perception_score", "min_entropy_shift", "cpl_divergence",
]  # fmt: skip
_NOTE = (
    "The times are this machine's. So are all other values in their last digits, and with them what is sampled: equal runs on one "
    "machine, with the same versions, give equal values; other machines and versions give others."
)
_WINDOW = 10  # logged rewards in the means of the last lines


def write_metrics(trainer: CPPOTrainer) -> None:
    """`metrics.json` into the output folder. But for `machine_dependent`, equal runs on a machine give equal files."""
    log = [{key: _plain(value) for key, value in entry.items()} for entry in trainer.state.log_history]
    history = metric_history(trainer.state.log_history)
    report: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "settings": {name: getattr(trainer.args, name) for name in _SETTINGS},
        "history": history,
    }
    measured = held_out(trainer)
    if measured:
        report["held_out_accuracy"] = _before_after(measured)
    report["log_history"] = [{key: entry[key] for key in entry if not key.endswith(_TIMES)} for entry in log]
    times = [{key: entry[key] for key in entry if key == "step" or key.endswith(_TIMES)} for entry in log]
    report["machine_dependent"] = {
        "note": _NOTE,
        "hardware": dataclasses.asdict(Hardware.of(trainer.accelerator)),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "trl-cppo")},
        "times": [entry for entry in times if len(entry) > 1],
    }
    (Path(trainer.args.output_dir) / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def held_out(trainer: CPPOTrainer) -> list[dict[str, Any]]:
    """The entries of the log with a held-out accuracy, by step."""
    return [entry for entry in trainer.state.log_history if "held_out_accuracy" in entry]


def _before_after(measured: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"questions": measured[-1].get("held_out_questions")}  # logs of earlier versions lack it
    for when, entry in (("before", measured[0]), ("after", measured[-1])):
        share, questions = entry["held_out_accuracy"], entry.get("held_out_questions")
        found[when] = share
        found[f"{when}_interval"] = wilson_interval(share, questions) if questions else None
    return found


def closing_lines(trainer: CPPOTrainer, script_args: CPPOScriptArguments) -> list[str]:
    """What came of it, where everything is, and what to type next."""
    where = "Model, card (README.md), metrics.json and training.png"
    if find_spec("matplotlib") is None:
        where = 'Model, card (README.md) and metrics.json (no training.png: it needs matplotlib, pip install "trl-cppo[digits]")'
    output = trainer.args.output_dir
    return [_result(trainer), f"{where} are in {output}", f"Next: {report_command(trainer.args, script_args)}"]


def _result(trainer: CPPOTrainer) -> str:
    measured = held_out(trainer)
    if measured:
        before, after = measured[0], measured[-1]
        return (
            f"Held-out accuracy {share_text(before)} -> {share_text(after)}, steps {before['step']} and {after['step']}, on "
            f"{after.get('held_out_questions', 'the same')} questions; in brackets 95 % intervals of the questions alone"
        )
    rewards = [entry["reward"] for entry in trainer.state.log_history if entry.get("reward") is not None]
    count = min(_WINDOW, len(rewards) // 2)
    if not count:
        told = f"Reward {rewards[0]:.3f}, logged once" if rewards else "No reward was logged"
        return f"{told}: with a lower logging_steps or more steps there is something to compare"
    first, last = sum(rewards[:count]) / count, sum(rewards[-count:]) / count
    values = "value" if count == 1 else f"{count} values"
    told = f"Reward {first:.3f} -> {last:.3f}: the first and the last {values} logged{'' if count == 1 else ', in the mean'}"
    equal = [entry.get("frac_reward_zero_std") for entry in trainer.state.log_history if "reward" in entry]
    if set(equal) == {1.0}:
        told += (
            ". In no step did the rewards of a prompt's rollouts differ, so that nothing was learned: see what the model says "
            "(the report below, or the same command with --dry_run), and whether the prompt asks for what the reward wants"
        )
    return told


def _is_held_back(args: CPPOConfig, script_args: CPPOScriptArguments) -> bool:
    """Whether there is a test split, as far as is known: it was evaluated on, or stands in a folder of `prepare`."""
    folder = Path(script_args.dataset_name)
    prepared = (folder / RECORD).is_file() and any(folder.glob(f"data/{script_args.dataset_test_split}-*.parquet"))
    return args.eval_strategy != "no" or prepared


def report_command(args: CPPOConfig, script_args: CPPOScriptArguments) -> str:
    """`trl-cppo report` for what was trained, with the settings of the training that are not the report's defaults."""
    words = ["trl-cppo", "report", "--model", args.output_dir, "--dataset", script_args.dataset_name or DIGITS]
    if script_args.dataset_name is not None:
        test, train = script_args.dataset_test_split, script_args.dataset_train_split
        words += ["--split", test if _is_held_back(args, script_args) else train]
        words += ["--dataset_config", script_args.dataset_config] if script_args.dataset_config else []
        words += ["--reward_funcs", *(script_args.reward_funcs or ["boxed_accuracy_reward"])]
    usual = CPPOConfig.__dataclass_fields__
    for name in _SHARED_WITH_REPORT:
        value, spec = getattr(args, name), usual[name]
        default = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
        if value != default and value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Where the time of a whole training step goes: CPPO's beside GRPOTrainer's, by parts, on the embedded digits task.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.step            # tables, and benchmarks/results/cost/step.json
    OMP_NUM_THREADS=1 python -m benchmarks.cost.step --json     # the same as one JSON object on stdout
    python -m benchmarks.cost.step --tables --picture           # tables and docs/results/step.svg from that file, without a run

Each arm is a true training (`train()`) from the same warm start with the same seed, hence on the same canvases, first step left out; the
arms take turns, with another seed each time. `digits` are the settings of the embedded run; `reference` adds beta = 0.04 and two updates
a generation batch, so that the reference and the old policy are scored. Seconds and CPU seconds are medians over the steps, and `rest`
is what the parts leave of the median step: reading rows, cutting batches, logging. FLOPs are those of one more training.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_cppo import CPPOConfig, CPPOTrainer, digits
from trl_cppo.commands.plan.counts.counting import flop_mode
from trl_cppo.rewards import think_boxed_format_reward
from trl_cppo.run.card.markdown import table
from trl_cppo.scoring.families import ViewProcessor

from ..lib.command import PICTURES, BenchmarkParser, measure_rows, run_and_print
from ..lib.counting import versions
from ..lib.digits_lab import run_settings
from ..lib.turns import REST, Stopwatch, take_turns
from .pictures import STEP_ARMS as ARMS
from .pictures import STEP_PARTS as PARTS
from .pictures import draw_step

CASES: dict[str, dict[str, Any]] = {"digits": {}, "reference": {"beta": 0.04, "num_iterations": 2}}
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


class OptimizerTurns(TrainerCallback):
    """Notes the optimizer's part of a step, and where the step ends."""

    def __init__(self, watch: Stopwatch):
        self.watch = watch

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.watch.enter("optimizer")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.watch.leave()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.watch.lap()


class TimedSteps:
    """For a trainer: the parts of its steps, on a stopwatch."""

    def __init__(self, watch: Stopwatch, **kwargs: Any):
        self.watch = watch
        super().__init__(callbacks=[OptimizerTurns(watch)], **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        with self.watch.part(
            "regrouping"
        ):  # shuffling and cutting, and of CPPO bringing rollouts of a prompt together
            return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.watch.part(
            "prompts"
        ):  # what is in no other part: templates and the processor, twice, and advantages
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.watch.part("generation"):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> tuple:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self.watch.part("reference" if model is self.ref_model else "old policy"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.watch.part("rewards"):
            return super()._calculate_rewards(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.watch.part("backward"):  # all that is left of it
            return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.watch.part("forward"):
            return super().compute_loss(*args, **kwargs)

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        with self.watch.part("optimizer"):
            return super()._clip_grad_norm(model)


class TimedViews(ViewProcessor):
    """The image processing of views, on a stopwatch."""

    watch: Stopwatch

    def __call__(self, images: list[Any]) -> dict[str, Any]:
        with self.watch.part("image processing"):
            return super().__call__(images)


class TimedGRPO(TimedSteps, GRPOTrainer):
    pass


class TimedCPPO(TimedSteps, CPPOTrainer):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.view_processor = TimedViews(self.model, self.processing_class)
        self.view_processor.watch = self.watch

    def _make_views(self, *args: Any) -> list[Any]:
        with self.watch.part("transforms"):
            return super()._make_views(*args)


def train(arm: str, settings: dict[str, Any], watch: Stopwatch, folder: str) -> None:
    """One training of an arm, a lap a step."""
    settings = settings | {"output_dir": folder}
    if arm == "grpo":
        ids = digits.model.token_ids()  # which CPPOTrainer does not sample either
        banned = [ids["image_token_id"], ids["video_token_id"]]
        del settings["cpl_coef"]
        trainer, args = TimedGRPO, GRPOConfig(**settings, generation_kwargs={"suppress_tokens": banned})
    else:
        share = {} if arm == "cppo" else {"share_prefix": False}
        trainer, args = TimedCPPO, CPPOConfig(**settings, **share)
    prompts = settings["per_device_train_batch_size"] // settings["num_generations"] * settings["max_steps"]
    trainer(
        watch=watch, model=str(digits.warm_start(seed=0)), args=args,
        reward_funcs=[digits.sum_reward, think_boxed_format_reward],
        train_dataset=digits.make_dataset("rl", prompts, seed=settings["seed"]),
    ).train()  # fmt: skip


def cycles(laps: list[dict[str, dict[str, float]]], length: int) -> list[dict[str, dict[str, float]]]:
    """Means over the steps of each generation batch, without the first batch, which warms up."""
    groups = [laps[start : start + length] for start in range(length, len(laps), length)]
    clocks = next(iter(laps[0].values()))
    return [
        {
            part: {clock: sum(lap.get(part, {}).get(clock, 0) for lap in group) / length for clock in clocks}
            for part in {part for lap in group for part in lap}
        }
        for group in groups
    ]


def summary(steps: list[dict[str, dict[str, float]]], clock: str) -> dict[str, float]:
    """The median step and the medians of its parts; the rest is what these leave of it."""
    step = statistics.median(sum(part[clock] for part in parts.values()) for parts in steps)
    found = {part: statistics.median(parts.get(part, {}).get(clock, 0) for parts in steps) for part in PARTS}
    return {"step": step, **found, REST: step - sum(found.values())}


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one case."""
    changes = CASES[case] | {"per_device_train_batch_size": options.rows}
    length = changes.get("num_iterations", 1)
    steps: dict[str, list[Any]] = {arm: [] for arm in ARMS}

    def train_arm(arm: str, seed: int, batches: int, clocks: dict[str, Any]) -> list[Any]:
        watch = Stopwatch(clocks)
        with tempfile.TemporaryDirectory() as folder:
            train(arm, run_settings(**changes, seed=seed, max_steps=(1 + batches) * length), watch, folder)
        return cycles(watch.laps, length)

    take_turns(
        lambda arm: steps[arm].append(train_arm(arm, len(steps[arm]), options.steps, CLOCKS)),
        list(ARMS),
        options.repeats,
    )
    row: dict[str, Any] = {"case": case, "settings": CASES[case], "arms": {}}
    for arm in ARMS:
        found = [step for turn in steps[arm] for step in turn]
        row["arms"][arm] = {clock: rounded(summary(found, clock)) for clock in CLOCKS}
        with flop_mode() as mode:
            [counted] = train_arm(arm, 0, 1, {"flops": mode.get_total_flops})
        row["arms"][arm]["flops"] = {part: round(value) for part, value in summary([counted], "flops").items()}
    for clock in CLOCKS:
        row[f"{clock}_ratio"] = rounded({arm: turn_ratio(steps, arm, clock) for arm in ARMS if arm != "grpo"})
    return row


def turn_ratio(steps: dict[str, list[Any]], arm: str, clock: str) -> float:
    """The arm's step over GRPOTrainer's: the median over the turns, each a pair of trainings on the same canvases."""
    totals = {
        name: [summary(turn, clock)["step"] for turn in turns]
        for name, turns in steps.items()
        if name in (arm, "grpo")
    }
    return statistics.median(own / grpo for own, grpo in zip(totals[arm], totals["grpo"], strict=True))


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}


def tables(report: dict[str, Any]) -> str:
    """Markdown."""
    return "\n\n".join(f"`{row['case']}`:\n\n{case_table(row)}" for row in report["rows"])


def case_table(row: dict[str, Any]) -> str:
    """Processor seconds, which other processes of the machine disturb less than the clock's; FLOPs over GRPOTrainer's step."""
    arms, whole = row["arms"], row["arms"]["grpo"]["flops"]["step"]

    def line(name: str, part: str) -> list[str]:
        seconds = [f"{arm['cpu_seconds'][part]:.3f}" for arm in arms.values()]
        share = arms["cppo"]["cpu_seconds"][part] / arms["cppo"]["cpu_seconds"]["step"]
        return [name, *seconds, f"{share:.1%}", *(f"{arm['flops'][part] / whole:.2f}" for arm in arms.values())]

    lines = [line(part, part) for part in (*PARTS, REST) if any(arm["cpu_seconds"][part] for arm in arms.values())]
    lines.append(line("**whole step**", "step"))
    ratios = [f"{ratio:.2f}" for ratio in row["cpu_seconds_ratio"].values()]
    lines.append(["over GRPOTrainer's, median of the turns", "", *ratios, *[""] * 4])
    head = ["part, CPU seconds", *ARMS.values(), "share of the shared prefix's", *(f"FLOPs: {arm}" for arm in ARMS)]
    return table(lines, head)


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = ("rows", "steps", "repeats")
    head = {"settings": {name: getattr(options, name) for name in names}, "versions": versions()}
    return measure_rows(options, head, [lambda case=case: measure(case, options) for case in CASES])


def main() -> None:
    parser = BenchmarkParser("cost.step", __doc__, smoke="8 rows, one step, one turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    parser.add_argument("--rows", type=int, default=256, help="rollouts of a step, eight a prompt")
    parser.add_argument("--steps", type=int, default=4, help="generation batches of each training")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each arm")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.steps, options.repeats = 8, 1, 1
    if not parser.show(options, tables, lambda report: draw_step(report, PICTURES / "step.svg")):
        run_and_print(options, run, tables)


if __name__ == "__main__":
    main()

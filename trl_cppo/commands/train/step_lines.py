# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A line every few steps, for whoever watches a training; the whole dictionary goes to the trackers and into `metrics.json`."""

import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from ...run.card import Hardware
from ...run.card.held_out import wilson_interval
from ...run.card.markdown import is_number
from ...trainer import CPPOTrainer
from .sampling import PATIENCE, SamplingBar

_FEW = 4  # lines

Logs = dict[str, Any]


class StepLines(TrainerCallback):
    """
    Prints, on the main process, the mean reward since the line before and the time left, and each held-out accuracy that was
    measured.

    Args:
        hardware ([`~trl_cppo.run.card.Hardware`]): which the first line names.
        every (`int`, *optional*, defaults to `1`): steps from a line to the next at least, where TRL logs more often; a run that would
            show fewer than four lines shows one a log.
        clock (`Callable[[], float]`, *optional*): seconds.
    """

    def __init__(self, hardware: Hardware, every: int = 1, clock: Callable[[], float] = time.monotonic):
        self.hardware = hardware
        self.every = every
        self.clock = clock
        self.evaluation: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._main = state.is_world_process_zero
        self._rewards: list[float] = []  # since the last line
        self._pace: tuple[float, int] | None = None  # when the first step of this call had ended, and which it was
        self._told = {entry["step"] for entry in _measured(state) if entry["step"] != state.global_step}
        few = state.max_steps < _FEW * self.every
        self._steps = state.logging_steps * -(-(1 if few else self.every) // state.logging_steps)
        self._say(f"Training on {on_what(self.hardware)}. {self._how_often(args)}; all metrics go into metrics.json.")
        if self._news(state):
            self._say(f"{_place(state)}  {self._held_out(state)}")

    def on_step_end(self, args, state, control, **kwargs):
        if self._pace is None:  # a first step takes longer, for what is compiled in it
            self._pace = self.clock(), state.global_step
        if self._news(state) and not control.should_log:
            self._say(f"{_place(state)}  {self._held_out(state)}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_reward" in logs:
            self._say(f"{_place(state)}  evaluation: reward {_mean([logs['eval_reward']])}")
        if "reward" not in logs:
            return
        self._rewards.append(logs["reward"])
        by_step = args.logging_strategy == "steps" and state.global_step < state.max_steps
        if not by_step or state.global_step % self._steps == 0 or self._news(state):
            parts = [_place(state), f"reward {_mean(self._rewards)}", self._held_out(state), self._time_left(state)]
            self._say("  ".join(part for part in parts if part))
            self._rewards = []

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.evaluation is None:
            off = args.disable_tqdm or not state.is_world_process_zero
            total = None if eval_dataloader is None else len(eval_dataloader)
            self.evaluation = tqdm(total=total, desc="evaluation", delay=PATIENCE, leave=False, disable=off)
        self.evaluation.update()

    def on_evaluate(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """A bar that is left open, by a run that fails, would be drawn anew behind its error."""
        if self.evaluation is not None:
            self.evaluation.close()
        self.evaluation = None

    def _say(self, line: str) -> None:
        if self._main:
            print(line, flush=True)

    def _news(self, state: TrainerState) -> list[Logs]:
        return [entry for entry in _measured(state) if entry["step"] not in self._told]

    def _held_out(self, state: TrainerState) -> str:
        """What was measured since the last line."""
        news = self._news(state)
        self._told |= {entry["step"] for entry in news}
        return "  ".join(f"held-out accuracy {share_text(entry)}" for entry in news)

    def _time_left(self, state: TrainerState) -> str:
        begin, first = self._pace or (0.0, state.global_step)
        if not first < state.global_step < state.max_steps:
            return ""
        left = (self.clock() - begin) / (state.global_step - first) * (state.max_steps - state.global_step)
        return f"about {duration(left)} left"

    def _how_often(self, args: Any) -> str:
        if args.logging_strategy == "steps":
            return (
                "A line every step"
                if self._steps == 1
                else f"A line every {self._steps} steps, with their mean reward"
            )
        return "A line every epoch" if args.logging_strategy == "epoch" else "No line a step (logging_strategy is no)"


def _measured(state: TrainerState) -> list[Logs]:
    return [entry for entry in state.log_history if "held_out_accuracy" in entry]


def _place(state: TrainerState) -> str:
    return f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"


def _mean(rewards: list[float | None]) -> str:
    """A dash where there was nothing to average."""
    values = [value for value in rewards if is_number(value)]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def share_text(entry: Logs) -> str:
    """A held-out accuracy with its 95 % interval, if the log says of how many."""
    share, questions = entry["held_out_accuracy"], entry.get("held_out_questions")
    if not questions:
        return f"{share:.3f}"
    low, high = wilson_interval(share, questions)
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def on_what(hardware: Hardware) -> str:
    count = hardware.num_processes
    return hardware.device if count == 1 else f"{hardware.device}, {count} processes"


def duration(seconds: float) -> str:
    """In words, no finer than an estimate is."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def show_lines(trainer: CPPOTrainer, of_steps: bool = True, every: int = 1) -> StepLines:
    """Lines, so many steps apart at least, unless there will be no step, and a bar of long generations, in the place of transformers' bar and printed dictionaries."""
    for shown in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(shown)
    lines = StepLines(Hardware.of(trainer.accelerator), every)
    if of_steps:
        trainer.add_callback(lines)
    trainer.add_callback(SamplingBar())
    return lines

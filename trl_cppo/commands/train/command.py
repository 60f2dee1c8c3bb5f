# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Train a vision-language model with CPPO: `trl-cppo train`."""

import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path

import yaml
from transformers import ProgressCallback

from ...run.card.markdown import is_hub_id
from ...run.card.plotting import metric_history
from ...trainer import CPPOTrainer
from ..line import is_ours, leave, stop
from .arguments import is_embedded, parse
from .dry_run import DryRunTrainer
from .job import digits_job, job_from_arguments, make_trainer


def write_metrics(trainer: CPPOTrainer) -> None:
    """`metrics.json` into the output folder. No clock is in it: equal runs give equal files."""
    args = trainer.args
    history = metric_history(trainer.state.log_history)
    settings = ["seed", "max_steps", "learning_rate", "num_generations", "cpl_coef", "cpl_temperature"]
    settings += ["cpl_divergence", "cpl_reduction", "perception_token_ratio", "perception_score", "gate_by_advantage"]
    settings += [
        "beta",
        "min_entropy_shift",
        "cpl_max_gradient_ratio",
        "information_preserving",
        "information_removing",
        "max_pixels",
        "min_pixels",
    ]
    report = {
        "steps": trainer.state.global_step,
        "settings": {name: getattr(args, name) for name in settings},
        "history": history,
    }
    if "held_out_accuracy" in history:
        values = [value for _, value in history["held_out_accuracy"]]
        report["held_out_accuracy"] = {"before": values[0], "after": values[-1]}
    output = Path(args.output_dir)
    (output / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")


def show_messages() -> None:
    """What the package tells of a run besides warnings, such as the tokens of the longest prompt: once, on stderr."""
    ours = logging.getLogger("trl_cppo")
    if os.environ.get("RANK", "0") == "0" and not ours.handlers:
        ours.setLevel(logging.INFO)
        ours.addHandler(logging.StreamHandler())


def close_bars(trainer: CPPOTrainer) -> None:
    """The progress bar of a run that has failed would be drawn anew behind its error, when the interpreter winds up."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            for bar in (callback.training_bar, callback.prediction_bar):
                if bar is not None:
                    bar.close()


def main(arguments: list[str], program: str = "trl-cppo train") -> None:
    """Train as the command line's arguments say."""
    show_messages()
    try:
        script_args, training_args, model_args = parse(arguments, program)
        checkpoint = training_args.resume_from_checkpoint or ""
        if checkpoint.lower() == "true":  # the last complete one in the output folder
            training_args.resume_from_checkpoint = True
        elif checkpoint and not Path(checkpoint).is_dir():
            raise FileNotFoundError(f"--resume_from_checkpoint: there is no folder {checkpoint}.")
        if is_embedded(script_args, model_args):
            job = digits_job(script_args, training_args)
        else:
            job = job_from_arguments(script_args, training_args, model_args)
        trainer = make_trainer(job, training_args, model_args, DryRunTrainer if script_args.dry_run else CPPOTrainer)
        trainer.check_data()
    except (ValueError, OSError, ImportError, AttributeError, NotImplementedError, yaml.YAMLError) as error:
        stop(program, error)
    trainer.card_example = job.card_example
    if is_hub_id(script_args.dataset_name):
        trainer.card_dataset = script_args.dataset_name
    try:
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    except (ValueError, OSError) as error:
        if not is_ours(error):
            raise
        stop(program, error)
    finally:
        close_bars(trainer)

    if script_args.dry_run:
        end(trainer)
        return
    trainer.save_model(training_args.output_dir)
    if trainer.accelerator.is_main_process:
        write_metrics(trainer)
    shown = "metrics.json and training.png"
    if find_spec("matplotlib") is None:
        shown = 'metrics.json (no training.png: it needs matplotlib, pip install "trl-cppo[digits]")'
    trainer.accelerator.print(f"Model, card, {shown} are in {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub()
    end(trainer)


def end(trainer: CPPOTrainer) -> None:
    """Of a run that went well."""
    trainer.accelerator.wait_for_everyone()
    trainer.end()
    leave(trainer.accelerator.num_processes, trainer.accelerator.device.type)

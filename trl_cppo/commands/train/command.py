# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Train a vision-language model with CPPO: `trl-cppo train`."""

import logging
import os
from pathlib import Path

import yaml
from transformers.utils.logging import disable_progress_bar

from ...run.card.markdown import is_hub_id
from ...trainer import CPPOTrainer
from ..line import is_ours, leave, stop
from .arguments import CPPOScriptArguments, is_embedded, parse
from .dry_run import DryRunTrainer
from .folders import OTHER_PARAMETERS, check_output_folder, checkpoint_to_go_on_from, end_interrupted
from .job import digits_job, job_from_arguments, make_trainer
from .outcome import closing_lines, write_metrics
from .step_lines import show_lines

FLAGS_THAT_HELP = {  # by words of errors of libraries, which name none
    "assign use_cpu": "--use_cpu",  # bf16 is the default
    "specify `target_modules`": "--lora_on language_model (vision_tower, all), or names of modules, --lora_target_modules",
    "16.enabled=": "--bf16 and --fp16 (true or false), as the launcher's mixed_precision says",  # DeepSpeed's, when training begins
}


def add_flags_that_help(error: Exception) -> bool:
    """Add a note on each flag that mends the error; whether there is one."""
    helpful = [flags for words, flags in FLAGS_THAT_HELP.items() if words in str(error)]
    for flags in helpful:
        error.add_note(f"On the command line: {flags}.")
    return bool(helpful)


def show_messages() -> None:
    """What the package tells of a run besides warnings, such as the tokens of the longest prompt: once, on stderr."""
    ours = logging.getLogger("trl_cppo")
    if os.environ.get("RANK", "0") == "0" and not ours.handlers:
        ours.setLevel(logging.INFO)
        ours.addHandler(logging.StreamHandler())


def set_up(
    arguments: list[str], program: str, trainer_class: type[CPPOTrainer] = CPPOTrainer
) -> tuple[CPPOTrainer, CPPOScriptArguments, str | bool | None]:
    """The trainer that the command line's arguments describe, what is not its own of them, and the checkpoint to go on from."""
    script_args, training_args, model_args = parse(arguments, program)
    checkpoint = checkpoint_to_go_on_from(training_args.resume_from_checkpoint)
    if 0 < training_args.max_steps < training_args.logging_steps:
        training_args.logging_steps = 1  # a short run is tried to see something
    if is_embedded(script_args, model_args):
        disable_progress_bar()  # of loading a model that is read in no time
        job = digits_job(script_args, training_args)
    else:
        job = job_from_arguments(script_args, training_args, model_args)
    trainer = make_trainer(job, training_args, model_args, DryRunTrainer if script_args.dry_run else trainer_class)
    disable_progress_bar()  # one for each checkpoint's weights would stand between the lines
    check_output_folder(trainer, goes_on=checkpoint is not None)
    trainer.card_example, trainer.card_held_out, trainer.card_base = job.card_example, job.card_held_out, job.card_base
    if is_hub_id(script_args.dataset_name):
        trainer.card_dataset = script_args.dataset_name
    elif script_args.dataset_name and Path(script_args.dataset_name).is_dir():
        trainer.card_local_data = Path(script_args.dataset_name).resolve().name
    return trainer, script_args, checkpoint


def save(trainer: CPPOTrainer) -> None:
    trainer.save_model(trainer.args.output_dir)
    if trainer.accelerator.is_main_process:
        write_metrics(trainer)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def main(
    arguments: list[str], program: str = "trl-cppo train", trainer_class: type[CPPOTrainer] = CPPOTrainer
) -> None:
    """Train as the command line's arguments say, with CPPOTrainer or a class of it; a dry run is CPPOTrainer's."""
    show_messages()
    try:
        trainer, script_args, checkpoint = set_up(arguments, program, trainer_class)
    except (ValueError, OSError, ImportError, AttributeError, NotImplementedError, yaml.YAMLError) as error:
        add_flags_that_help(error)
        stop(program, error)
    lines = show_lines(trainer, of_steps=not script_args.dry_run, every=script_args.line_every)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (ValueError, OSError) as error:
        if str(error).startswith("loaded state dict"):  # torch's optimizers
            error.add_note(OTHER_PARAMETERS)
        elif not (add_flags_that_help(error) or is_ours(error)):
            raise
        stop(program, error)
    except KeyboardInterrupt:
        end_interrupted(trainer, program)
    finally:
        lines.close()
    if not script_args.dry_run:
        save(trainer)
    trainer.accelerator.wait_for_everyone()
    if not script_args.dry_run:
        trainer.accelerator.print("\n".join(closing_lines(trainer, script_args)))
    trainer.end()
    leave(trainer.accelerator.num_processes, trainer.accelerator.device.type)

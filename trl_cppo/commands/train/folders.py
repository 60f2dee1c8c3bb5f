# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run, in which another run may have left something; and the checkpoint that a run goes on from."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

from accelerate.utils import is_peft_model
from transformers.trainer_utils import sort_checkpoints

from ...run.checkpoints import is_complete, last_complete_checkpoint
from ...trainer import CPPOTrainer

logger = logging.getLogger(__name__)
OTHER_PARAMETERS = (
    "The optimizer in the checkpoint is of other parameters than this run trains: give the flags of the run that wrote it "
    "(--freeze, --use_peft and its like, --lora_on, --vision_tower_learning_rate)."
)


def checkpoint_to_go_on_from(given: str | None) -> str | bool | None:
    """
    What `--resume_from_checkpoint` means: a folder, or `True` for the last complete one in the output folder.

    Raises:
        `FileNotFoundError`, `ValueError`: if there is no such folder, or it is no checkpoint but has some.
    """
    if not given:
        return None
    if given.lower() == "true":
        return True
    folder = Path(given)
    if not folder.is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint: there is no folder {given}.")
    if not is_complete(folder) and sort_checkpoints(given):
        last = last_complete_checkpoint(given)
        raise ValueError(f"--resume_from_checkpoint: {given} is no checkpoint. Its last one is {last}: name that.")
    return given


def check_output_folder(trainer: CPPOTrainer, goes_on: bool) -> None:
    """
    Say what an earlier run has left in the output folder.

    Raises:
        `ValueError`: if it is a model of the other kind. Beside whole weights an adapter would be read as theirs.
    """
    folder = Path(trainer.args.output_dir)
    makes_adapter = is_peft_model(trainer.accelerator.unwrap_model(trainer.model))
    left = [*folder.glob("model*.safetensors*")] if makes_adapter else [*folder.glob("adapter_config.json")]
    if left:
        kinds = ("an adapter", "whole weights") if makes_adapter else ("whole weights", "an adapter")
        raise ValueError(
            f"--output_dir {folder} holds {kinds[1]} of an earlier run ({left[0].name}), beside which those of this one, "
            f"{kinds[0]}, would be taken for one model. Name another --output_dir."
        )
    earlier = sort_checkpoints(str(folder)) if folder.is_dir() else []
    if earlier and not goes_on and trainer.is_world_process_zero():
        logger.warning(
            f"{folder} holds checkpoints of an earlier run, the last at {Path(earlier[-1]).name}. This run starts anew and writes over those "
            "of its own steps: --resume_from_checkpoint true goes on with that run, another --output_dir keeps it."
        )


def end_interrupted(trainer: CPPOTrainer, program: str) -> NoReturn:
    """After Ctrl-C: what is kept, and how to go on."""
    folder = trainer.args.output_dir
    kept = [path for path in sort_checkpoints(folder) if is_complete(path)] if Path(folder).is_dir() else []
    told = (
        f"The last checkpoint is {kept[-1]}: the same command with --resume_from_checkpoint true goes on from there."
        if kept
        else f"No checkpoint was written: one is every {trainer.state.save_steps} steps (--save_steps)."
    )
    if trainer.is_world_process_zero():
        print(f"{program}: stopped at step {trainer.state.global_step}. {told}", file=sys.stderr)
    sys.exit(130)  # as shells have it for Ctrl-C

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a folder of a checkpoint holds, and what is missing in it."""

from pathlib import Path

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints


def missing_state(folder: Path, process: int, processes: int, deepspeed: bool) -> list[str]:
    """What a process will not find in a checkpoint, besides weights; DeepSpeed checks its own."""
    missing = []
    optimizer = [*folder.glob(OPTIMIZER_NAME), *folder.glob(f"{OPTIMIZER_NAME_BIN.partition('.')[0]}*")]
    if not deepspeed and not (optimizer and (folder / SCHEDULER_NAME).is_file()):  # Trainer loads both or none
        missing.append("optimizer and the learning rate's schedule")
    if not (folder / ("rng_state.pth" if processes == 1 else f"rng_state_{process}.pth")).is_file():
        missing.append("random number generators")
    return missing


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written whole: Trainer writes its state last, but for what it sends to the Hub."""
    try:
        TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):  # no file; half a file; half a file that is JSON
        return False
    return True


def last_complete_checkpoint(output_dir: str) -> str:
    """
    The latest checkpoint of a folder that a kill or a full disk did not cut short.

    Raises:
        `ValueError`: if there is none, or another run, of fewer steps so far, wrote its own into the same folder since.
    """
    complete = [folder for folder in sort_checkpoints(output_dir) if is_complete(folder)]
    if not complete:
        raise ValueError(f"{output_dir} holds no complete checkpoint to resume from.")
    newest = max(complete, key=lambda folder: (Path(folder) / TRAINER_STATE_NAME).stat().st_mtime_ns)
    if newest != complete[-1]:
        raise ValueError(
            f"{complete[-1]} is older than {newest}, so they are of two runs. Name the checkpoint to resume from, or delete those of "
            "the other run."
        )
    return complete[-1]

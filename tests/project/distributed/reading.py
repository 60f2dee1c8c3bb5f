# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Trains on one backend, then reads its checkpoints back in every way, and says on which the weights are those that were written.

    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 reading.py FOLDER '{"name": "full", "backend": "zero3", "save": true}'

FOLDER gets reading.json: for each way `"same"`, the names of weights that differ, or the error. A collective program.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import is_peft_model
from transformers import TrainerCallback
from worker import Run, check_backend, forget_backend, make_trainer, whole_weights

from trl_cppo import CPPOTrainer
from trl_cppo.run.weights import load_model

STEP = 1  # of the checkpoint that is read; the run goes on to a third step


class Watch(TrainerCallback):
    """The whole weights as each checkpoint is written, and as training begins."""

    def __init__(self, run: Run):
        self.run = run
        self.saved: dict[int, dict[str, torch.Tensor]] = {}
        self.first: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.first = whole_weights(model, self.run)

    def on_save(self, args, state, control, model, **kwargs):
        self.saved[state.global_step] = whole_weights(model, self.run)


def compare(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    if weights.keys() != expected.keys():
        return f"other names: {sorted(weights.keys() ^ expected.keys())[:3]}"
    differ = [name for name, value in expected.items() if not torch.equal(weights[name].cpu(), value.cpu())]
    return f"{len(differ)} differ: {differ[:3]}" if differ else "same"


def outcome(read: Callable[[], dict[str, torch.Tensor]], expected: dict[str, torch.Tensor]) -> str:
    try:
        return compare(read(), expected)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def watched(run: Run, folder: Path) -> tuple[CPPOTrainer, Watch]:
    trainer, watch = make_trainer(run, folder), Watch(run)
    trainer.add_callback(watch)
    return trainer, watch


def resumed(run: Run, folder: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    forget_backend()
    trainer, watch = watched(run, folder)
    trainer.args.save_strategy = "no"
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return watch.first


def best(trainer: CPPOTrainer, run: Run, checkpoint: Path) -> dict[str, torch.Tensor]:
    trainer.state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()
    return whole_weights(trainer.model, run)


def damaged(checkpoint: Path, name: str, damage: Callable[[Path], None]) -> Path:
    """A copy of a checkpoint, which the first process damages."""
    copy = checkpoint.with_name(name)
    if dist.get_rank() == 0:
        shutil.copytree(checkpoint, copy)
        damage(copy)
    dist.barrier()
    return copy


def without_a_trained_weight(checkpoint: Path) -> None:
    for file in checkpoint.glob("global_step*/*model_states.pt"):
        content = torch.load(file, weights_only=False)
        del content["module"][next(name for name in content["module"] if "lora" in name or "q_proj" in name)]
        torch.save(content, file)


def without_state(checkpoint: Path) -> None:
    """What `save_only_model` leaves out."""
    names = ("global_step*", "*fsdp*", "optimizer*", "scheduler.pt", "rng_state*")
    for path in [path for name in names for path in checkpoint.glob(name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def without_optimizer_states(checkpoint: Path) -> None:
    for path in checkpoint.glob("global_step*/*optim_states.pt"):
        path.unlink()


def main() -> None:
    folder, run = Path(sys.argv[1]), Run(**json.loads(sys.argv[2]))
    trainer, watch = watched(run, folder)
    trainer.train()
    check_backend(trainer, run)
    checkpoint, expected = folder / "trainer" / f"checkpoint-{STEP}", watch.saved[STEP]
    results = {"moved": compare(watch.saved[3], expected)}
    results["best"] = outcome(lambda: best(trainer, run, checkpoint), expected)
    damages = {"state": without_state}
    if run.backend.startswith("zero"):
        damages |= {"weight": without_a_trained_weight, "optimizer": without_optimizer_states}
    copies = {name: damaged(checkpoint, f"without-{name}", damage) for name, damage in damages.items()}
    for name, copy in copies.items():
        results[f"best without {name}"] = outcome(lambda copy=copy: best(trainer, run, copy), expected)
    results["resumed"] = outcome(lambda: resumed(run, folder, checkpoint), expected)
    for name, copy in copies.items():
        results[f"resumed without {name}"] = outcome(lambda copy=copy: resumed(run, folder, copy), expected)
    forget_backend()
    if dist.get_rank() == 0 and (checkpoint / "model.safetensors").exists():
        results["evaluation"] = outcome(lambda: dict(load_model(checkpoint).named_parameters()), expected)
    if dist.get_rank() == 0:
        results["adapters"] = is_peft_model(trainer.model)
        (folder / "reading.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

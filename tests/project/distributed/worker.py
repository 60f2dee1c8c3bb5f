# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
r"""
Trains a tiny model, by default a Qwen2.5-VL, on fixed rollouts, once for each run asked for, and writes what came out.

    python worker.py FOLDER '[{"name": "full"}]'
    DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 worker.py FOLDER '[{"name": "zero3", "backend": "zero3"}]'

The global batch is the same whatever the number of processes. Several runs share one start-up, which costs more than
they do. FOLDER gets, as each run ends: NAME.json (the logged metrics of every process) and NAME.pt (whole weights).
"""

import gc
import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import deepspeed
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, gather_object
from combinations import cppo_settings, grpo_settings, prepare_weights
from conftest import hash_reward, make_config, make_rows
from deepspeed.ops.adam import DeepSpeedCPUAdam
from fixed_rollouts import FixedCPPOTrainer, FixedGRPOTrainer
from peft import LoraConfig
from tiny_models import build
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText, PreTrainedModel, TrainerCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import GRPOConfig

from trl_cppo import CPPOConfig, CPPOTrainer

GRPO_FIELDS = {field.name for field in fields(GRPOConfig)}
GROUP = 4  # rollouts of a prompt
PROMPTS = 4  # a step: with two processes, two on each
STEPS = 3
# Images of each prompt, one line a step; the left half is on the first process, the right half on the second.
IMAGES = {
    "mixed": [[2, 0, 1, 3], [1, 0, 0, 2], [3, 1, 2, 1]],
    "text_only_rank": [[2, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]],
}


@dataclass
class Run:
    """One training. `backend`: ddp (whatever the number of processes), zero1, zero2, zero3, fsdp2."""

    name: str
    backend: str = "ddp"
    scenario: str = "mixed"
    family: str = "qwen2_5_vl"
    lora: bool = False
    lora_on: list[str] | None = None
    freeze: list[str] | None = None
    tower_rate: float | None = None
    checkpointing: str | None = None  # "reentrant" or "non_reentrant"
    accumulation: int = 1
    iterations: int = 1  # more: the old policy is scored too
    zero3_init: bool = False
    offload: bool = False
    save: bool = False  # a checkpoint each step
    kill_at: int | None = None  # the step before which every process kills itself
    resume: bool = False
    divergence: str = "k3"
    bound: float | None = None
    budget: int | None = None
    share_prefix: bool = True
    row: dict[str, Any] | None = None  # of a covering array, see combinations.py: settings on top of all these
    plain: bool = False  # prompts stay together, but nothing is packed
    grpo: bool = False  # trained by GRPOTrainer
    optim: str = "sgd"  # unlike Adam's, its steps show a wrongly scaled gradient

    @property
    def images(self) -> list[int]:
        if self.scenario == "all" or self.grpo:  # GRPOTrainer fails on text-only rows
            return [1] * (PROMPTS * STEPS)
        return sum(IMAGES.get(self.scenario, IMAGES["mixed"]), [])


class ScenarioTrainer(FixedCPPOTrainer):
    """Fixed rollouts, which in some scenarios earn nothing, or are masked, on one process."""

    scenario = "mixed"

    def completion(self, step: int, row: int) -> list[int]:
        second_half = row >= GROUP * PROMPTS // 2
        if self.scenario == "no_gated_rank" and second_half == (step != 1):
            row = 0  # equal completions, equal rewards, no advantage
        completion = super().completion(step, row)
        truncated = self.scenario == "masked_rank" and second_half == (step != 1)
        return completion[:-1] if truncated else completion


class Kill(TrainerCallback):
    """Dies without a chance to clean up, as a job does whose machine is taken away."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def deepspeed_config(run: Run) -> dict[str, Any]:
    zero = {"stage": int(run.backend[-1])}
    if run.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if run.backend == "zero3":
        zero["stage3_param_persistence_threshold"] = 0  # else a model this small is not sharded
    batch = dict.fromkeys(
        ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"], "auto"
    )
    return {**batch, "gradient_clipping": "auto", "zero_optimization": zero}


def backend_settings(run: Run) -> dict[str, Any]:
    if run.backend.startswith("zero"):
        return {"deepspeed": deepspeed_config(run)}
    if run.backend == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
    return {}


def make_args(run: Run, folder: Path) -> CPPOConfig:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    checkpointing = {}
    if run.checkpointing:
        kwargs = {"use_reentrant": run.checkpointing == "reentrant"}
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
        if run.backend == "ddp" and run.lora:
            # transformers turns the search on for adapters, and DDP then fails on re-entrant checkpointing: "Expected to
            # mark a variable ready only once". GRPOTrainer needs the same setting.
            checkpointing["ddp_find_unused_parameters"] = False
    settings = dict(
        max_steps=STEPS,
        per_device_train_batch_size=GROUP * PROMPTS // processes // run.accumulation,
        gradient_accumulation_steps=run.accumulation,
        num_generations=GROUP,
        num_iterations=run.iterations,
        mask_truncated_completions=run.scenario == "masked_rank",
        shuffle_dataset=False,
        learning_rate=0.01 if run.optim == "sgd" else 1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1e6,  # clipping would hide a wrong scale
        optim=run.optim,
        cpl_coef=1.0,
        cpl_divergence=run.divergence,
        cpl_max_gradient_ratio=run.bound,
        cpl_rollouts_per_prompt=run.budget,
        share_prefix=run.share_prefix,
        freeze=run.freeze,
        lora_on=run.lora_on,
        vision_tower_learning_rate=run.tower_rate,
        save_strategy="steps" if run.save else "no",
        save_steps=1,
        **checkpointing,
        **backend_settings(run),
    )
    if run.row is not None:
        settings |= row_settings(run, GROUP * PROMPTS // processes)
    if run.grpo:
        settings = {name: value for name, value in settings.items() if name in GRPO_FIELDS}
    return make_config(folder / "trainer", GRPOConfig if run.grpo else CPPOConfig, **settings)


def row_settings(run: Run, rows_of_a_step: int) -> dict[str, Any]:
    settings = grpo_settings(run.row, rows_of_a_step, GROUP) | cppo_settings(run.row)
    settings["max_steps"] = 2
    if run.backend == "ddp" and run.row["weights"].startswith("lora"):
        settings["ddp_find_unused_parameters"] = False  # see make_args; both kinds of checkpointing take it
    return settings


def load_sharded(model: PreTrainedModel, args: CPPOConfig, folder: Path) -> PreTrainedModel:
    """The same model through from_pretrained, which shards while it loads once a ZeRO-3 configuration exists."""
    deepspeed.init_distributed("gloo")  # `accelerate launch` would have; else it shards for one process
    sharded = from_folder(model, args, folder)
    if not all(hasattr(parameter, "ds_id") for parameter in sharded.parameters()):
        raise AssertionError("zero3_init did not shard the model while loading it")
    return sharded


def from_folder(model: PreTrainedModel, args: CPPOConfig, folder: Path) -> PreTrainedModel:
    with args.main_process_first():
        if args.process_index == 0:
            model.save_pretrained(folder / "model")
    return AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)


def whole_weights(model: torch.nn.Module, run: Run) -> dict[str, torch.Tensor]:
    """Every parameter, gathered; on all processes, as gathering is a collective operation."""
    gathered = nullcontext()
    if run.backend == "zero3":
        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with gathered:
        return {
            name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
            for name, value in model.named_parameters()
        }


def check_backend(trainer: CPPOTrainer, run: Run) -> None:
    """Refuse to report on a backend that was silently ignored: one process agrees with itself all too well."""
    model = trainer.model_wrapped
    if run.backend.startswith("zero"):
        used = model.zero_optimization_stage() == int(run.backend[-1])
        if run.offload:
            used = used and isinstance(model.optimizer.optimizer, DeepSpeedCPUAdam)
    elif run.backend == "fsdp2":
        used = isinstance(model, FSDPModule) and all(isinstance(value, DTensor) for value in model.parameters())
    else:
        used = not dist.is_initialized() or isinstance(model, DistributedDataParallel)
    checkpointing = trainer.accelerator.unwrap_model(model).is_gradient_checkpointing
    wanted = run.row["checkpointing"] != "none" if run.row else bool(run.checkpointing)
    if not used or checkpointing != wanted:
        raise AssertionError(f"{run} trained as {type(model).__name__}, gradient checkpointing {checkpointing}")


def make_trainer(run: Run, folder: Path) -> CPPOTrainer:
    set_seed(0)
    model, processor = build(run.family)  # before the configuration: ZeRO-3's shards a model as it is built
    args = make_args(run, folder)
    if run.backend == "fsdp2":
        # Accelerate takes FSDP for something of GPUs: on MULTI_CPU it trains with DDP, without a word. FSDP2 itself
        # does not mind; the device stays the CPU.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    if run.zero3_init:
        model = load_sharded(model, args, folder)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if run.lora else None
    if run.row is not None:
        if run.row["reference"] != "none":  # which is loaded from a path
            if run.backend == "zero3":
                deepspeed.init_distributed("gloo")  # as in load_sharded
            model = from_folder(model, args, folder)
        lora = prepare_weights(model, run.row["weights"])
    trainer_class = FixedGRPOTrainer if run.grpo else ScenarioTrainer
    trainer = trainer_class(
        model=model,
        reward_funcs=hash_reward,
        args=args,
        train_dataset=make_rows(run.images),
        processing_class=processor,
        peft_config=lora,
    )
    trainer.scenario = run.scenario
    if run.plain:
        trainer.shared_prefix._row_obstacle = lambda *scoring: "for this test"
    return trainer


def train(run: Run, folder: Path) -> None:
    trainer = make_trainer(run, folder)
    if run.kill_at is not None:
        trainer.add_callback(Kill(run.kill_at))
    trainer.train(resume_from_checkpoint=True if run.resume else None)
    check_backend(trainer, run)
    weights = whole_weights(trainer.model, run)
    logs = gather_object([trainer.logged])
    if trainer.accelerator.is_main_process:
        torch.save(weights, folder / f"{run.name}.pt")
        (folder / f"{run.name}.json").write_text(json.dumps(logs))


def forget_backend() -> None:
    """Accelerate and transformers keep the backend in globals; the next run has its own."""
    gc.collect()
    AcceleratorState._reset_state()
    unset_hf_deepspeed_config()
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]


def main() -> None:
    folder = Path(sys.argv[1])
    gc.freeze()  # each run collects twice, 0.3 s over what was imported
    for settings in json.loads(sys.argv[2]):
        run = Run(**settings)
        try:
            train(run, folder)
        except Exception as error:
            if run.row is None:
                raise
            # A setting that is refused is refused by all processes alike; the other runs go on.
            (folder / f"{run.name}.error").write_text(repr(error))
            traceback.print_exc()
        forget_backend()
    if dist.is_initialized():  # else the interpreter may abort on its way out
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

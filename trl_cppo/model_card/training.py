# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""How a model was trained, as tables of a card: settings, rewards, views, machine, last logged metrics, versions."""

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, is_peft_model
from transformers import Trainer
from trl.trainer.utils import get_callable_name

from ..views import View, get_view
from .text import escape, table

if TYPE_CHECKING:
    from ..trainer import CPPOTrainer

_REDUCTIONS = {
    "sequence": "mean per rollout, then over the gated rollouts of the optimizer window",
    "token": "mean over the perception tokens of a micro-batch",
}

_METRICS = ("reward", "rewards/", "completions/mean_length", "cpl/")  # the beginnings of what a card shows, in order


def _setting(meaning: str, name: str, value: Any, note: str = "") -> tuple[str, str]:
    shown = f"{value:.4g}" if isinstance(value, float) else escape(value)
    return f"{meaning} (`{name}`)", f"{shown}{note}"


def _view_names(views: list[View], configured: list[str]) -> str:
    """The registered names of the views in use; a callable that the user passed goes by its own name."""
    names = [name for name in configured if get_view(name) in views]
    own = [get_callable_name(view) for view in views if view not in [get_view(name) for name in names]]
    return ", ".join(escape(name) for name in names) or ", ".join(
        f"{escape(name)} (the user's own)" for name in dict.fromkeys(own)
    )


def cpl_table(trainer: "CPPOTrainer") -> str:
    """The settings of the Contrastive Perception Loss."""
    args, ratio, maker = trainer.args, trainer.args.perception_token_ratio, trainer._view_maker
    tokens = "every completion token" if ratio is None else f"{ratio:.4g} of those whose entropy rises"
    gate = "positive advantage" if args.gate_by_advantage else "every rollout with an image"
    rows = [
        _setting("weight λ", "cpl_coef", args.cpl_coef),
        _setting("temperature τ", "cpl_temperature", args.cpl_temperature, " nats"),
        _setting("divergence", "cpl_divergence", args.cpl_divergence),
        _setting("perception tokens", "perception_token_ratio", tokens),
        _setting("ranked by", "perception_score", args.perception_score),
        _setting("rollouts with the loss", "gate_by_advantage", gate),
        _setting("averaged", "cpl_reduction", f"{args.cpl_reduction}: {_REDUCTIONS[args.cpl_reduction]}"),
        ("information-preserving views", _view_names(maker.preserving, args.information_preserving)),
        ("information-removing views", _view_names(maker.removing, args.information_removing)),
    ]
    return table(("Contrastive Perception Loss", "value"), rows)


def _batch(trainer: "CPPOTrainer") -> str:
    args, per_prompt = trainer.args, trainer.num_generations
    rollouts = args.per_device_train_batch_size * trainer.accelerator.num_processes * args.gradient_accumulation_steps
    if rollouts % per_prompt:
        return f"{rollouts:,} rollouts, {per_prompt} of each prompt"
    return f"{rollouts:,} rollouts: {rollouts // per_prompt:,} prompts × {per_prompt}"


def _rewards(trainer: "CPPOTrainer") -> str:
    weighted = zip(trainer.reward_weights.tolist(), trainer.reward_func_names, strict=True)
    return " + ".join(f"{weight:.4g} · {escape(name)}" for weight, name in weighted)


def training_table(trainer: "CPPOTrainer") -> str:
    """The settings of GRPO and of the optimizer, as far as they were reached."""
    args, state = trainer.args, trainer.state
    planned = max(state.max_steps, args.max_steps)  # the first is 0 before training, the second -1 if epochs count
    planned = f" of {planned:,} planned" if planned > state.global_step else ""
    rows = [
        ("optimizer steps", f"{state.global_step:,}{planned}"),
        ("epochs", f"{state.epoch or 0:.4g}"),
        ("rollouts per step", _batch(trainer)),
        ("reward", _rewards(trainer)),
        _setting("learning rate", "learning_rate", args.learning_rate),
        _setting("schedule", "lr_scheduler_type", getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        _setting("GRPO loss", "loss_type", args.loss_type),
        _setting("weight of the KL divergence", "beta", args.beta),
        _setting("updates per batch", "num_iterations", args.num_iterations),
        _setting("longest completion", "max_completion_length", args.max_completion_length, " tokens"),
        _setting("sampling temperature", "temperature", args.temperature),
        _setting("seed", "seed", args.seed),
    ]
    if is_peft_model(trainer.model):
        rows.insert(0, ("adapter", _adapter(trainer)))
    return table(("GRPO", "value"), rows)


def _adapter(trainer: Trainer) -> str:
    config = trainer.accelerator.unwrap_model(trainer.model).active_peft_config
    values = [(name, config.to_dict().get(name)) for name in ("r", "lora_alpha", "lora_dropout")]
    method = getattr(config.peft_type, "value", config.peft_type)
    return ", ".join([escape(method), *(f"`{name}` {escape(value)}" for name, value in values if value is not None)])


def adapter_tags(trainer: Trainer, base_model: str | None) -> list[str]:
    """The tags by which the Hub finds adapters, as PEFT writes them, but none with a local path."""
    method = trainer.accelerator.unwrap_model(trainer.model).active_peft_config.peft_type
    tags = [str(getattr(method, "value", method)).lower(), "transformers"]
    return tags if base_model is None else [*tags, f"base_model:adapter:{base_model}"]


def machine_table(trainer: Trainer) -> str:
    """Devices, processes, sharding, precision, and the run time where training has ended in this process."""
    accelerator = trainer.accelerator
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    kind = accelerator.distributed_type
    spread = "" if kind == DistributedType.NO else f", {kind.value}"
    if kind == DistributedType.DEEPSPEED:
        spread = f", DeepSpeed ZeRO stage {accelerator.state.deepspeed_plugin.zero_stage}"
    dtype = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    mixed = accelerator.mixed_precision
    rows = [
        ("device", escape(name)),
        ("processes", f"{accelerator.num_processes}{escape(spread)}"),
        ("precision", f"weights in {dtype}" + ("" if mixed == "no" else f", computation in {escape(mixed)}")),
    ]
    times = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if times:
        rows.append(("time of the last call of `train`", f"{times[-1]:,.0f} s"))
    return table(("Machine", "value"), rows)


def _place(metric: tuple[str, Any]) -> tuple[int, str]:
    name, _ = metric
    return max(place for place, prefix in enumerate(_METRICS) if name.startswith(prefix)), name


def last_metrics(log_history: list[dict[str, Any]]) -> str | None:
    """A table of what was logged last about the rewards and the CPL; `None` where nothing was."""
    last: dict[str, tuple[int, float]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name.startswith(_METRICS) and isinstance(value, int | float) and math.isfinite(value):
                last[name] = entry["step"], value
    rows = [(escape(name), f"{value:.4g}", f"{step:,}") for name, (step, value) in sorted(last.items(), key=_place)]
    return table(("metric", "last logged", "step"), rows) if rows else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # vLLM may run as a server elsewhere
        return None


def framework_versions(trainer: Trainer) -> list[tuple[str, str]]:
    """Name and version of what the training ran on."""
    packages = {
        "trl-cppo": "trl-cppo",
        "TRL": "trl",
        "Transformers": "transformers",
        "PyTorch": "torch",
        "Datasets": "datasets",
        "Tokenizers": "tokenizers",
        "Accelerate": "accelerate",
    }
    if is_peft_model(trainer.model):
        packages["PEFT"] = "peft"
    if trainer.is_deepspeed_enabled:
        packages["DeepSpeed"] = "deepspeed"
    if trainer.args.use_vllm:
        packages["vLLM"] = "vllm"
    return [(name, found) for name, package in packages.items() if (found := _version(package))]

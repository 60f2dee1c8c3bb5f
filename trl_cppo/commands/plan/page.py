# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a plan says."""

import shlex
from pathlib import Path
from typing import Any

from .arguments import GIB, PlanArguments
from .counts.update import UpdateCounts
from .model import count_parameters
from .rows import LOOKED_AT
from .search import Cost, Fit, Planner

NOT_COUNTED = (
    "Not counted, and what the reserve is for: the CUDA context, fragmentation, buffers of the communication, the layers that ZeRO-3 "
    "gathers during the update, the copies that autocast makes of float32 weights, loading. Nor is the time of sampling, which memory sets "
    "and not the peak. Norms are not fused; attention counts in full squares."
)


def gib(size: float) -> str:
    return f"{size / GIB:8.1f} GiB" if abs(size) >= GIB / 20 else f"{size * 1024 / GIB:8.1f} MiB"


def gpus(args: PlanArguments) -> str:
    return "1 GPU" if args.num_gpus == 1 else f"{args.num_gpus} GPUs"


def memory_lines(
    planner: Planner, fit: Fit, without_views: UpdateCounts, other: UpdateCounts, num_views: int
) -> list[str]:
    """
    A line a part, of one GPU.

    Args:
        planner ([`Planner`]): which made `fit`.
        without_views (`UpdateCounts`): of the same micro-batch, as GRPO's.
        other (`UpdateCounts`): of `fit.worst`, with checkpointing where the plan has none, and the other way round.
    """
    args = planner.args
    on, off = (fit.worst, other) if args.gradient_checkpointing else (other, fit.worst)
    views, temporary = fit.worst.saved_bytes - without_views.saved_bytes, fit.worst.peak_bytes - fit.worst.saved_bytes
    more = fit.sampling - fit.worst.peak_bytes - args.vllm_bytes
    parts = [
        ("weights", fit.states.weights),
        *([("reference model", fit.reference)] if fit.reference else []),
        ("gradients", fit.states.gradients),
        ("optimizer (Adam)", fit.states.optimizer),
        (f"activations of {fit.rows} rows, kept for the backward", without_views.saved_bytes),
        (f"those of {num_views} view rows, the most there can be", views),
        ("at the peak besides: head, gradients of activations, temporary", temporary),
        *([("vLLM, which is not asleep", args.vllm_bytes)] if args.vllm_bytes else []),
        *([("more than activations and temporary while sampling", more)] if more > 0 else []),
        (f"kept free ({args.reserve:.0%})", args.reserve * args.gpu_memory * GIB),
    ]
    left = "left" if fit.free >= 0 else "MISSING: IT DOES NOT FIT"
    lines = [f"  {gib(size)}  {name}" for name, size in parts]
    return [
        *lines,
        f"  {gib(abs(fit.free))}  {left}",
        f"  Peak of the update with checkpointing {gib(on.peak_bytes).strip()}, without {gib(off.peak_bytes).strip()}.",
        f"  {sampling_line(planner, fit)}",
    ]


def sampling_line(planner: Planner, fit: Fit) -> str:
    """What is held in the place of activations while completions are sampled."""
    args = planner.args
    tokens = planner.prompt_tokens + args.max_completion_length
    sampled = fit.rows * fit.steps_per_generation
    if not args.use_vllm:
        whole = ", the whole weights" if fit.zero_stage == 3 else ""
        return (
            f"While sampling {gib(fit.sampling).strip()} in place of activations: the KV cache of {sampled} rows at once, "
            f"{gib(sampled * planner.bench.cache_bytes(tokens)).strip()} at its longest, the forward of their prompts{whole}."
        )
    held, share = rollouts_in_vllm(planner), gib(args.vllm_share).strip()
    if held < 1:
        return f"vLLM's {share} DO NOT HOLD the weights and one rollout: --vllm_gpu_memory_utilization must be higher."
    return (
        f"vLLM's {share} hold the weights and the KV cache of {min(held, sampled):,} of {sampled:,} rollouts at once."
    )


def rollouts_in_vllm(planner: Planner) -> int:
    """How many rollouts the KV cache of an engine on each GPU holds at once, beside the weights; negative: not even these."""
    args = planner.args
    weights = count_parameters(planner.bench.model)[0] * args.torch_dtype.itemsize
    tokens = planner.prompt_tokens + args.max_completion_length
    return (args.vllm_share - weights) // planner.bench.cache_bytes(tokens)


def cost_lines(args: PlanArguments, cost: Cost, num_prompts: int | None) -> list[str]:
    """Of an optimizer step, and of an epoch where its prompts are known."""
    update = cost.flops + cost.scoring_flops
    parts = ["the reference"] * (args.beta != 0) + ["the old policy, for vLLM"] * args.use_vllm
    scorings = f"a forward of each rollout: {', '.join(parts)}" if parts else "none"
    unit, flop = ("PFLOP", 1e15) if cost.grpo_flops >= 1e13 else ("GFLOP", 1e9)
    lines = [
        f"  tokens through the model   {cost.tokens:14,.0f}   {cost.tokens / cost.grpo_tokens:.2f} of GRPO's {cost.grpo_tokens:,}",
        f"  {unit} of the update        {cost.flops / flop:14,.2f}   {cost.flops / cost.grpo_flops:.2f} of GRPO's {cost.grpo_flops / flop:,.2f}",
        f"  {unit} of scoring before it {cost.scoring_flops / flop:14,.2f}   {scorings}",
        f"  {unit} of sampling, at least{cost.sampling_flops / flop:14,.2f}",
    ]
    speed = args.num_gpus * args.peak_tflops * 1e12 * args.utilisation
    stated = f"at {args.utilisation:.0%} of {args.peak_tflops:g} TFLOP/s on {gpus(args)}, without sampling"
    lines.append(f"  {_time(update / speed, hours=False)} a step {stated}.")
    if num_prompts is not None:
        steps = num_prompts // args.prompts_per_step  # TRL leaves out the rows that are over
        lines.append(
            f"  {_time(steps * update / speed)} an epoch of {num_prompts:,} prompts, {steps:,} step{'s' * (steps != 1)}."
        )
    return lines


def _time(seconds: float, hours: bool = True) -> str:
    """In the largest unit that leaves something to read of a small model's."""
    units = [("hours", 3600)] * hours + [("s", 1), ("ms", 1e-3)]
    name, size = next((unit for unit in units if seconds >= 0.1 * unit[1]), units[-1])
    count = seconds / size
    return f"{count:,.1f} {name}" if count >= 1 else f"{count:.2g} {name}"


def flags(args: PlanArguments, fit: Fit) -> list[str]:
    """A command to paste."""
    launch = "trl-cppo train"
    if fit.zero_stage or args.num_gpus > 1:
        launch = (
            f"accelerate launch --num_processes {args.num_gpus}{_deepspeed(args, fit.zero_stage)} -m trl_cppo train"
        )
    training = {
        "model_name_or_path": args.model,
        "dataset_name": args.dataset_name or "YOUR_DATA",
        "output_dir": f"{Path(args.model).resolve().name}-CPPO",
        "dtype": args.dtype,
        "per_device_train_batch_size": fit.rows,
        "gradient_accumulation_steps": fit.accumulation,
        "steps_per_generation": fit.steps_per_generation,
        "num_generations": args.num_generations,
        "max_completion_length": args.max_completion_length,
        "gradient_checkpointing": args.gradient_checkpointing,
        "share_prefix": args.share_prefix,
        "cpl_divergence": args.cpl_divergence,
        "beta": args.beta,
    }
    given = [(name, getattr(args, name)) for name in ("max_pixels", "min_pixels", "router_aux_loss_coef", "freeze")]
    given.append(("cpl_rollouts_per_prompt", args.cpl_rollouts_per_prompt))
    if args.dtype == "float32":
        given.append(("bf16", False))  # whose autocast would make copies that are not counted
    if args.dataset_name is not None:
        given.append(("dataset_train_split", args.dataset_train_split))
    if args.use_peft:
        given += [(name, getattr(args, name)) for name in ("use_peft", "lora_r", "lora_target_modules", "lora_on")]
    if args.use_vllm:
        given += [("use_vllm", True), ("vllm_mode", "colocate")]
        given += [(name, getattr(args, name)) for name in ("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode")]
    training |= {name: value for name, value in given if value is not None}
    lines = [f"  {launch}", *(f"    --{name} {_word(value)}" for name, value in training.items())]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _deepspeed(args: PlanArguments, stage: int) -> str:
    if not stage:
        return ""
    # Else save_model under ZeRO-3 writes shards that from_pretrained cannot load.
    whole = " --zero3_init_flag true --zero3_save_16bit_model true" if stage == 3 else ""
    precision = "bf16" if args.dtype == "bfloat16" else "no"
    return f" --use_deepspeed --zero_stage {stage}{whole} --mixed_precision {precision}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(shlex.quote, value)) if isinstance(value, list) else shlex.quote(str(value))


def budget_lines(fit: Fit, smaller: Fit | None) -> list[str]:
    """What views of one rollout a prompt make possible, where they do."""
    if smaller is None:
        return []
    gain = "it fits" if fit.free < 0 else f"micro-batches of {smaller.rows} rows fit, not {fit.rows} alone"
    return [
        f"  With --cpl_rollouts_per_prompt 1 {gain}: {gib(smaller.worst.peak_bytes).strip()} at the peak of an update of {smaller.rows} "
        "rows (docs/tuning.md says when to use it)."
    ]


def plan_lines(
    planner: Planner, fit: Fit, cost: Cost, other: UpdateCounts, own_settings: bool, smaller: Fit | None = None
) -> list[str]:
    """The whole plan. `smaller`: see [`Planner.within_budget`]."""
    args, bench = planner.args, planner.bench
    total, trained = count_parameters(bench.model)
    sizes, tokens = planner.longest.sizes, planner.prompt_tokens - planner.longest.text
    micro = planner.worst_case(fit.rows)
    without = planner.count(planner.worst_case(fit.rows, gated=False))
    shown = ", ".join(f"{width} x {height}" for width, height in sizes) or "none"
    head = [
        f"{args.model}: {total:,} weights, {trained:,} trained.",
        f"Images {shown}: {tokens:,} tokens; prompts {planner.prompt_tokens:,}, completions {args.max_completion_length:,}.",
    ]
    if planner.rows is not None:
        head.append(
            f"Lengths from {args.dataset_name}: the largest of {min(LOOKED_AT, planner.rows.num_rows)} rows for memory, the middle one for FLOPs."
        )
        if planner.rows.num_rows < planner.asked_prompts:
            rows = "1 row does" if planner.rows.num_rows == 1 else f"{planner.rows.num_rows} rows do"
            head.append(
                f"Its {rows} not fill a step of {planner.asked_prompts} prompts: planned with steps of {args.prompts_per_step}."
            )
        if planner.rows.largest.text is None:
            head.append(
                f"The model's tokenizer is not on this machine: texts of {args.prompt_tokens} tokens (--prompt_tokens)."
            )
    if not own_settings:
        head.append("No preprocessor_config.json was found: the limits of an image's size are transformers' defaults.")
    sharing = f"Rollouts share their prompt's prefix (share_prefix={args.share_prefix})."
    reason = bench.plain_because if fit.rows > 1 else "micro-batches of one row"
    if not micro.shared or bench.unpacked:
        sharing = f"Rollouts are in rows of their own: {reason or bench.unpacked}."
    budget = args.cpl_rollouts_per_prompt
    budgeted = "with views" if budget is None else f"gated and at most {budget} a prompt with views"
    fits = fit.free >= 0 and not (args.use_vllm and rollouts_in_vllm(planner) < 1)
    stage = f"ZeRO-{fit.zero_stage}" if fit.zero_stage else "no ZeRO"
    return [
        *head,
        sharing,
        "",
        f"Memory of each GPU, {stage}, {gpus(args)} of {args.gpu_memory:g} GiB, weights in {args.dtype}:",
        *memory_lines(planner, fit, without, other, 2 * micro.prompts * micro.gated),
        *budget_lines(fit, smaller),
        "",
        f"An optimizer step of {args.prompts_per_step} prompts x {args.num_generations} rollouts, {args.gated_share:.0%} of them {budgeted}:",
        *cost_lines(args, cost, args.num_prompts if planner.rows is None else planner.rows.num_rows),
        "",
        NOT_COUNTED,
        "",
        "To paste, first with --dry_run:"
        if fits
        else "It does not fit: fewer or smaller images (--max_pixels), shorter completions, fewer prompts a step, --use_peft, --freeze, more GPUs. What came closest:",
        *flags(args, fit),
    ]

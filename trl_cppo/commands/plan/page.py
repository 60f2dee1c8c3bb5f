# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a plan says."""

from .arguments import GIB, PlanArguments
from .counts.update import UpdateCounts
from .model import count_parameters
from .rows import LOOKED_AT
from .search import Cost, Fit, Planner

NOT_COUNTED = (
    "Not counted, and what the reserve is for: the CUDA context, fragmentation, buffers of the communication, the weights that ZeRO-3 "
    "gathers, the copies that autocast makes of float32 weights, loading. Nor is sampling: its cache, and its time, which memory sets "
    "and not the peak. Norms are not fused; attention counts in full squares."
)


def gib(size: float) -> str:
    return f"{size / GIB:8.1f} GiB"


def memory_lines(
    args: PlanArguments, fit: Fit, without_views: UpdateCounts, other: UpdateCounts, num_views: int
) -> list[str]:
    """
    A line a part, of one GPU.

    Args:
        without_views (`UpdateCounts`): of the same micro-batch, as GRPO's.
        other (`UpdateCounts`): of `fit.worst`, with checkpointing where the plan has none, and the other way round.
    """
    on, off = (fit.worst, other) if args.gradient_checkpointing else (other, fit.worst)
    views, temporary = fit.worst.saved_bytes - without_views.saved_bytes, fit.worst.peak_bytes - fit.worst.saved_bytes
    parts = [
        ("weights", fit.states.weights),
        *([("reference model", fit.reference)] if fit.reference else []),
        ("gradients", fit.states.gradients),
        ("optimizer (Adam)", fit.states.optimizer),
        (f"activations of {fit.rows} rows, kept for the backward", without_views.saved_bytes),
        (f"those of {num_views} view rows, the most there can be", views),
        ("at the peak besides: head, gradients of activations, temporary", temporary),
        *([("vLLM", args.vllm_bytes)] if args.vllm_bytes else []),
        (f"kept free ({args.reserve:.0%})", args.reserve * args.gpu_memory * GIB),
    ]
    left = "left" if fit.free >= 0 else "MISSING: IT DOES NOT FIT"
    lines = [f"  {gib(size)}  {name}" for name, size in parts]
    return [
        *lines,
        f"  {gib(abs(fit.free))}  {left}",
        f"  Peak of the update with checkpointing {gib(on.peak_bytes).strip()}, without {gib(off.peak_bytes).strip()}.",
    ]


def cost_lines(args: PlanArguments, cost: Cost, num_prompts: int | None) -> list[str]:
    """Of an optimizer step, and of an epoch where its prompts are known."""
    update = cost.flops + cost.scoring_flops
    lines = [
        f"  tokens through the model   {cost.tokens:14,.0f}   {cost.tokens / cost.grpo_tokens:.2f} of GRPO's {cost.grpo_tokens:,}",
        f"  PFLOP of the update        {cost.flops / 1e15:14,.2f}   {cost.flops / cost.grpo_flops:.2f} of GRPO's {cost.grpo_flops / 1e15:,.2f}",
        f"  PFLOP of scoring before it {cost.scoring_flops / 1e15:14,.2f}   {args.extra_scorings} forward(s) of each rollout",
        f"  PFLOP of sampling, at least{cost.sampling_flops / 1e15:14,.2f}",
    ]
    speed = args.num_gpus * args.peak_tflops * 1e12 * args.utilisation
    stated = f"at {args.utilisation:.0%} of {args.peak_tflops:g} TFLOP/s on each of {args.num_gpus} GPU(s), without sampling"
    lines.append(f"  {update / speed:.1f} s a step {stated}.")
    if num_prompts is not None:
        steps = num_prompts / args.prompts_per_step
        lines.append(
            f"  {steps * update / speed / 3600:.2f} hours an epoch of {num_prompts:,} prompts, {steps:,.0f} steps."
        )
    return lines


def flags(args: PlanArguments, fit: Fit) -> list[str]:
    """To paste behind `accelerate launch`, and before it."""
    launch = "accelerate launch"
    if fit.zero_stage:
        launch += f" --use_deepspeed --zero_stage {fit.zero_stage} --mixed_precision bf16"
    launch += f" --num_processes {args.num_gpus}"
    training = {
        "model_name_or_path": args.model,
        "dtype": args.dtype,
        "per_device_train_batch_size": fit.rows,
        "gradient_accumulation_steps": fit.accumulation,
        "num_generations": args.num_generations,
        "max_completion_length": args.max_completion_length,
        "gradient_checkpointing": str(args.gradient_checkpointing).lower(),
        "share_prefix": args.share_prefix,
        "cpl_divergence": args.cpl_divergence,
        "beta": args.beta,
    }
    if args.dataset_name is not None:
        training["dataset_name"] = args.dataset_name
    if args.max_pixels is not None:
        training["max_pixels"] = args.max_pixels
    if args.use_peft:
        training |= {
            "use_peft": "true",
            "lora_r": args.lora_r,
            "lora_target_modules": " ".join(args.lora_target_modules),
        }
    if args.use_vllm:
        training |= {
            "use_vllm": "true",
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        }
        training["vllm_enable_sleep_mode"] = str(args.vllm_enable_sleep_mode).lower()
    return [f"  {launch}", *(f"  --{name} {value}" for name, value in training.items())]


def plan_lines(planner: Planner, fit: Fit, cost: Cost, other: UpdateCounts, own_settings: bool) -> list[str]:
    """The whole plan."""
    args, bench = planner.args, planner.bench
    total, trained = count_parameters(bench.model)
    sizes, tokens = planner.longest.sizes, sum(bench.image_tokens((size,)) for size in planner.longest.sizes)
    micro = planner.worst_case(fit.rows)
    without = planner.count(planner.worst_case(fit.rows, gated=False))
    shown = ", ".join(f"{width} x {height}" for width, height in sizes) or "none"
    head = [
        f"{args.model}: {total:,} weights, {trained:,} trained.",
        f"Images {shown}: {tokens:,} tokens; prompts {planner.longest.text + tokens:,}, completions {args.max_completion_length:,}.",
    ]
    if planner.rows is not None:
        head.append(
            f"Lengths from {args.dataset_name}: the largest of {LOOKED_AT} rows for memory, the middle one for FLOPs."
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
    stage = f"ZeRO-{fit.zero_stage}" if fit.zero_stage else "no ZeRO"
    return [
        *head,
        sharing,
        "",
        f"Memory of each GPU, {stage}, {args.num_gpus} GPU(s) of {args.gpu_memory:g} GiB, weights in {args.dtype}:",
        *memory_lines(args, fit, without, other, 2 * micro.prompts * micro.gated),
        "",
        f"An optimizer step of {args.prompts_per_step} prompts x {args.num_generations} rollouts, f = {args.gated_share:g}:",
        *cost_lines(args, cost, args.num_prompts if planner.rows is None else planner.rows.num_rows),
        "",
        NOT_COUNTED,
        "",
        "To paste:"
        if fit.free >= 0
        else "It does not fit: fewer or smaller images (--max_pixels), shorter completions, --use_peft, more GPUs. What came closest:",
        *flags(args, fit),
    ]

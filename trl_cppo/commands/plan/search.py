# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The largest micro-batch that fits, and what a step of it costs."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .arguments import GIB, PlanArguments
from .counts.batch import MicroBatch
from .counts.update import UpdateBench, UpdateCounts
from .model import States, states_of
from .rows import DatasetShape

LARGEST = 16  # rows of a micro-batch that are tried, or the rollouts of one prompt


@dataclass(frozen=True)
class Fit:
    """
    Of one GPU.

    Attributes:
        zero_stage, rows (`int`): ZeRO stage, and rows of a micro-batch.
        accumulation (`int`): micro-batches of an optimizer step.
        steps_per_generation (`int`): micro-batches that are sampled at once: all of a step, if there is room.
        states (`States`): of the trained model.
        reference (`int`): bytes of the reference model.
        worst (`UpdateCounts`): of a micro-batch in which as many rows have views as can.
        sampling (`int`): bytes that sampling takes in the update's place: vLLM's share, or the cache of transformers' sampler, the forward
            of the prompts, and under ZeRO-3 the whole weights.
        free (`int`): bytes that are left beside states, reserve, and the update with vLLM or sampling, whichever takes more;
            negative: it does not fit.
    """

    zero_stage: int
    rows: int
    accumulation: int
    steps_per_generation: int
    states: States
    reference: int
    worst: UpdateCounts
    sampling: int
    free: int


@dataclass(frozen=True)
class Cost:
    """
    Of an optimizer step, on all GPUs.

    Attributes:
        tokens, flops (`float`): that updates read, and of them.
        grpo_tokens, grpo_flops (`int`): of GRPO's, plain rows without views.
        scoring_flops, sampling_flops (`int`): of forwards before the update; what sampling has at least.
    """

    tokens: float
    flops: float
    grpo_tokens: int
    grpo_flops: int
    scoring_flops: int
    sampling_flops: int


class Planner:
    """
    Asks a bench for what it needs.

    Args:
        args ([`PlanArguments`]): the wish.
        bench ([`UpdateBench`]): of the model, checkpointing as the arguments say.
        progress (`Callable`): is told in words what is counted next.
        rows ([`DatasetShape`], *optional*): of the data set, if there is one; where it has fewer rows than a step should have
            prompts, steps have fewer.
    """

    def __init__(
        self,
        args: PlanArguments,
        bench: UpdateBench,
        progress: Callable[[str], None],
        rows: DatasetShape | None = None,
    ):
        self.bench, self._progress, self.asked_prompts = bench, progress, args.prompts_per_step
        if (
            rows is not None and rows.num_rows < args.prompts_per_step
        ):  # a power of two, that sizes of micro-batches divide
            args = replace(args, prompts_per_step=2 ** (rows.num_rows.bit_length() - 1))
        self.args = args
        usual, self.rows = args.mean_completion_length or args.max_completion_length, rows
        if rows is None:
            self.longest, self.usual = args.rollout(args.max_completion_length), args.rollout(usual)
        else:
            self.longest = args.rollout_of(rows.largest, args.max_completion_length)
            self.usual = args.rollout_of(rows.usual, usual)
        self._counted: dict[tuple, UpdateCounts] = {}

    def worst_case(self, rows: int, gated: bool = True) -> MicroBatch:
        """A micro-batch of so many rows, as many of them with views as can: of a whole group, one is not above the mean."""
        rollouts = min(rows, self.args.num_generations)
        most = rollouts - (rollouts == self.args.num_generations)
        if self.bench.shares(rows):  # in plain rows, TRL's shuffle may bring drawn rollouts of many prompts together
            most = min(most, self.args.budget)
        return MicroBatch(rows // rollouts, rollouts, most * gated, self.bench.shares(rows))

    def count(self, micro: MicroBatch, usual: bool = False) -> UpdateCounts:
        rollout = self.usual if usual else self.longest
        if (rollout, micro) not in self._counted:
            self._progress(f"an update of {micro.rows} rows, {micro.prompts * micro.gated} of them with views")
            self._counted[rollout, micro] = self.bench.count(rollout, micro)
        return self._counted[rollout, micro]

    @property
    def prompt_tokens(self) -> int:
        """Of the longest prompt, images included."""
        return self.longest.text + sum(self.bench.image_tokens((size,)) for size in self.longest.sizes)

    def _sampling(self, rows: int, states: States, stage: int) -> int:
        """While so many rows are sampled on each GPU at once."""
        if self.args.use_vllm:
            return self.args.vllm_share
        gathered = states.weights * (self.args.num_gpus - 1) if stage == 3 else 0  # the others' shards
        return self.bench.sampling_bytes(self.longest, rows) + gathered

    def _steps_per_generation(self, rows: int, accumulation: int) -> list[int]:
        """From the whole optimizer step downwards; the rows of all GPUs hold whole groups."""
        whole = rows * self.args.num_gpus
        every = [steps for steps in range(accumulation, 0, -1) if accumulation % steps == 0]
        return [steps for steps in every if whole * steps % self.args.num_generations == 0]

    def sizes(self) -> list[int]:
        """Rows of a micro-batch that divide the rows of a step on each GPU, and hold whole groups or equal parts of one."""
        group, rows, gpus = self.args.num_generations, self.args.rows_per_step, self.args.num_gpus
        if rows % gpus:
            raise ValueError(
                f"{self.args.prompts_per_step} prompts x {group} rollouts do not divide by {gpus} GPUs; change --prompts_per_step."
            )
        fixed, found = self.args.per_device_train_batch_size, rows // gpus
        if fixed is not None:
            if found % fixed or (fixed % group and group % fixed):
                raise ValueError(
                    f"--per_device_train_batch_size {fixed} must divide the {found} rows of a GPU's step, and --num_generations {group} "
                    "or the other way round."
                )
            return [fixed]
        most = max(LARGEST, group)
        return [size for size in range(1, most + 1) if found % size == 0 and (size % group == 0 or group % size == 0)]

    def fit(self) -> Fit:
        """The first ZeRO stage that leaves room for a row, with the largest micro-batch that fits there; else the last, with the least."""
        sizes, fits = self.sizes(), []
        for stage in self._stages():
            low, high = 0, len(sizes) - 1
            fits.append(self._fit(stage, sizes[0]))
            while fits[-1].free >= 0 and low < high:
                middle = math.ceil((low + high) / 2)
                tried = self._fit(stage, sizes[middle])
                if tried.free >= 0:
                    low = middle
                    fits.append(tried)
                else:
                    high = middle - 1
            if fits[-1].free >= 0:
                break
        return fits[-1]

    def _stages(self) -> list[int]:
        if self.args.zero_stage is not None:
            return [self.args.zero_stage]
        # Adam's moments in bf16 lose small updates of bf16 weights; DeepSpeed keeps float32 ones, on a single GPU too.
        first = 0 if self.args.use_peft else 2
        return [first] if self.args.num_gpus == 1 else [first, 3]

    def _fit(self, stage: int, rows: int) -> Fit:
        args = self.args
        worst = self.count(self.worst_case(rows))
        states = states_of(self.bench.model, args.torch_dtype, stage, args.num_gpus, args.use_peft, worst.reached)
        reference = states.weights if args.beta != 0 and not args.use_peft else 0
        room = round((1 - args.reserve) * args.gpu_memory * GIB) - states.total - reference
        accumulation = args.rows_per_step // args.num_gpus // rows
        for steps in self._steps_per_generation(rows, accumulation):
            sampling = self._sampling(rows * steps, states, stage)
            if sampling <= room or args.use_vllm:
                break
        free = room - max(worst.peak_bytes + args.vllm_bytes, sampling)
        return Fit(stage, rows, accumulation, steps, states, reference, worst, sampling, free)

    def within_budget(self, fit: Fit) -> Fit | None:
        """What fits with views of one rollout a prompt, where that is more than `fit`: it lacks room, or splits prompts for want of it."""
        if self.args.budget == 1 or (fit.free >= 0 and fit.rows >= self.args.num_generations):
            return None
        other = copy.copy(self)
        other.args = replace(self.args, cpl_rollouts_per_prompt=1)
        found = other.fit()
        return found if found.free >= 0 and (fit.free < 0 or found.rows > fit.rows) else None

    def cost(self, rows: int) -> Cost:
        """Of a step with micro-batches of so many rows."""
        rollouts, shared = min(rows, self.args.num_generations), self.bench.shares(rows)
        gated = min(self.args.gated_share, self.args.budget / self.args.num_generations) * rollouts
        low = math.floor(gated)
        parts = [(low, 1 - (gated - low))] + [(low + 1, gated - low)] * (gated > low)
        counts = [
            (self.count(MicroBatch(1, rollouts, number, shared), usual=True), weight) for number, weight in parts
        ]
        grpo = self.count(MicroBatch(1, 1), usual=True)
        forward, step = self.bench.forward_flops(self.usual), self.args.rows_per_step
        return Cost(
            tokens=sum(weight * count.tokens for count, weight in counts) * step / rollouts,
            flops=sum(weight * count.flops for count, weight in counts) * step / rollouts,
            grpo_tokens=grpo.tokens * step,
            grpo_flops=grpo.flops * step,
            scoring_flops=self.args.extra_scorings * forward * step,
            sampling_flops=forward * step,
        )

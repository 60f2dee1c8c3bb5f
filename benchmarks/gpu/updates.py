# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Updates of one model by all arms, on one device: what each takes.

The rollouts of one prompt are a micro-batch. Gradients add up from one update to the next, as over micro-batches; nothing is stepped.
"""

import math
import statistics
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, PreTrainedModel, Qwen2_5_VLConfig, Qwen2VLImageProcessor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from trl_cppo import digits
from trl_cppo.commands.plan.counts.update import toy_trainer
from trl_cppo.method.budget import drawn_weights
from trl_cppo.method.request import ViewPair

from ..lib.counting import score_views_apart
from ..lib.shapes import Depth, Row, depth_of, grid_of, make_batch, with_depth
from ..lib.turns import take_turns
from .arms import GROUP, LARGEST, Arm
from .correctness import attached, on_device
from .machine import Machine
from .vision import windows_at_once


def quarters_of(config: Qwen2_5_VLConfig, quarters: int) -> Qwen2_5_VLConfig:
    """The model with so many quarters of its layers and blocks, of each kind."""
    whole = depth_of(config)
    return with_depth(config, Depth(*(n * quarters // 4 for n in (whole.text, whole.windowed, whole.full))))


def build(config: Qwen2_5_VLConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights with gradients, TRL's fused head, and checkpointing, which GRPOConfig has by default."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))  # as GRPOTrainer does
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model.train()


def weight_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


class Photos:
    """Stands for the trainer's ViewProcessor: the image processor of the true model."""

    pixels_by_row = False

    def __init__(self):
        self._processor = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2)

    def __call__(self, images: list[list[PILImage.Image]]) -> dict[str, torch.Tensor]:
        return dict(self._processor(images=images, return_tensors="pt"))


def noise(patches: int, seed: int) -> PILImage.Image:
    """An image of so many patches."""
    _, height, width = grid_of(patches)
    values = np.random.default_rng(seed).integers(0, 256, (14 * height, 14 * width, 3), dtype=np.uint8)
    return PILImage.fromarray(values)


class _SeenKernels(TorchDispatchMode):
    """Notes which operators compute attention; where none of them does, it is put together from products."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if ("attention" in name or "attn" in name) and "backward" not in name:
            self.names.add(name.strip("_"))
        return func(*args, **(kwargs or {}))


def plain_trainer() -> GRPOTrainer:
    """TRL's own, whose own model is a toy: `compute_loss` is given the model."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=digits.build_model(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(folder, use_cpu=True, bf16=False, per_device_train_batch_size=GROUP, report_to="none"),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "sum?"}]}]),
            processing_class=digits.build_processor(),
        )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    return trainer


class Updates:
    """
    The trainers of all arms, around whichever model they are given.

    Args:
        machine ([`Machine`]): what they run on.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        self._cppo, self._grpo, self._photos = toy_trainer(), plain_trainer(), Photos()
        self._cppo.view_processor = self._photos
        self._batches: dict[Row, dict[str, Any]] = {}  # of the last point

    def _plain_batch(self, config: Qwen2_5_VLConfig, row: Row) -> dict[str, Any]:
        """Random tokens and one random image, on the device; the prompt and the image are all rollouts'."""
        if row not in self._batches:
            image = noise(row.patches, seed=0)
            batch = make_batch(config, [row] * GROUP, 0, lambda _: self._photos([[image]] * GROUP))
            draw = torch.Generator().manual_seed(0)
            words = min(config.text_config.vocab_size, 100_000)  # below the special tokens of the true model
            batch["prompt_ids"][:, -row.text :] = torch.randint(10, words, (row.text,), generator=draw)
            batch["completion_ids"] = torch.randint(10, words, (GROUP, row.completion), generator=draw)
            del batch["cpl_views"], batch["num_gated_rows"]
            self._batches = {row: on_device(batch, self.machine.device)}
        return dict(self._batches[row])

    def batch(self, config: Qwen2_5_VLConfig, row: Row, arm: Arm) -> dict[str, Any]:
        """The micro-batch of an arm; all have the same tokens and images."""
        batch, gated = self._plain_batch(config, row), round(arm.share * GROUP)
        if arm.packed:
            batch["prompt_keys"] = torch.zeros(GROUP, dtype=torch.long, device=self.machine.device)
        if arm.trainer == "cppo" and gated:
            batch["advantages"] = torch.tensor([1.0] * gated + [-1.0] * (GROUP - gated), device=self.machine.device)
            batch["num_gated_rows"] = torch.tensor(gated, device=self.machine.device)
            has_cpl = [place < gated for place in range(GROUP)]
            weights = drawn_weights(has_cpl, GROUP, arm.budget or GROUP, seed=0, key=("gpu",))
            if arm.budget is not None:
                batch["cpl_weights"] = weights
            pair = ViewPair(*([noise(row.patches, seed)] for seed in (1, 2)))
            batch["cpl_views"] = [pair if weight else None for weight in weights]
        return batch

    def loss(self, model: PreTrainedModel, row: Row, arm: Arm) -> Callable[[], torch.Tensor]:
        """What computes an arm's loss."""
        trainer = self._cppo if arm.trainer == "cppo" else self._grpo
        batch = self.batch(model.config, row, arm)

        def loss() -> torch.Tensor:
            self._cppo.args.cpl_divergence = arm.divergence
            value = trainer.compute_loss(model, batch)
            if arm.trainer == "every_row":
                views = [batch["pixel_values"].clone() for _ in range(2)]
                value = value + score_views_apart(trainer, model, batch, views)
            return value

        return loss

    @contextmanager
    def around(self, model: PreTrainedModel, arm: Arm) -> Iterator[None]:
        """What is in force while an arm runs, opened before its clock starts."""
        with (
            arm.within(),
            attached(self._cppo.shared_prefix, model) if arm.packed else nullcontext(),
            windows_at_once(model) if arm.windows_at_once else nullcontext(),
        ):
            yield

    def once(self, model: PreTrainedModel, row: Row, arm: Arm) -> dict[str, Any]:
        """
        An update that is not timed.

        Returns:
            `dict[str, Any]`: `tokens` that the text model reads, padding included, and the `attention` operators that were called.
        """
        read = []
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        try:
            with self.around(model, arm), _SeenKernels() as seen:
                self.loss(model, row, arm)().backward()
        finally:
            hook.remove()
        return {"tokens": sum(read), "attention": sorted(seen.names) or ["products"]}

    def timed(
        self, model: PreTrainedModel, row: Row, arms: dict[str, Arm], repeats: int, seconds_left: Callable[[], float]
    ) -> dict[str, dict[str, Any]]:
        """
        Seconds of the arms' updates, medians of so many rounds, or of one and as many more as there is time for; and the most
        bytes that each takes above weights and gradients.
        """
        losses = {name: self.loss(model, row, arm) for name, arm in arms.items()}
        peaks, rounds, names, failed = {}, [], list(arms), {}

        def run(name: str) -> None:
            if name in failed:
                return
            self.machine.forget_peak()
            try:
                losses[name]().backward()
            except RuntimeError as error:
                failed[name] = failure(error)
            peaks[name] = self.machine.peak() - 2 * weight_bytes(model) if self.machine.is_gpu else None

        while names and len(rounds) < repeats and (not rounds or seconds_left() > 0):
            rounds += take_turns(run, names, 1, self.machine.clock, lambda name: self.around(model, arms[name]))
            names = names[1:] + names[:1]
        return failed | {
            name: {
                "seconds": statistics.median(seconds[name] for seconds in rounds), "repeats": len(rounds),
                "peak_bytes": peaks[name],
            }
            for name in arms if name not in failed
        }  # fmt: skip


def failure(error: RuntimeError) -> dict[str, Any]:
    """What a report says of an arm that stopped: the others go on."""
    if isinstance(error, torch.OutOfMemoryError):
        return {"out_of_memory": True}
    return {"error": textwrap.shorten(str(error), 160)}


def measure_point(
    updates: Updates,
    model: PreTrainedModel,
    row: Row,
    arms: dict[str, Arm],
    repeats: int,
    seconds_left: Callable[[], float],
) -> dict[str, Any]:
    """
    All arms at one point.

    Returns:
        `dict[str, Any]`: `arms` with the figures of each, of one that stopped `out_of_memory` or its `error`; and the names that were `skipped` for want of time.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        if seconds_left() > 0:
            try:
                found[name] = updates.once(model, row, arm)
            except RuntimeError as error:
                found[name] = failure(error)
            updates.machine.release()
    fitting = {name: arms[name] for name in found if "tokens" in found[name]}
    for name, figures in updates.timed(model, row, fitting, repeats, seconds_left).items():
        found[name] |= figures
        if "seconds" in figures:
            found[name]["tokens_per_second"] = found[name]["tokens"] / figures["seconds"]
    return {"arms": found, "skipped": [name for name in arms if name not in found]}


def find_depth(updates: Updates, config: Qwen2_5_VLConfig, row: Row, dtype: torch.dtype) -> Qwen2_5_VLConfig:
    """The model with as many quarters of its layers as fit, by what the largest updates of one and two quarters take."""
    free, taken = 0.9 * updates.machine.free(), []  # a tenth for what the allocator cannot use
    for quarters in (1, 2):
        model = build(quarters_of(config, quarters), updates.machine.device, dtype)
        updates.machine.forget_peak()
        try:
            for arm in LARGEST:
                updates.once(model, row, arm)
            taken.append(updates.machine.peak())
        except torch.OutOfMemoryError:
            taken.append(math.inf)
        del model
        updates.machine.release()
    return quarters_of(config, most_quarters(*taken, free))


def most_quarters(first: float, second: float, free: float) -> int:
    """
    How many quarters of a model fit; one, if nothing else does.

    Args:
        first, second (`float`): bytes that one and two quarters take; infinite for more than there are.
        free (`float`): bytes that there are.
    """
    return max([quarters for quarters in (2, 3, 4) if first + (quarters - 1) * (second - first) <= free], default=1)

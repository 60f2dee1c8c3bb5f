# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A run up to its first update, to be looked at: `trl-cppo train --dry_run`."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...trainer import CPPOTrainer
from .dry_run_page import Batch, Rollout, page, peak_bytes, save_picture

OUT_OF_MEMORY = (
    "out of GPU memory while {doing}. Set per_device_train_batch_size, max_pixels or max_completion_length lower, or train "
    "adapters (--use_peft); `trl-cppo plan` says what each part takes."
)


class _Stopped(Exception):
    """The batch is done."""


class DryRunTrainer(CPPOTrainer):
    """
    A CPPOTrainer whose `train` generates one batch, computes its losses and their gradients, makes no update and saves nothing but
    a picture of views beside the output folder. Then it prints what it saw, on the main process.

    Raises:
        `ValueError`: if GPU memory does not suffice, or the checkpoint that is resumed from leaves no step to make.
    """

    def __init__(self, *args, **kwargs):
        settings = kwargs["args"]
        # Nothing is told to trackers, sent or measured.
        settings.report_to, settings.push_to_hub, settings.eval_on_start = [], False, False
        settings.disable_tqdm = True
        self._folder = Path(settings.output_dir)
        self._had_folder = self._folder.exists()
        self._doing, self._seconds = "starting", dict.fromkeys(("generation", "rewards", "batch", "losses"), 0.0)
        self._shown: Rollout | None = None
        self._batch: Batch | None = None
        self._losses = 0
        super().__init__(*args, **kwargs | {"callbacks": None})

    def train(self, *args, **kwargs) -> None:
        """Up to the first update."""
        try:
            super().train(*args, **kwargs)
        except _Stopped:
            self._tell()
        except torch.OutOfMemoryError as error:
            told = ValueError(f"dry run: {OUT_OF_MEMORY.format(doing=self._doing)}")
            for note in traceback.TracebackException.from_exception(error).__notes__ or []:
                told.add_note(note)
            raise told from error
        else:
            raise ValueError(
                "dry run: the checkpoint has made all steps of this run, so there is none to try. Raise max_steps or num_train_epochs."
            )
        finally:
            is_new = not self._had_folder and self._folder.is_dir()
            if is_new and self.is_world_process_zero() and not any(self._folder.iterdir()):
                self._folder.rmdir()  # which the trainer made

    # What is measured ------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, part: str, doing: str) -> Iterator[None]:
        outer, self._doing = self._doing, doing
        start = time.perf_counter()
        yield
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self._seconds[part] += time.perf_counter() - start
        self._doing = outer

    def _generate(self, prompts: list[Any]):
        with self._timed("generation", "generating"):
            return super()._generate(prompts)

    def _calculate_rewards(self, *args, **kwargs):
        with self._timed("rewards", "computing rewards"):
            return super()._calculate_rewards(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._timed("batch", "scoring the rollouts before the update"):
            batch = super()._generate_and_score_completions(inputs)
        self._batch = Batch.of(batch, self.args)
        self._shown = self._rollout(inputs, batch)
        return batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in training, but that DeepSpeed, which updates in its backward, is told of further micro-batches."""
        is_last = self.accelerator.sync_gradients
        self.accelerator.sync_gradients = False
        with self._timed("losses", "computing the loss and its gradients"):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses += 1
        if is_last or self._losses == self.args.steps_per_generation:
            raise _Stopped
        return loss

    # What is shown ---------------------------------------------------------------------------------------------------

    def _rollout(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> Rollout:
        """Of this process: one with views, else one with an image, else the first."""
        views, counts = batch.get("cpl_views"), batch.get("num_images") or [0] * len(inputs)
        gated = [pair is not None for pair in views or [None] * len(inputs)]
        row = max(range(len(inputs)), key=lambda row: (gated[row], bool(counts[row]), -row))
        pair, images = None, []
        if views is not None and counts[row]:
            [example] = self.row_images.rows([inputs[row]])
            images = self._images_of_row(row, example).images
            prompt = self._prompts_of_rows(len(inputs))[row]
            # Also of a rollout that is not gated: those that it would have had.
            pair = self._views_of_prompt(images, ("train", *self._last_generation), prompt)
            images = [self.view_maker.read_image(image) for image in images]
        place = self.accelerator.process_index * len(inputs) + row
        rewards = zip(self.reward_func_names, self.rewards[place].tolist(), strict=True)
        return Rollout.of(row, inputs[row], batch, self.model, self._tokenizer, dict(rewards), images, pair)

    def _tell(self) -> None:
        peak = torch.tensor(float(peak_bytes(self.accelerator.device)), device=self.accelerator.device)
        peak = self.accelerator.gather(peak).max().item()  # of the fullest process
        if not self.is_world_process_zero():
            return
        picture = None
        if self._shown.views is not None:
            folder = self._folder.resolve()
            picture = folder.with_name(f"{folder.name}-dry-run.png")
            save_picture(picture, self._shown.images, self._shown.views)
        # The parts that lie within others are taken off them.
        seconds = dict(self._seconds)
        seconds["batch"] -= seconds["generation"] + seconds["rewards"]
        seconds["losses"] -= self._seconds["batch"]
        print("\n".join(page(self, self._shown, self._batch, picture, peak, seconds, self._losses)))

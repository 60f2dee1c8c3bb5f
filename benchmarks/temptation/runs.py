# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One run that captions tempt, and its grades."""

import functools
import time
from pathlib import Path
from typing import Any

import torch

from ..lib import digits_lab as lab
from ..lib import jobs as lab_jobs
from ..lib.jobs import Job
from . import captions
from .arms import ARMS


def settings_of(job: Job) -> dict[str, Any]:
    return lab.run_settings(seed=job.seed, max_steps=job.steps) | ARMS[job.arm].settings | job.settings


def run(job: Job, grading: dict[str, Any]) -> dict[str, Any]:
    """Train and grade; a run of no step grades the warm start."""
    torch.set_num_threads(1)
    start, log = time.time(), []
    settings, arm, folder = settings_of(job), ARMS[job.arm], captions.warm_start(job.warm_start)
    if job.steps == 0:
        model, processor = lab.load(folder)
    else:
        rows = lab.training_rows(32 * job.steps, job.seed, augmented=arm.augmented, captions_right=captions.TRAINING)
        trainer, log = lab.train(arm.trainer, folder, rows, settings)
        model, processor = trainer.model.eval(), trainer.processing_class
    seconds = time.time() - start
    views = settings.get("information_removing") or lab.default_views("information_removing")
    grades = captions.grade(model, processor, views=views, **grading)
    return {**grades, "history": lab_jobs.history(log), "training_seconds": seconds}


def run_jobs(jobs: list[Job], grading: dict[str, Any], path: Path | None, workers: int) -> dict[str, Any]:
    """See [`~benchmarks.lib.jobs.run_jobs`]."""
    do = functools.partial(run, grading=grading)
    return lab_jobs.run_jobs(jobs, grading, path, do, settings_of, captions.warm_start, workers)

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One training run on digits and its grades."""

import functools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trl_cppo import digits
from trl_cppo.method.views import get_view

from ..lib import digits_lab as lab
from ..lib import jobs as lab_jobs
from ..lib.jobs import Job
from .arms import ARMS, FEW, Arm
from .conditions import CONDITIONS, canvases, judge

CANVAS_SEED = {"validation": 21, "test": 22}
SAMPLES = 4  # a canvas, for avg@4
SWEPT = ("cppo", "cppo_robust")  # arms that are run over λ
COEFS = (0.01, 0.05, 0.2)
SWEEP = [("grpo", 0.0), *((arm, coef) for arm in SWEPT for coef in COEFS)]  # arm, λ
BOUNDS = (0.2, 0.4, 0.8, 1.6)  # on the gradient, that the arm `cppo_robust` was chosen from


def sweep_job(arm: str, coef: float, seed: int, steps: int) -> Job:
    """A run from the first warm start with λ = `coef`; where that is the arm's own, the arm's own run."""
    own = settings_of(Job(arm, 0, seed, steps))["cpl_coef"]
    return Job(arm, 0, seed, steps, {} if coef == own else {"cpl_coef": coef})


@dataclass(frozen=True)
class Grading:
    """On what the trained models are graded."""

    split: str = "test"
    canvases: int = 2000  # a condition, decoded greedily
    sampled: int = 250  # of them, for avg@4
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    models: str | None = None  # folder to keep the trained models in


def settings_of(job: Job) -> dict[str, Any]:
    """The whole configuration of a run, as CPPOConfig gets it."""
    return lab.run_settings(seed=job.seed, max_steps=job.steps) | arm_of(job).settings | job.settings


def arm_of(job: Job) -> Arm:
    return (ARMS if job.few is None else FEW)[job.arm]


def train(job: Job) -> tuple[Any, list[dict[str, float]]]:
    """The trained trainer and its log."""
    arm = arm_of(job)
    rows = lab.training_rows(32 * job.steps, job.seed, job.few, augmented=arm.augmented)
    return lab.train(arm.trainer, job.warm_start, rows, settings_of(job))


def grade_condition(model: Any, processor: Any, name: str, grading: Grading) -> dict[str, float]:
    """Shares of right answers and of each kind of error (greedy), and avg@4 (sampled)."""
    shown = canvases(name, grading.split, grading.canvases, CANVAS_SEED[grading.split])
    given = CONDITIONS[name].perception_given

    def judged(part: list[Any], seed: int | None) -> list[str]:
        starts = [canvas.perception if given else "" for canvas in part]
        completions = lab.sample(model, processor, [canvas.image for canvas in part], seed, starts=starts)
        texts = processor.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [judge(start + text, canvas) for start, text, canvas in zip(starts, texts, part, strict=True)]

    greedy = judged(shown, None)
    sampled = judged(shown[: grading.sampled] * SAMPLES, seed=0)
    result = {kind: greedy.count(kind) / len(greedy) for kind in ("right", "misread", "wrong_sum", "format")}
    return {**result, "avg@4": sampled.count("right") / len(sampled)}


def grade_detector(model: Any, processor: Any, split: str, count: int = 300) -> dict[str, float]:
    """How well the entropy shift under noise boxes tells the digits of right responses from their other tokens."""
    shown = canvases("clean", split, count, CANVAS_SEED[split])
    texts = [digits.task.response(list(canvas.digits)) + processor.tokenizer.eos_token for canvas in shown]
    completions = processor.tokenizer(texts, return_tensors="pt")["input_ids"]
    truth = lab.true_perception_tokens(processor, completions)
    generator = torch.Generator().manual_seed(0)
    removed = [get_view("noise_boxes")(canvas.image, generator) for canvas in shown]
    entropies = [
        lab.entropy(lab.log_distributions(model, processor, images, completions))
        for images in ([canvas.image for canvas in shown], removed)
    ]
    shift = entropies[1] - entropies[0]
    return {
        "auc": lab.auc(shift.flatten().numpy(), truth.flatten().numpy()),
        "shift_perception": shift[truth].mean().item(),
        "shift_other": shift[~truth].mean().item(),
    }


def grade(model: Any, processor: Any, grading: Grading) -> dict[str, Any]:
    conditions = {name: grade_condition(model, processor, name, grading) for name in grading.conditions}
    return {"conditions": conditions, "detector": grade_detector(model, processor, grading.split)}


def run(job: Job, grading: Grading) -> dict[str, Any]:
    """Train and grade; a run of no step grades the warm start."""
    torch.set_num_threads(1)
    start = time.time()
    if job.steps == 0:
        model, processor = lab.load(digits.warm_start(seed=job.warm_start, progress=False))
        log = []
    else:
        trainer, log = train(job)
        model, processor = trainer.model.eval(), trainer.processing_class
    trained = time.time() - start
    if grading.models:
        folder = Path(grading.models) / job.name.replace(" ", "-")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return {**grade(model, processor, grading), "history": lab_jobs.history(log), "training_seconds": trained}


def run_jobs(jobs: list[Job], grading: Grading, path: Path | None, workers: int = 2) -> dict[str, Any]:
    """See [`~benchmarks.lib.jobs.run_jobs`]."""
    do = functools.partial(run, grading=grading)
    return lab_jobs.run_jobs(jobs, _plain(grading), path, do, settings_of, digits.warm_start, workers)


def _plain(grading: Grading) -> dict[str, Any]:
    """As JSON has it, without what does not change a grade."""
    plain = {key: value for key, value in asdict(grading).items() if key != "models"}
    return {**plain, "conditions": list(grading.conditions)}

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""One training run on digits and its grades; many of them, two at a time, kept in a file that survives an interruption."""

import contextlib
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trl_cppo import digits
from trl_cppo.method.views import get_view

from ..lib import digits_lab as lab
from ..lib.command import read_json, write_json
from .arms import ARMS
from .conditions import CONDITIONS, canvases, judge

CANVAS_SEED = {"validation": 21, "test": 22}
SAMPLES = 4  # a canvas, for avg@4
METRICS = ["rewards/sum_reward/mean", "cpl/loss", "cpl/entropy_shift", "cpl/contrast_accuracy", "cpl/perception_ratio"]
METRICS += ["cpl/gradient_ratio"]


@dataclass(frozen=True)
class Job:
    """One run. `settings` come on top of the arm's."""

    arm: str
    warm_start: int
    seed: int
    steps: int = 60
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        changes = "".join(f" {name}={value}" for name, value in self.settings.items())
        return f"warm{self.warm_start} seed{self.seed} {self.arm}{changes} steps{self.steps}"


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
    return lab.run_settings(seed=job.seed, max_steps=job.steps) | ARMS[job.arm].settings | job.settings


def train(job: Job) -> tuple[Any, list[dict[str, float]]]:
    """The trained trainer and its log."""
    with tempfile.TemporaryDirectory() as folder:
        kind, settings = ARMS[job.arm].trainer, settings_of(job)
        trainer = lab.make_trainer(kind, folder, job.warm_start, 32 * job.steps, settings)
        with contextlib.redirect_stdout(io.StringIO()):  # the log of every step
            trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "reward" in entry]


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
    history = {name: _means([entry.get(name) for entry in log]) for name in METRICS}
    return {**grade(model, processor, grading), "history": history, "training_seconds": trained}


def _means(values: Iterable[float | None], window: int = 10) -> list[float | None]:
    """Means of every ten values; a `None` or NaN is left out."""
    values = list(values)
    parts = [[v for v in values[i : i + window] if v is not None and v == v] for i in range(0, len(values), window)]
    return [round(statistics.fmean(part), 5) if part else None for part in parts]


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("trl", "transformers", "torch", "trl_cppo")}


def run_jobs(jobs: list[Job], grading: Grading, path: Path | None, workers: int = 2) -> dict[str, Any]:
    """
    Do the jobs that the file at `path` does not hold yet, and add each to it when it is done.

    Raises:
        `SystemExit`: if the file was made with another grading or other settings; at the end, if a job failed.
    """
    report = (read_json(path) if path else {}) or {"grading": _plain(grading), "versions": versions(), "runs": {}}
    if report["grading"] != _plain(grading):
        sys.exit(f"{path} holds runs graded with {report['grading']}, not {_plain(grading)}. Use another --output.")
    stale = [
        job.name
        for job in jobs
        if report["runs"].get(job.name, {}).get("settings", settings_of(job)) != settings_of(job)
    ]
    if stale:
        sys.exit(
            f"{path} holds runs with other settings than the arms have now: {', '.join(stale)}. Use another --output."
        )
    for arm in dict.fromkeys(job.arm for job in jobs):
        print(arm, settings_of(next(job for job in jobs if job.arm == arm)), file=sys.stderr)
    todo = [job for job in jobs if job.name not in report["runs"]]
    for seed in sorted({job.warm_start for job in todo}):  # once, before the workers that share it
        digits.warm_start(seed=seed)
    # One thread each, and a thread that waits gives its core away: the variables are read when torch is loaded.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    failures = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(run, job, grading): job for job in todo}
        try:
            for done in as_completed(pending):
                job, error = pending[done], done.exception()
                if error:
                    failures.append(f"{job.name}: {error!r}")
                    continue
                report["runs"][job.name] = {"job": asdict(job), "settings": settings_of(job), **done.result()}
                if path:
                    write_json(path, report)
                print(job.name, done.result()["conditions"].get("clean"), file=sys.stderr, flush=True)
        except BaseException:  # an interruption does not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        sys.exit("These runs failed, the others are kept:\n" + "\n".join(failures))
    return report


def _plain(grading: Grading) -> dict[str, Any]:
    """As JSON has it, without what does not change a grade."""
    plain = {key: value for key, value in asdict(grading).items() if key != "models"}
    return {**plain, "conditions": list(grading.conditions)}

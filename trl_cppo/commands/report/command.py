# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""
A page that shows what a model sees: images and views, each token's entropy shift, the perception tokens.

    python -m trl_cppo report --model cppo-digits --dataset digits --num_rows 16 --output report.html
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import HfArgumentParser
from transformers.utils import logging

from ...config import CPPOConfig, as_in_training
from ...method.image_size import check_limits
from ..line import ShortErrors, stop
from ..loading import DIGITS, check_folder, load_rewards, load_split
from ..rollouts import Rollout
from ..view_scoring import score_views
from .completions import GivenCompletion, prompt_text, read_completions
from .page import render
from .rows import Row, Settings


@dataclass
class ReportArguments:
    """What to show. The settings of views and scores are those of CPPOConfig, with its defaults."""

    model: str = field(default="cppo-digits", metadata={"help": "Model or adapter: Hub id or local folder."})
    dataset: str = field(
        default=DIGITS, metadata={"help": "Data set: Hub id, local folder, or 'digits', the embedded one."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The Hub data set's configuration."})
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    num_rows: int = field(default=16, metadata={"help": "How many rows to show, from the first on."})
    output: str = field(default="report.html", metadata={"help": "The page to write."})
    compare: str | None = field(
        default=None,
        metadata={
            "help": "A second model, which scores the same completions on the same views: after, say, the first."
        },
    )
    completions: str | None = field(
        default=None,
        metadata={
            "help": "Parquet or JSON-lines file of completions to score, such as a table that log_completions wrote: "
            "column 'completion', and 'dataset_row' or 'row' for its place in the split. Default: --model writes them."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards to show, by the names that trl-cppo train takes. Default: none; for digits, the sum."
        },
    )
    sample: bool = field(default=False, metadata={"help": "Sample the completions instead of decoding greedily."})
    batch_size: int = field(default=4, metadata={"help": "Rows in one forward. Views do not depend on it."})
    dtype: str = field(
        default="float32", metadata={"help": "Of the weights, as in training; 'auto' as they are saved."}
    )
    seed: int = field(default=42, metadata={"help": "Of the views and of sampling."})
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling and of the log-probs and entropies, as in training."}
    )
    max_completion_length: int | None = as_in_training("max_completion_length")
    max_pixels: int | None = as_in_training("max_pixels")
    min_pixels: int | None = as_in_training("min_pixels")
    information_preserving: list[str] = as_in_training("information_preserving")
    information_removing: list[str] = as_in_training("information_removing")
    perception_token_ratio: float | None = as_in_training("perception_token_ratio")
    perception_score: str = as_in_training("perception_score")
    min_entropy_shift: float = as_in_training("min_entropy_shift")
    cpl_divergence: str = as_in_training("cpl_divergence")

    def __post_init__(self):
        for name in ("num_rows", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"--temperature must be positive; got {self.temperature}. Without --sample decoding is greedy."
            )
        check_limits(self.max_pixels, self.min_pixels)
        if not Path(self.output).resolve().parent.is_dir():
            raise FileNotFoundError(f"--output: there is no folder {Path(self.output).resolve().parent}.")
        check_folder("--model", self.model)
        check_folder("--compare", self.compare)

    def scoring_settings(self) -> dict[str, Any]:
        """The fields that CPPOConfig takes by the same name."""
        names = [spec.name for spec in fields(self) if spec.name in CPPOConfig.__dataclass_fields__]
        return {name: getattr(self, name) for name in names}


@dataclass
class _Job:
    """The rows of the report: their places in the split, and the completions where they are given."""

    dataset: Dataset
    row_numbers: list[int]
    given: list[GivenCompletion] | None
    reward_funcs: list[Callable]

    @classmethod
    def from_arguments(cls, args: ReportArguments) -> "_Job":
        dataset = load_split(args.dataset, args.split, config=args.dataset_config)
        if args.completions is not None:
            given = read_completions(args.completions, dataset, args.num_rows)
            return cls(dataset, [completion.row for completion in given], given, [])
        names = args.reward_funcs or (["trl_cppo.digits.sum_reward"] if args.dataset == DIGITS else None)
        rewards = load_rewards(names)[0] if names else []
        return cls(dataset, list(range(min(args.num_rows, len(dataset)))), None, rewards)


def _score(args: ReportArguments, job: _Job, model: str, completions: list[list[int]] | None) -> list[Rollout]:
    """All rows by one model; without completions it writes them, or takes the given texts."""
    if completions is None and job.given is not None:
        completions = [completion.text for completion in job.given]
    return score_views(
        model,
        None,
        job.dataset,
        completions,
        args.batch_size,
        job.row_numbers,
        source=f"{args.dataset} ({args.split})",
        progress=f"Scoring by {Path(model).name}",
        reward_funcs=job.reward_funcs,
        sample=args.sample,
        dtype=args.dtype,
        **args.scoring_settings(),
    )


def _check_same_tokens(first: list[Rollout], second: list[Rollout], args: ReportArguments) -> None:
    texts = [[[token.text for token in rollout.tokens] for rollout in rollouts] for rollouts in (first, second)]
    if texts[0] != texts[1]:
        raise ValueError(
            f"--compare: {args.compare} and {args.model} do not share a tokenizer, so tokens cannot be compared."
        )


def make_page(args: ReportArguments) -> str:
    """
    Score the rows and render the page.

    Raises:
        `ValueError`, `OSError`, `ImportError`, `AttributeError`: saying which argument, file or row is wrong.
    """
    job = _Job.from_arguments(args)
    by_model = [_score(args, job, args.model, None)]
    if args.compare is not None:
        by_model.append(_score(args, job, args.compare, [rollout.ids for rollout in by_model[0]]))
        _check_same_tokens(*by_model, args)
    rows = []
    for place, rollouts in enumerate(zip(*by_model, strict=True)):
        example = job.dataset[job.row_numbers[place]]
        given = job.given[place] if job.given is not None else None
        rows.append(
            Row(
                number=job.row_numbers[place],
                prompt=prompt_text(example["prompt"]),
                solution=_text(example.get("solution")),
                rollouts=list(rollouts),
                rewards=given.rewards if given else rollouts[0].rewards,
                advantage=given.advantage if given else None,
            )
        )
    shown = {name: str(value) for name, value in args.scoring_settings().items()}
    source = args.completions or f"{args.model}, {'sampled' if args.sample else 'greedy'}"
    models = [args.model, *([args.compare] if args.compare else [])]
    return render(rows, Settings(models, args.dataset, args.split, {"completions": source, **shown}))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


class _Parser(ShortErrors, HfArgumentParser):
    """That of transformers, with errors of one line."""


def make_parser(program: str) -> HfArgumentParser:
    return _Parser(ReportArguments, prog=program)


def main(arguments: list[str], program: str = "trl-cppo report") -> None:
    """Make the page that the command line's arguments ask for."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        [args] = make_parser(program).parse_args_into_dataclasses(arguments)
        page = make_page(args)
        Path(args.output).write_text(page, encoding="utf-8")
    except (ValueError, OSError, ImportError, AttributeError) as error:
        stop(program, error)
    print(f"{args.output}: {len(page.encode()) / 1e6:.1f} MB. Open it in a browser; it needs no other file.")

# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What a model says of completions behind an image and behind its views, by the trainer's own code.

Shapes: `B` rows of a batch, `N` of them with an image, `T` completion tokens.
"""

import functools
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from trl.trainer.utils import get_callable_name

from ..config import CPPOConfig
from ..method.losses import token_scores
from ..method.request import ScoringRequest, ViewPair, split_scores
from ..method.view_maker import ViewMaker
from ..method.views import View, takes_other
from ..run.rows.checks import ROW_PLACE, LocatedRows, RowPlace, images_of
from ..run.token_text import TokenTexts
from ..run.weights import load_model
from ..trainer import CPPOTrainer
from .rollouts import NamedViews, Rollout, TokenScores

if TYPE_CHECKING:
    from peft import PeftModel


# What the trainer's constructor looks for; the rows themselves are handed to it one batch at a time.
_NEIGHBOURS = 16  # rows that are looked through for another image
_STAND_IN = {"prompt": [{"role": "user", "content": ""}], "images": []}


class _NamingViewMaker:
    """Makes views by the row's number in the report, so that they do not depend on the batch, and notes their names."""

    def __init__(
        self,
        maker: ViewMaker,
        preserving: list[str],
        removing: list[str],
        others: Callable[[int], Sequence[Any]],
    ):
        self._others = others
        self._drawn: list[str] = []
        views = [*zip(preserving, maker.preserving, strict=True), *zip(removing, maker.removing, strict=True)]
        noting = [self._noting(name, view) for name, view in views]
        self._maker = ViewMaker(noting[: len(preserving)], noting[len(preserving) :], maker.seed, maker.read)
        self.takes_others = False  # from the batch: they would depend on it
        self.row_numbers: list[int] = []
        self.made: dict[int, NamedViews] = {}  # by the row's place in the batch

    def _noting(self, name: str, view: View) -> View:
        @functools.wraps(view)
        def noted(*args: Any) -> Image.Image:
            self._drawn.append(name)
            return view(*args)

        noted.takes_other = takes_other(view)  # which a class may say for its instances
        return noted

    def __call__(self, images: list[Any], *key: str | int, others: Sequence[Any] = ()) -> ViewPair:
        row = key[-1]  # the prompt's place in the batch: there is one completion of each
        others = self._others(self.row_numbers[row]) if self._maker.takes_others else ()
        self._drawn.clear()
        pair = self._maker(images, "report", self.row_numbers[row], others=others)
        names = list(zip(self._drawn[::2], self._drawn[1::2], strict=True))
        self.made[row] = NamedViews([self._maker.read_image(image) for image in images], pair, names)
        return pair


def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Stands in where the user names no reward: the trainer wants one, the report shows none."""
    return [0.0] * len(completions)


class ViewScorer:
    """
    Scores completions of a model on images and views as [`CPPOTrainer`] does in training: it asks one.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Hub id or local folder, of a model or an
            adapter, or the model itself.
        dataset ([`~datasets.Dataset`]): rows as the trainer takes them.
        processor ([`~transformers.ProcessorMixin`], *optional*): the model's; by default the one that is saved with it.
        reward_funcs (`list[Callable]`, *optional*): rewards of the completions.
        sample (`bool`, *optional*, defaults to `False`): sample at `settings["temperature"]`; else decode greedily.
        dtype (`str`, *optional*, defaults to `"float32"`): of the weights of a model that is loaded: `"float32"`, `"bfloat16"`,
            `"float16"` or `"auto"`.
        **settings: fields of [`CPPOConfig`], such as `seed`, `temperature`, `perception_token_ratio`. The two lists of views
            may be one callable each, as [`CPPOTrainer`] takes them.
    """

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        dataset: Dataset,
        processor: ProcessorMixin | None = None,
        reward_funcs: list[Callable] | None = None,
        sample: bool = False,
        dtype: str = "float32",
        **settings: Any,
    ):
        if settings.get("beta"):
            raise ValueError("No reference model is asked here: leave beta out.")
        kinds = ("information_preserving", "information_removing")
        for kind in kinds:
            if isinstance(settings.get(kind), str):
                settings[kind] = [settings[kind]]
        views = {kind: settings.pop(kind) for kind in kinds if callable(settings.get(kind))}
        gpu = torch.cuda.is_available()
        with tempfile.TemporaryDirectory() as folder:  # the trainer makes it, and writes nothing
            args = CPPOConfig(
                output_dir=folder,
                per_device_train_batch_size=2,
                num_generations=2,
                num_generations_eval=1,
                gate_by_advantage=False,
                gradient_checkpointing=False,
                use_cpu=not gpu,
                bf16=gpu and torch.cuda.is_bf16_supported(),
                report_to="none",
                generation_kwargs=None if sample else {"do_sample": False},
                **settings,
            )
            self._trainer = CPPOTrainer(
                model=load_model(model, dtype) if isinstance(model, str) else model,
                reward_funcs=reward_funcs or no_reward,
                args=args,
                train_dataset=dataset,
                processing_class=processor,
                **views,
            )
        names = [
            [get_callable_name(views[kind]) if kind in views else name for name in getattr(args, kind)]
            for kind in kinds
        ]
        self.rows: Any = dataset  # whose places row numbers are
        self._view_maker = _NamingViewMaker(self._trainer.view_maker, *names, self._others_of)
        self._trainer.view_maker = self._view_maker
        self.tokenizer = self._trainer.processing_class.tokenizer
        self._token_texts = TokenTexts(self.tokenizer)

    def __call__(
        self, rows: list[dict[str, Any]], row_numbers: list[int], completions: list[list[int]] | None = None
    ) -> list[Rollout]:
        """
        Score one completion of each row.

        Args:
            rows (`list[dict]` of length B): of the data set.
            row_numbers (`list[int]` of length B): their places in the data set, which the views are drawn by.
            completions (`list[list[int]]`, *optional*): the tokens of each; `None` lets the model write them.

        Raises:
            `ValueError`: naming row and column, for a row that cannot be read.
        """
        self._view_maker.row_numbers, self._view_maker.made = row_numbers, {}
        batch, request = self._trainer.score_views(rows, completions)
        lengths = batch["completion_mask"].sum(dim=1).tolist()
        rollouts = []
        for row, scores in enumerate(self._scores(request, lengths)):
            ids = batch["completion_ids"][row, : lengths[row]].tolist()
            views = self._view_maker.made.get(row)
            rollouts.append(Rollout(ids, self._token_texts(ids), scores, views, self._rewards_of(row)))
        return rollouts

    def _others_of(self, number: int) -> list[Any]:
        """For views that take another prompt's image: those of the first row behind this one that has some."""
        for step in range(1, min(len(self.rows), 1 + _NEIGHBOURS)):
            images = images_of(self.rows[(number + step) % len(self.rows)])[1]
            if images:
                return list(images)
        return []

    def ids_of(self, number: int, completion: str | list[int]) -> list[int]:
        """
        The tokens of a row's completion; of an empty text the end token alone.

        Raises:
            `ValueError`: naming the row, for no tokens.
        """
        if isinstance(completion, str):
            completion = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
            return completion or [self.tokenizer.eos_token_id]
        if not completion or not all(
            isinstance(token, Integral) and 0 <= token < len(self.tokenizer) for token in completion
        ):
            raise ValueError(
                f"The completion of row {number} must be a text or a list of token ids, got {completion!r:.80}."
            )
        return completion

    def _rewards_of(self, row: int) -> dict[str, float]:
        if self._trainer.reward_funcs == [no_reward]:
            return {}
        values = zip(self._trainer.reward_func_names, self._trainer.rewards[row].tolist(), strict=True)
        return {name: value for name, value in values if not math.isnan(value)}  # NaN: the reward did not apply

    def _scores(self, request: ScoringRequest, lengths: list[int]) -> list[TokenScores]:
        """The scores of the B rows, each cut to its own length."""
        logps, entropies = request.logps.float(), request.entropies.float()
        by_row = [
            TokenScores(logps[row, :length].tolist(), entropies[row, :length].tolist())
            for row, length in enumerate(lengths)
        ]
        scores = split_scores(logps, entropies, request.rows)
        _, preserved, removed = scores.logps
        columns = {
            "preserved_logps": preserved,
            "removed_logps": removed,
            "removed_entropies": scores.removed_entropies,
            "divergences_preserved": request.divergences[0],
            "divergences_removed": request.divergences[1],
            "scores": token_scores(scores.entropies, scores.removed_entropies, self._trainer.args.perception_score),
            "selected": request.selected,
        }
        for place, row in enumerate(request.rows):
            for name, values in columns.items():
                setattr(by_row[row], name, values[place, : lengths[row]].tolist())
        return by_row


def score_views(
    model: "str | PreTrainedModel | PeftModel",
    processor: ProcessorMixin | None,
    rows: Dataset | list[dict[str, Any]],
    completions: list[str] | list[list[int]] | None = None,
    batch_size: int = 4,
    row_numbers: list[int] | None = None,
    source: str = "rows",
    progress: str | None = None,
    **settings: Any,
) -> list[Rollout]:
    """
    What a model sees in images: of one completion of each row, every token's log-probability and entropy behind the image, behind
    an information-preserving and an information-removing view, the divergences between them, and the perception tokens.

    ```python
    from trl_cppo import score_views

    [rollout] = score_views(model, processor, [{"prompt": [{"role": "user", "content": question}], "images": [image]}])
    for token, shift, selected in zip(rollout.tokens, rollout.scores.shifts, rollout.scores.selected):
        print(f"{token.text!r:12} {shift:+.2f} nats {'*' * selected}")
    ```

    A [`CPPOTrainer`] in evaluation does it. The global generators, the model's mode and configuration, and the processor's padding
    side are afterwards as they were; transformers' state of the process (`accelerate`'s mixed precision) is not, so do not call it
    while another trainer trains.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): as [`ViewScorer`] takes it.
        processor ([`~transformers.ProcessorMixin`], *optional*): the model's; `None` for the one that is saved with it.
        rows ([`~datasets.Dataset`] or `list[dict]`): conversational `prompt`, and `images` or `image`. A row without an image has
            no views.
        completions (`list`, *optional*): of each row that is scored, as text or token ids. By default the model writes them, greedily.
        batch_size (`int`, *optional*, defaults to `4`): rows in one forward. Results do not depend on it.
        row_numbers (`list[int]`, *optional*): which of the rows, in this order; by default all. Views are drawn by them, and errors
            name them.
        source (`str`, *optional*, defaults to `"rows"`): what errors call the rows.
        progress (`str`, *optional*): shows a bar of batches with this description.
        **settings: see [`ViewScorer`], such as `seed=0`, `information_removing=["patch_blackening"]`, `dtype="auto"`.

    Returns:
        `list[Rollout]`: one a row that is scored, in their order.

    Raises:
        `ValueError`: naming row and column, for a row that cannot be read; if there are not as many completions as rows, or one
            is empty; for a `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    numbers = list(range(len(rows))) if row_numbers is None else row_numbers
    if completions is not None and len(completions) != len(numbers):
        raise ValueError(f"There are {len(completions)} completions for {len(numbers)} rows. Pass one a row, or none.")
    if isinstance(rows, Dataset):
        dataset, located = rows, LocatedRows(rows, source)
    else:
        rows = _with_equal_columns(rows)
        dataset = Dataset.from_list([_STAND_IN])
        located = [{**row, ROW_PLACE: RowPlace(number, source)} for number, row in enumerate(rows)]
    rollouts = []
    with _as_it_was(model, processor):
        scorer = ViewScorer(model, dataset, processor, per_device_eval_batch_size=batch_size, **settings)
        scorer.rows = located
        ids = None
        if completions is not None:
            ids = [scorer.ids_of(number, given) for number, given in zip(numbers, completions, strict=True)]
        for start in tqdm(range(0, len(numbers), batch_size), desc=progress, unit="batch", disable=progress is None):
            part = slice(start, start + batch_size)
            batch = [located[number] for number in numbers[part]]
            rollouts += scorer(batch, numbers[part], None if ids is None else ids[part])
    return rollouts


def _with_equal_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their images in `images`, as TRL reads the columns of a batch off its first row; prompts may hold theirs."""
    found = [images_of(row) for row in rows]
    if any(column == "prompt" and images for column, images in found):
        return rows
    bare = [{key: value for key, value in row.items() if key not in ("image", "images")} for row in rows]
    return [{**row, "images": list(images)} for row, (_, images) in zip(bare, found, strict=True)]


@contextmanager
def _as_it_was(model: Any, processor: ProcessorMixin | None) -> Iterator[None]:
    """Undo what making and asking a trainer changes of the caller's."""
    states = np.random.get_state(), random.getstate()
    modules = [] if isinstance(model, str) else [(module, module.training) for module in model.modules()]
    config = {} if isinstance(model, str) else dict(vars(model.config))
    padding = None if processor is None else processor.tokenizer.padding_side
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        for module, training in modules:
            module.training = training
        if not isinstance(model, str):
            vars(model.config).clear()
            vars(model.config).update(config)
        if processor is not None:
            processor.tokenizer.padding_side = padding

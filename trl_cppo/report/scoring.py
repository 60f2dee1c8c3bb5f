# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Scoring rollouts on their images and views with the trainer's own code.

Shapes: `B` rows of a batch, `N` of them with an image, `T` completion tokens.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from PIL import Image

from ..config import CPPOConfig
from ..losses import token_scores
from ..objective import Objective
from ..scoring_request import ViewPair, split_scores
from ..token_text import TokenText, TokenTexts
from ..trainer import CPPOTrainer
from ..view_maker import ViewMaker
from ..views import View
from ..weights import load_model


@dataclass(frozen=True)
class NamedViews:
    """The images of a row, their views, and the name of the view that each was drawn from."""

    images: list[Image.Image]
    pair: ViewPair
    names: list[tuple[str, str]]  # preserving, removing


@dataclass
class TokenScores:
    """What one model says of a completion's T tokens; without an image, `logps` and `entropies` alone are filled."""

    logps: list[float]
    entropies: list[float]  # nats
    preserved_logps: list[float] = field(default_factory=list)
    removed_logps: list[float] = field(default_factory=list)
    removed_entropies: list[float] = field(default_factory=list)
    divergences_preserved: list[float] = field(default_factory=list)
    divergences_removed: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # what ranks the tokens
    selected: list[bool] = field(default_factory=list)

    @property
    def has_views(self) -> bool:
        return bool(self.removed_entropies)

    @property
    def shifts(self) -> list[float]:
        """ΔH = H⁻ − H of each token, in nats; none without views."""
        if not self.has_views:
            return []
        return [removed - h for removed, h in zip(self.removed_entropies, self.entropies, strict=True)]


@dataclass
class Rollout:
    """One completion of one data set row and its scores."""

    ids: list[int]
    tokens: list[TokenText]
    scores: TokenScores
    views: NamedViews | None
    rewards: dict[str, float]


class _NamingViewMaker:
    """Makes views by the row's number in the report, so that they do not depend on the batch, and notes their names."""

    def __init__(self, maker: ViewMaker, preserving: list[str], removing: list[str]):
        self._drawn: list[str] = []
        views = [*zip(preserving, maker.preserving, strict=True), *zip(removing, maker.removing, strict=True)]
        noting = [self._noting(name, view) for name, view in views]
        self._maker = ViewMaker(noting[: len(preserving)], noting[len(preserving) :], maker.seed, maker.read)
        self.row_numbers: list[int] = []
        self.made: dict[int, NamedViews] = {}  # by the row's place in the batch

    def _noting(self, name: str, view: View) -> View:
        def noted(image: Image.Image, generator: torch.Generator) -> Image.Image:
            self._drawn.append(name)
            return view(image, generator)

        return noted

    def __call__(self, images: list[Any], row: int) -> ViewPair:
        self._drawn.clear()
        pair = self._maker(images, "report", self.row_numbers[row])
        names = list(zip(self._drawn[::2], self._drawn[1::2], strict=True))
        self.made[row] = NamedViews([self._maker._read(image) for image in images], pair, names)
        return pair


@dataclass(frozen=True)
class _EveryToken(Objective):
    """The page shows the divergences of every token, so these count as selected; what the loss would select is noted."""

    noted: list[torch.Tensor] = field(default_factory=list)

    def select(self, entropies: torch.Tensor, removed_entropies: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.noted[:] = [super().select(entropies, removed_entropies, mask)]
        return mask


class _ScoringTrainer(CPPOTrainer):
    """A CPPOTrainer in evaluation that hands out what its loss computes on the way."""

    given: list[list[int]] | None = None
    selections: list[torch.Tensor]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args, **kwargs):
        if self.given is not None:
            return self.given, None
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _generation_key(self) -> tuple:
        return ()  # leaves the row's place in the batch, which _NamingViewMaker replaces

    def _calculate_rewards(self, *args, **kwargs) -> torch.Tensor:
        self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards

    def _contrastive_perception_loss(
        self, inputs: dict[str, Any], request: Any, policy_loss: torch.Tensor
    ) -> torch.Tensor:
        self.batch, self.request = inputs, request
        return super()._contrastive_perception_loss(inputs, request, policy_loss)

    def _objective(self) -> Objective:
        return _EveryToken(**vars(super()._objective()), noted=self.selections)


def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """Stands in where the user names no reward: the trainer wants one, the report shows none."""
    return [0.0] * len(completions)


class Scorer:
    """
    Scores completions of a model on images and views as [`CPPOTrainer`] does in training: it is one.

    Args:
        model (`str`): Hub id or local folder, of a model or an adapter.
        dataset ([`~datasets.Dataset`]): the rows of the report, as the trainer takes them.
        reward_funcs (`list[Callable]`): rewards of the completions; may be empty.
        sample (`bool`): sample at `settings["temperature"]`; else decode greedily.
        dtype (`str`): of the weights: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`.
        **settings: fields of [`CPPOConfig`], such as `seed`, `temperature`, `perception_token_ratio`.
    """

    def __init__(
        self,
        model: str,
        dataset: Dataset,
        reward_funcs: list[Callable],
        sample: bool = False,
        dtype: str = "float32",
        **settings: Any,
    ):
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
            self._trainer = _ScoringTrainer(
                model=load_model(model, dtype),
                reward_funcs=reward_funcs or no_reward,
                args=args,
                train_dataset=dataset,
            )
        self._trainer.selections = []
        self._trainer.model.eval()
        self._view_maker = _NamingViewMaker(
            self._trainer.view_maker, args.information_preserving, args.information_removing
        )
        self._trainer.view_maker = self._view_maker
        self.tokenizer = self._trainer._tokenizer
        self._token_texts = TokenTexts(self.tokenizer)

    def __call__(
        self, examples: list[dict[str, Any]], row_numbers: list[int], given: list[list[int]] | None = None
    ) -> list[Rollout]:
        """
        Score one completion of each row.

        Args:
            examples (`list[dict]` of length B): rows of the data set.
            row_numbers (`list[int]` of length B): their places in the data set, which the views are drawn by.
            given (`list[list[int]]`, *optional*): the tokens of each completion; `None` lets the model write them.

        Raises:
            `ValueError`: naming row and column, for a row that cannot be read.
        """
        trainer = self._trainer
        trainer.given = given
        self._view_maker.row_numbers, self._view_maker.made = row_numbers, {}
        trainer.prediction_step(trainer.model, examples, prediction_loss_only=True)
        lengths = trainer.batch["completion_mask"].sum(dim=1).tolist()
        by_row = self._scores(lengths)
        rollouts = []
        for row, length in enumerate(lengths):
            ids = trainer.batch["completion_ids"][row, :length].tolist()
            rollouts.append(
                Rollout(
                    ids, self._token_texts(ids), by_row[row], self._view_maker.made.get(row), self._rewards_of(row)
                )
            )
        return rollouts

    def encode(self, text: str) -> list[int]:
        """The tokens of a completion's text; the end token alone where it is empty."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] or [self.tokenizer.eos_token_id]

    def _rewards_of(self, row: int) -> dict[str, float]:
        if self._trainer.reward_funcs == [no_reward]:
            return {}
        values = zip(self._trainer.reward_func_names, self._trainer.rewards[row].tolist(), strict=True)
        return {name: value for name, value in values if not math.isnan(value)}  # NaN: the reward did not apply

    def _scores(self, lengths: list[int]) -> list[TokenScores]:
        """The scores of the B rows, each cut to its own length."""
        request, args = self._trainer.request, self._trainer.args
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
            "scores": token_scores(scores.entropies, scores.removed_entropies, args.perception_score),
            "selected": self._trainer.selections[0],
        }
        for place, row in enumerate(request.rows):
            for name, values in columns.items():
                setattr(by_row[row], name, values[place, : lengths[row]].tolist())
        return by_row

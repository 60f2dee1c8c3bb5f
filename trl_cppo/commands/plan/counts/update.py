# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""CPPOTrainer's own update, run on a model whose weights have a shape and no data."""

import functools
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel

from .... import digits
from ....config import CPPOConfig
from ....scoring import shared_prefix
from ....scoring.families import family_of
from ....scoring.parts import trains_sight_alone
from ....trainer import CPPOTrainer
from .batch import MicroBatch, Rollout, make_batch, prompt_of, token_ids
from .counting import count
from .images import ImageMaker, Sizes, image_tokens
from .meta_mode import ShapesOnly, head_of_a_gpu, kernels_of_a_gpu

_FEW = 8  # tokens: a cache grows evenly with them


@dataclass(frozen=True)
class UpdateCounts:
    """
    Of one micro-batch's loss and backward.

    Attributes:
        flops (`int`): of products, convolutions and attention, the latter in full squares.
        saved_bytes (`int`): kept between forward and backward, without weights.
        peak_bytes (`int`): the most that activations, their gradients and temporary tensors take at once, without weights and
            their gradients; 0 for real tensors, which do not tell.
        tokens (`int`): that the text model reads.
        reached (`int`): weights that got a gradient: of some models, the last layers of the vision tower are unused.
    """

    flops: int
    saved_bytes: int
    peak_bytes: int
    tokens: int
    reached: int


class UpdateBench:
    """
    Counts updates of one model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): with TRL's fused head, on the meta device; or real, for comparison.
        images ([`~trl_cppo.commands.plan.counts.images.ImageMaker`]): for the same device.
        divergence (`str`): `cpl_divergence`.
        share_prefix (`str` or `bool`), router_aux_loss_coef (`float`, *optional*): as in CPPOConfig. The auxiliary loss itself is not
            counted; rollouts do not share a prefix with it.

    Attributes:
        plain_because (`str`, *optional*): why rollouts are in rows of their own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        images: ImageMaker,
        divergence: str = "k3",
        share_prefix: str | bool = True,
        router_aux_loss_coef: float | None = None,
    ):
        self.model, self.images = model, images
        self.is_meta = next(model.parameters()).is_meta
        self._trainer = toy_trainer()
        self._trainer.view_processor = images
        self._trainer.args.cpl_divergence = divergence
        self._prefix, self.plain_because = None, "share_prefix is False"
        if share_prefix is not False:
            own = model.config.get_text_config().to_dict().get("router_aux_loss_coef", 0.0)
            has_aux_loss = (own if router_aux_loss_coef is None else router_aux_loss_coef) != 0
            self.plain_because = shared_prefix.packing_obstacle([model], self._trainer.args, has_aux_loss, False)
        if self.plain_because is None:
            self._prefix = shared_prefix.SharedPrefix(model, trains_sight_alone(model), always=share_prefix is True)
            self._prefix.attach(model)
        self._image_tokens: dict[Sizes, int] = {}
        self._forward_peaks: dict[tuple[Rollout, int], int] = {}

    def image_tokens(self, sizes: Sizes) -> int:
        """Of some images of a row, in its prompt."""
        if sizes not in self._image_tokens:
            with self._as_on_a_gpu(), ShapesOnly(self.model.parameters()), torch.no_grad():
                self._image_tokens[sizes] = image_tokens(self.model, self.images([sizes]))
        return self._image_tokens[sizes]

    def count(self, rollout: Rollout, micro: MicroBatch) -> UpdateCounts:
        """The update of a micro-batch. Its gradients stay in the weights."""
        config = self.model.config
        prompt = prompt_of(config, rollout, self.image_tokens)
        batch = make_batch(config, rollout, prompt, micro, self.images)
        self._trainer.shared_prefix = self._prefix if micro.shared else None
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)  # those of earlier micro-batches
        mode = ShapesOnly([*self.model.parameters(), *(parameter.grad for parameter in trained)])
        with self._as_on_a_gpu():
            counts = count(self.model, lambda: self._loss(batch), mode if self.is_meta else None)
        tokens = (len(prompt) + rollout.completion) * (micro.rows + 2 * micro.gated * micro.prompts)
        ratio = self._prefix.token_ratio if micro.shared else 1
        return UpdateCounts(
            flops=counts.flops,
            saved_bytes=counts.saved_bytes,
            peak_bytes=max(mode.peaks.values(), default=0),
            tokens=round(ratio * tokens),
            reached=sum(parameter.numel() for parameter in trained if parameter.grad._version),
        )

    @property
    def unpacked(self) -> str | None:
        """Why the last micro-batch that was to be packed was not."""
        return None if self._prefix is None else self._prefix.plain_because

    def shares(self, rows: int) -> bool:
        """Whether a micro-batch of so many rows is scored behind one copy of each prompt, as far as the model decides it."""
        return self.plain_because is None and rows > 1

    def forward_flops(self, rollout: Rollout) -> int:
        """Of scoring a rollout without a gradient, in a row of its own."""
        return self._forward(rollout, 1).flops

    def _forward(self, rollout: Rollout, rows: int) -> ShapesOnly:
        config = self.model.config
        prompt = prompt_of(config, rollout, self.image_tokens)
        batch = make_batch(config, rollout, prompt, MicroBatch(rows, 1), self.images)
        self._trainer.shared_prefix = None
        mode = ShapesOnly(self.model.parameters())
        with self._as_on_a_gpu(), torch.no_grad(), mode:
            self._loss(batch)
        return mode

    def sampling_bytes(self, rollout: Rollout, rows: int) -> int:
        """
        The most that transformers' sampler takes besides weights: in the forward of all prompts, or by its KV cache at the end.
        GRPOTrainer gives it all rows of a generation batch at once.
        """
        prompt = len(prompt_of(self.model.config, rollout, self.image_tokens))
        first = Rollout(rollout.text, rollout.sizes, 1)
        one, two = (self._forward_peak(first, number) for number in (1, 2))
        at_prompts = one + (rows - 1) * (two - one) + rows * self.cache_bytes(prompt)
        cache = rows * self.cache_bytes(prompt + rollout.completion)
        return max(cache, at_prompts)

    def _forward_peak(self, rollout: Rollout, rows: int) -> int:
        if (rollout, rows) not in self._forward_peaks:
            self._forward_peaks[rollout, rows] = self._forward(rollout, rows).peaks.get("", 0)
        return self._forward_peaks[rollout, rows]

    def cache_bytes(self, tokens: int) -> int:
        """The keys and values that sampling keeps of a row of so many tokens."""
        return self._cache_of_few * tokens // _FEW

    @functools.cached_property
    def _cache_of_few(self) -> int:
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        decoder = model.get_submodule(
            family_of(model).language_model
        ).eval()  # with checkpointing none are kept in training
        _, word = token_ids(model.config)
        mode = ShapesOnly(self.model.parameters())
        with self._as_on_a_gpu(), torch.no_grad(), mode if self.is_meta else nullcontext():
            kept = decoder(input_ids=torch.full((1, _FEW), word), use_cache=True).past_key_values
        decoder.train()
        return sum(part.nbytes for layer in kept.layers for part in (layer.keys, layer.values))

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        return self._trainer.compute_loss(self.model, batch)

    @contextmanager
    def _as_on_a_gpu(self) -> Iterator[None]:
        with head_of_a_gpu():
            if self.is_meta:
                with kernels_of_a_gpu(), believed_prompts(), no_collection():
                    yield
            else:
                yield


def toy_trainer() -> CPPOTrainer:
    """A trainer whose own model is a toy: `compute_loss` is given the model."""
    with tempfile.TemporaryDirectory() as folder:
        args = CPPOConfig(
            folder, use_cpu=True, bf16=False, per_device_train_batch_size=8, report_to="none", share_prefix=True
        )
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": digits.task.PROMPT}]}]
        trainer = CPPOTrainer(
            model=digits.build_model(), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
            train_dataset=Dataset.from_list([{"prompt": message, "images": []}]),
            processing_class=digits.build_processor(),
        )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which does not run here
    return trainer


@contextmanager
def believed_prompts() -> Iterator[None]:
    """While this is open, the pixels of a prompt's rows, which have no data, are taken for the same."""

    def of_one_key(scoring: dict[str, Any], keys: list[Any], pixels_by_row: bool) -> list[list[int]]:
        return [[row for row, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]

    with mock.patch.object(shared_prefix, "same_prompts", of_one_key):
        yield


@contextmanager
def no_collection() -> Iterator[None]:
    """Tensors in reference cycles stay until the collector runs, which is never at the same place."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

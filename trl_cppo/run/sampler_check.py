# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Whether what sampled is what is trained: vLLM's log-probabilities of the sampled tokens against the trainer's own.

Shapes: `B` rows of a micro-batch, `T` completion tokens.
"""

import torch
from accelerate import Accelerator
from transformers.utils import logging
from trl import GRPOConfig

WARN_FROM = 1 / 3  # of the limit
STOP_ALWAYS = 10  # times the limit: no truncation or penalty that people train with makes as much
DIFFERENCE = "sampling/sampling_logp_difference/mean"  # TRL's name for it; TRL logs it with the correction only

# Of vLLM's sampling parameters.
_RESHAPING = frozenset({
    "allowed_token_ids", "frequency_penalty", "logit_bias", "logits_processors", "min_p", "min_tokens", "presence_penalty",
    "repetition_penalty", "structured_outputs", "temperature", "top_k", "top_p",
})  # fmt: skip

logger = logging.get_logger(__name__)


class SamplerMismatchError(RuntimeError):
    """What vLLM samples from is not what the trainer trains."""


class SamplerCheck:
    """
    Compares the two, at once for the first micro-batch of a run and then whenever the trainer logs.

    Behind another prompt, another image or other weights the two are worlds apart, and nothing else says so: the loss
    falls, and the reward may rise. docs/distributed.md has what was measured.

    Args:
        accelerator ([`~accelerate.Accelerator`]): sums over its processes.
        args ([`CPPOConfig`]): `max_sampling_logp_difference`, and what makes the two differ by intent.
    """

    def __init__(self, accelerator: Accelerator, args: GRPOConfig):
        self._accelerator = accelerator
        self._limit = args.max_sampling_logp_difference
        self._reshaped = reshaping_settings(args)
        self._sums: torch.Tensor | None = None
        self._checked = False

    def note(
        self, logps: torch.Tensor, sampled_logps: torch.Tensor, mask: torch.Tensor, num_images: list[int] | None = None
    ) -> None:
        """
        Take a micro-batch into account.

        Args:
            logps (`torch.Tensor` of shape `(B, T)`, float): the trainer's, of the policy that sampled.
            sampled_logps (`torch.Tensor` of shape `(B, T)`, float): vLLM's; NaN where it gave none.
            mask (`torch.Tensor` of shape `(B, T)`): the tokens that count.
            num_images (`list[int]`, *optional*): of each row. Rows with images are judged by themselves too: it is their
                prompts that go wrong, and among many of text alone nobody would see it.

        Raises:
            `SamplerMismatchError`: at the first micro-batch, as [`settle`].
        """
        difference = (logps.detach() - sampled_logps).abs()
        counted = mask.bool() & ~difference.isnan()
        by_row = torch.stack([difference.masked_fill(~counted, 0.0).sum(dim=1), counted.sum(dim=1)]).float()
        with_images = by_row.new_tensor([float(count > 0) for count in num_images or [0] * len(mask)])
        sums = torch.stack([by_row.sum(dim=1), (by_row * with_images).sum(dim=1)])  # of all rows, of those with images
        self._sums = sums if self._sums is None else self._sums + sums
        if not self._checked:
            self.settle()

    def settle(self) -> float | None:
        """
        The mean difference in nats of all that was noted since the last call, over all processes; `None` if nothing was.

        Raises:
            `SamplerMismatchError`: if it is above the limit. From a third of it on, and where the settings make vLLM sample
                from another distribution by intent, a warning.
        """
        if self._sums is None:
            return None
        sums = self._accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = None
        means = [(total / count, int(count)) for total, count in sums if count]
        if not means:
            return None
        self._checked = True
        worst, count = max(means)
        if self._limit is not None and not worst <= self._limit * WARN_FROM:
            self._report(worst, count)
        return means[0][0]

    def _report(self, mean: float, count: int) -> None:
        message = (
            f"vLLM's log-probabilities of {count} sampled tokens differ from the trainer's by {mean:.2g} nats on average. "
            "Rounding in bf16 makes some 0.001 to 0.05"
        )
        if self._reshaped and mean <= self._limit * STOP_ALWAYS:
            shown = ", ".join(self._reshaped)
            logger.warning_once(
                f"{message}; {shown} may make the rest, for vLLM then samples from another distribution."
            )
            return
        cause = (
            "the completions were sampled behind other prompts or images, or by other weights, than are trained. Is what vLLM "
            "loads (the model's name_or_path: weights and processor) what is trained? use_vllm=False trains meanwhile."
        )
        if mean <= self._limit:
            logger.warning_once(f"{message}: unless the sampler is quantized, {cause}")
            return
        raise SamplerMismatchError(
            f"{message} (max_sampling_logp_difference={self._limit}): {cause} For a quantized sampler raise the limit."
        )


def reshaping_settings(args: GRPOConfig) -> list[str]:
    """The settings under which vLLM's log-probabilities are by intent not those of the policy at its temperature."""
    neutral = {
        "top_p": (1.0,),
        "top_k": (0, -1, None),
        "min_p": (0.0, None),
        "repetition_penalty": (1.0,),
        "vllm_structured_outputs_regex": (None,),
    }
    # Other generation_kwargs say when to stop, and the like.
    reshaping = [f"generation_kwargs[{name!r}]" for name in args.generation_kwargs or {} if name in _RESHAPING]
    changed = [
        f"{name}={getattr(args, name)!r}" for name, values in neutral.items() if getattr(args, name) not in values
    ]
    return changed + reshaping

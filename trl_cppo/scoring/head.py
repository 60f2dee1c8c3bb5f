# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The exact KL at the perception tokens, computed where TRL's fused head computes the log-probabilities.

Shapes: `B` rows of the scoring batch, `S` its length, `T` completion tokens, `N` gated rows, `M` scored positions, `H` hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import trl.trainer.utils as trl_utils

from ..method.exact_kl import LogitTransform, exact_kl
from ..method.objective import Objective
from ..method.request import ScoringRequest, split_scores


@contextmanager
def observed_head(observe: Callable[[tuple, tuple], None]) -> Iterator[None]:
    """
    While this is open, call `observe(arguments, results)` of each call of TRL's fused head.

    The kernel is where the hidden states meet the head: ZeRO-3 has gathered it there, FSDP2 unsharded it, autocast and
    `cast_lm_head_to_fp32` are in force, and it is inside the model's forward, where sharded gradients have to begin.
    """
    kernel = trl_utils._ChunkedLogProbFunction

    def apply(*arguments: Any) -> tuple:
        results = kernel.apply(*arguments)
        observe(arguments, results)
        return results

    # Not a class: that is a reference cycle, which would keep the batch's tensors until the garbage collector runs.
    trl_utils._ChunkedLogProbFunction = SimpleNamespace(apply=apply)
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = kernel


def scored_positions(attention_mask: torch.Tensor, num_kept: int, num_scored: int) -> torch.Tensor:
    """
    Where each completion token stands among the positions that the fused head scores.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, S)`): of prompts and completions.
        num_kept (`int`): T.
        num_scored (`int`): M: all B · (S − 1) positions, or, on Triton devices, those of the attended completion tokens.

    Returns:
        `torch.Tensor` of shape `(B, T)`, int64; without meaning where nothing is attended.
    """
    scored = attention_mask.bool()[:, 1:].clone()
    scored[:, : scored.size(1) - num_kept] = False
    return head_positions(scored, num_scored)[:, -num_kept:]


def head_positions(labelled: torch.Tensor, num_scored: int) -> torch.Tensor:
    """
    Where each token stands among the `num_scored` positions of the fused head, of the shape of `labelled`, int64: all tokens
    are, or, on Triton devices, the labelled ones. Without meaning for the others.
    """
    if num_scored == labelled.numel():
        return torch.arange(num_scored, device=labelled.device).view_as(labelled)
    return (labelled.flatten().cumsum(0) - 1).clamp(min=0).view_as(labelled)


def kl_to_views(
    arguments: tuple, places: tuple[torch.Tensor, torch.Tensor, torch.Tensor], selected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL(anchor ‖ view) at the selected tokens, from what the fused head was given.

    Args:
        arguments (`tuple`): the arguments of the head's kernel: hidden states of shape `(M, H)`, weight, bias, targets,
            temperature, chunk size, soft cap, logit scale, names of outputs.
        places (`tuple` of three tensors of shape `(N, T)`, int64): where the tokens of the anchors, the preserving and the
            removing rows stand among M.
        selected (`torch.Tensor` of shape `(N, T)`, bool): the perception tokens.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: to the preserving and to the removing view, each of shape `(N, T)`,
            float32, 0 where nothing is selected. Gradient flows to hidden states and head.
    """
    hidden, weight, bias, _, temperature, chunk_size, softcap, scale, _ = arguments
    anchor, preserved, removed = (hidden[rows[selected]] for rows in places)
    divergences = exact_kl(
        anchor,
        torch.stack([preserved, removed]),
        weight,
        bias,
        LogitTransform(temperature, scale, softcap),
        chunk_size,
        trl_utils.maybe_gather_lm_head_ctx,
    )
    to_preserved, to_removed = (
        torch.zeros(selected.shape, dtype=kl.dtype, device=kl.device).masked_scatter(selected, kl)
        for kl in divergences
    )
    return to_preserved, to_removed


def answering_exact_kl(
    request: ScoringRequest,
    scoring: dict[str, Any],
    objective: Objective,
    positions: Callable[[int], torch.Tensor | None] | None = None,
) -> AbstractContextManager:
    """
    While this is open, the scoring forward fills in the request's selection and divergences ([`~trl_cppo.method.objective.Objective.answer`]).

    Args:
        request ([`ScoringRequest`]): of a loss.
        scoring (`dict[str, Any]`): the arguments of the scoring, with the view rows.
        objective ([`Objective`]): selects the perception tokens.
        positions (`Callable`, *optional*): see [`~trl_cppo.scoring.shared_prefix.SharedPrefix.positions`].
    """

    def observe(arguments: tuple, results: tuple) -> None:
        num_scored = len(arguments[0])
        places = None if positions is None else positions(num_scored)
        if places is None:
            places = scored_positions(scoring["attention_mask"], scoring["logits_to_keep"], num_scored)
        entropies, device = results[1], request.mask.device
        # With device_map="auto" on several devices the head is not where the batch is.
        places = split_scores(*2 * [places.to(entropies.device)], request.rows).logps
        anchor, _, removed = places
        mask = request.mask.to(entropies.device)
        selected = objective.select(entropies[anchor], entropies[removed], mask)
        to_preserved, to_removed = kl_to_views(arguments, places, mask if request.everywhere else selected)
        request.selected = selected.to(device)
        request.divergences = to_preserved.to(device), to_removed.to(device)

    return observed_head(observe)

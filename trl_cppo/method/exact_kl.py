# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The exact KL(anchor ‖ view) over the vocabulary, from hidden states (`scoring/head.py` has them), without ever holding all logits.

Shapes: `N` tokens, `K` views, `H` hidden units, `V` vocabulary. The logits of a token are `transform(hidden · weightᵀ +
bias)`; a tile of `chunk_size` columns of them exists at a time, in the forward and, made again, in the backward.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from .losses import at_least_float32

_MAX_TILE = 2**26  # logits, 256 MiB in float32: with many tokens a tile has fewer columns


@dataclass(frozen=True)
class LogitTransform:
    """
    What turns the head's output into the logits that are sampled from, as TRL's fused head applies it.

    Args:
        temperature (`float`): sampling temperature; the logits are divided by it, last.
        scale (`float`): the model's own factor on its logits, applied first.
        softcap (`float`, *optional*): the model's own soft cap: softcap · tanh(logits / softcap).
    """

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        logits = output * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature

    def chain(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the head's output, from that with respect to the logits."""
        if self.softcap is not None:
            grad = grad * (1 - (logits * self.temperature / self.softcap) ** 2)
        return grad * (self.scale / self.temperature)


def exact_kl(
    anchor: torch.Tensor,
    views: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    transform: LogitTransform | None = None,
    chunk_size: int = 8192,
    gather: Callable[..., AbstractContextManager] = lambda *parameters: nullcontext(),
) -> torch.Tensor:
    """
    KL(anchor ‖ view) of the next-token distributions, in nats, for each token and view. Gradient flows to all inputs.

    Args:
        anchor (`torch.Tensor` of shape `(N, H)`): hidden states with the image as it is.
        views (`torch.Tensor` of shape `(K, N, H)`): hidden states of the same tokens with each view.
        weight (`torch.Tensor` of shape `(V, H)`), bias (`torch.Tensor` of shape `(V,)`, *optional*): the head's.
        transform (`LogitTransform`, *optional*): from the head's output to the logits; defaults to none.
        chunk_size (`int`, *optional*, defaults to `8192`): columns of logits that exist at a time; fewer where there are many
            tokens.
        gather (`Callable`, *optional*): called with weight and bias in the backward, a context in which they are whole,
            for a head that ZeRO-3 partitions. The caller sees to the forward.

    Returns:
        `torch.Tensor` of shape `(K, N)`: float32 (float64 for float64 inputs), not negative but for rounding. The
            products are made in autocast's dtype where it is on, else in that of `anchor`.
    """
    hidden = torch.cat([anchor[None], views])
    chunk_size = max(1, min(chunk_size, _MAX_TILE // max(1, hidden.shape[:2].numel())))
    return _ExactKL.apply(hidden, weight, bias, transform or LogitTransform(), chunk_size, gather)


class _ExactKL(torch.autograd.Function):
    """`hidden` has the shape `(1 + K, N, H)`: the anchor first."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, transform, chunk_size, gather):
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype  # the backward runs outside autocast
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        size = hidden.shape[:2]
        largest = torch.full(size, -torch.inf, dtype=accumulate, device=hidden.device)
        total = torch.zeros(size, dtype=accumulate, device=hidden.device)  # Σ exp(logit − largest)
        gap = torch.zeros_like(total[1:])  # Σ exp(anchor logit − its largest) · (anchor logit − view logit)
        for start in range(0, weight.size(0), chunk_size):
            logits = _tile(hidden.to(dtype), weight, bias, transform, start, chunk_size)
            new_largest = torch.maximum(largest, logits.amax(dim=-1))
            decay = torch.exp(largest - new_largest)
            exponentials = torch.exp(logits - new_largest[..., None])
            total = total * decay + exponentials.sum(dim=-1)
            gap = gap * decay[0] + (exponentials[0] * (logits[0] - logits[1:])).sum(dim=-1)
            largest = new_largest
        log_total = largest + total.log()
        kl = gap / total[0] - log_total[0] + log_total[1:]
        ctx.save_for_backward(hidden, weight, bias, log_total, kl)
        ctx.settings = dtype, transform, chunk_size, gather
        return kl

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, log_total, kl = ctx.saved_tensors
        dtype, transform, chunk_size, gather = ctx.settings
        accumulate = log_total.dtype
        grad_hidden = torch.zeros(hidden.shape, dtype=accumulate, device=hidden.device)
        with gather(weight, bias):
            grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
            for start in range(0, weight.size(0), chunk_size):
                columns = slice(start, start + chunk_size)
                logits = _tile(hidden.to(dtype), weight, bias, transform, start, chunk_size)
                of_output = transform.chain(_logit_gradient(logits, log_total, kl, grad), logits)
                grad_hidden += of_output @ weight[columns].to(accumulate)
                if grad_weight is not None:
                    product = of_output.flatten(0, 1).T @ hidden.flatten(0, 1).to(accumulate)
                    grad_weight[columns] = product.to(weight.dtype)
                if grad_bias is not None:
                    grad_bias[columns] = of_output.sum(dim=(0, 1)).to(bias.dtype)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None


def _logit_gradient(
    logits: torch.Tensor, log_total: torch.Tensor, kl: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """d KL_k / d anchor logits = p (log p − log q_k − KL_k), summed over k; d KL_k / d view logits = q_k − p."""
    log_probs = logits - log_total[..., None]
    probs = log_probs.exp()
    grad = grad[..., None]
    of_anchor = (grad * (log_probs[0] - log_probs[1:] - kl[..., None])).sum(dim=0) * probs[0]
    return torch.cat([of_anchor[None], grad * (probs[1:] - probs[0])])


def _tile(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    transform: LogitTransform,
    start: int,
    chunk_size: int,
) -> torch.Tensor:
    """The logits of some columns, shape `(1 + K, N, columns)`, in float32 at least."""
    columns = slice(start, start + chunk_size)
    output = at_least_float32(hidden @ weight[columns].T.to(hidden.dtype))
    return transform(output if bias is None else output + bias[columns])

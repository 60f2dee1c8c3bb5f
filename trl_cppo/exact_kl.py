# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The exact KL(anchor ‖ view) over the vocabulary, from hidden states, without ever holding all logits.

Shapes: `N` tokens, `K` views, `H` hidden units, `V` vocabulary. The logits of a token are `transform(hidden · weightᵀ +
bias)`; a tile of `chunk_size` columns of them exists at a time, in the forward and, made again, in the backward.
"""

from dataclasses import dataclass

import torch


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
    transform: LogitTransform = LogitTransform(),  # noqa: B008 (frozen)
    chunk_size: int = 8192,
) -> torch.Tensor:
    """
    KL(anchor ‖ view) of the next-token distributions, in nats, for each token and view. Gradient flows to all inputs.

    Args:
        anchor (`torch.Tensor` of shape `(N, H)`): hidden states with the image as it is.
        views (`torch.Tensor` of shape `(K, N, H)`): hidden states of the same tokens with each view.
        weight (`torch.Tensor` of shape `(V, H)`), bias (`torch.Tensor` of shape `(V,)`, *optional*): the head's.
        transform (`LogitTransform`, *optional*): see there.
        chunk_size (`int`, *optional*, defaults to `8192`): columns of logits that exist at a time.

    Returns:
        `torch.Tensor` of shape `(K, N)`: float32 (float64 for float64 inputs), not negative but for rounding.
    """
    return _ExactKL.apply(torch.cat([anchor[None], views]), weight, bias, transform, chunk_size)


class _ExactKL(torch.autograd.Function):
    """`hidden` has the shape `(1 + K, N, H)`: the anchor first."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, transform, chunk_size):
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        size = hidden.shape[:2]
        largest = torch.full(size, -torch.inf, dtype=accumulate, device=hidden.device)
        total = torch.zeros(size, dtype=accumulate, device=hidden.device)  # Σ exp(logit − largest)
        gap = torch.zeros_like(total[1:])  # Σ exp(anchor logit − its largest) · (anchor logit − view logit)
        for start in range(0, weight.size(0), chunk_size):
            logits = _tile(hidden, weight, bias, transform, start, chunk_size)
            new_largest = torch.maximum(largest, logits.amax(dim=-1))
            decay = torch.exp(largest - new_largest)
            exponentials = torch.exp(logits - new_largest[..., None])
            total = total * decay + exponentials.sum(dim=-1)
            gap = gap * decay[0] + (exponentials[0] * (logits[0] - logits[1:])).sum(dim=-1)
            largest = new_largest
        log_total = largest + total.log()
        kl = gap / total[0] - log_total[0] + log_total[1:]
        ctx.save_for_backward(hidden, weight, bias, log_total, kl)
        ctx.transform, ctx.chunk_size = transform, chunk_size
        return kl

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, log_total, kl = ctx.saved_tensors
        accumulate = log_total.dtype
        grad_hidden = torch.zeros(hidden.shape, dtype=accumulate, device=hidden.device)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, weight.size(0), ctx.chunk_size):
            columns = slice(start, start + ctx.chunk_size)
            logits = _tile(hidden, weight, bias, ctx.transform, start, ctx.chunk_size)
            log_probs = logits - log_total[..., None]
            probs = log_probs.exp()
            # d KL_k / d anchor logits = p (log p − log q_k − KL_k);  d KL_k / d view logits = q_k − p
            of_anchor = (grad[..., None] * (log_probs[0] - log_probs[1:] - kl[..., None])).sum(dim=0) * probs[0]
            of_views = grad[..., None] * (probs[1:] - probs[0])
            of_output = ctx.transform.chain(torch.cat([of_anchor[None], of_views]), logits)
            grad_hidden += of_output @ weight[columns].to(accumulate)
            if grad_weight is not None:
                flat = of_output.flatten(0, 1)
                grad_weight[columns] = (flat.T @ hidden.flatten(0, 1).to(accumulate)).to(weight.dtype)
            if grad_bias is not None:
                grad_bias[columns] = of_output.sum(dim=(0, 1)).to(bias.dtype)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None


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
    output = (hidden @ weight[columns].T.to(hidden.dtype)).to(torch.promote_types(hidden.dtype, torch.float32))
    return transform(output if bias is None else output + bias[columns])

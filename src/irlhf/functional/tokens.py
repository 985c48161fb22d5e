"""Log-probabilities of tokens from hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

ELEMENTS = 1 << 24  # logits held at once


def token_log_prob(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    token: Int[Tensor, "tokens"],
    bias: Float[Tensor, "vocabulary"] | None = None,
) -> Float[Tensor, "tokens"]:
    """``log softmax(hidden weight' + bias)[token]``, in nats, in at least single precision.

    The gradient by ``hidden`` of one log-probability, ``weight[token] - softmax weight``, is made while the logits are
    at hand, so that a frozen head costs two products and no memory, however many words there are. Differentiable once.

    >>> h, w = torch.zeros(1, 2), torch.zeros(4, 2)
    >>> token_log_prob(h, w, torch.tensor([3])).exp()
    tensor([0.2500])
    """
    return _TokenLogProb.apply(hidden, weight, token, bias)


class _TokenLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, token: Tensor, bias: Tensor | None) -> Tensor:
        by_hidden, by_weight, _, by_bias = ctx.needs_input_grad
        wide = torch.promote_types(hidden.dtype, torch.float32)
        result = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        total = torch.empty_like(result)
        slope = torch.empty_like(hidden) if by_hidden else None
        for at in _chunks(len(hidden), len(weight)):
            logits = _logits(hidden[at], weight, bias, wide)
            total[at] = logits.logsumexp(1)
            result[at] = logits.gather(1, token[at, None])[:, 0] - total[at]
            if slope is not None:
                share = (logits - total[at, None]).exp_().to(hidden.dtype)
                slope[at] = weight[token[at]] - share @ weight
        ctx.save_for_backward(slope, *((hidden, weight, token, bias, total) if by_weight or by_bias else ()))
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        slope, *rest = ctx.saved_tensors
        of_hidden = None if slope is None else slope * upstream[:, None].to(slope.dtype)
        if not rest:
            return of_hidden, None, None, None
        hidden, weight, token, bias, total = rest
        of_weight = torch.zeros_like(weight, dtype=total.dtype)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=total.dtype)
        for at in _chunks(len(hidden), len(weight)):
            share = (_logits(hidden[at], weight, bias, total.dtype) - total[at, None]).exp_()
            share *= -upstream[at, None]
            share.scatter_add_(1, token[at, None], upstream[at, None])
            of_weight += share.to(hidden.dtype).T @ hidden[at]
            if of_bias is not None:
                of_bias += share.sum(0)
        of_bias = None if of_bias is None else of_bias.to(weight.dtype)
        return of_hidden, of_weight.to(weight.dtype), None, of_bias


def _chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, n, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    logits = (hidden @ weight.T).to(wide)
    return logits if bias is None else logits + bias

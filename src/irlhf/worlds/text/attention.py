"""Attention of short rows on a processor, with a gradient that is a few matrix products.

torch's kernel computes that gradient in single precision, in blocks. A row of some hundred tokens fits into the cache
whole, and the products in bfloat16 take 0.3 (160 tokens) to 0.7 (384) of the kernel's time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "irlhf_short_rows"
LONGEST = 384  # tokens of a row; torch's kernel is as fast from 512 on
FAST = torch.bfloat16
PIECE = 1 << 20  # weights of the gradient at a time


@contextlib.contextmanager
def of_short_rows(model: Any, width: int) -> Iterator[None]:
    """Inside, a Hugging Face model that reads rows of so many tokens attends this way, where it pays."""
    config = model.config
    pays = torch.is_grad_enabled() and width <= LONGEST and model.dtype == FAST
    if not pays or model.device.type != "cpu" or config._attn_implementation != "sdpa":
        yield
        return
    _register()
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any) -> Any:
        plain = not how.get("dropout") and how.get("is_causal") is not False and how.get("position_bias") is None
        plain = plain and getattr(module, "is_causal", True) and how.get("softcap") is None
        if not plain or query.shape[2] != key.shape[2]:
            return sdpa_attention_forward(module, query, key, value, mask, **how)
        if mask is None:
            mask = causal(query.shape[2], query.dtype)
        elif mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
        if (groups := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = how.get("scaling") or query.shape[-1] ** -0.5
        return ShortRows.apply(query, key, value, mask, scale).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def causal(width: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that a token sees those before it and itself, ``[1, 1, width, width]``."""
    return torch.full((1, 1, width, width), torch.finfo(dtype).min, dtype=dtype).triu_(1)


class ShortRows(torch.autograd.Function):
    """``softmax(scale q k' + mask) v`` of ``[rows, heads, width, size]``; weights are not kept, but computed again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, mask, out = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(given) for given in (query, key, value))
        rows, heads, width, _ = query.shape
        together = max(1, PIECE // (heads * width**2))  # rows whose weights stay in the cache
        for first in range(0, rows, together):
            some = slice(first, first + together)
            scaled, k, more = query[some] * ctx.scale, key[some], gradient[some]
            weight = (scaled @ k.mT).add_(mask if len(mask) == 1 else mask[some]).softmax(-1)
            torch.matmul(weight.mT, more, out=of_value[some])
            # d softmax: weights times how far the gradient is above its mean under them, which is gradient . out.
            of_score = (more @ value[some].mT).sub_((more * out[some]).sum(-1, keepdim=True)).mul_(weight)
            torch.matmul(of_score, k, out=of_query[some])
            of_query[some] *= ctx.scale
            torch.matmul(of_score.mT, scaled, out=of_key[some])
        return of_query, of_key, of_value, None, None

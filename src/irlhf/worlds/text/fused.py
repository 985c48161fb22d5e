"""Norms and gates of Llama's shape on a processor, some rows at a time, with a gradient of their own.

transformers spells them as a dozen passes over memory, in single precision for the norms. Here all passes go over rows
that fit the cache, and the gradient keeps what the layer was given and nothing else. Values are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from irlhf.worlds.text.attention import FAST

PIECE = 1 << 17  # numbers looked at together: with what is made of them they fit the second cache


def fuse(model: nn.Module) -> None:
    """Lets the norms and gates of a model in bfloat16 compute this way: those that are found to give the same."""
    for module in model.modules():
        ours = _norm if is_norm(module) else _gated if _is_gated(module) else None
        if ours is not None and _same(module, ours):
            module.forward = partial(_forward, module, ours)  # type: ignore[method-assign]


def is_norm(module: Any) -> bool:
    """Whether it looks like Llama's root-mean-square norm."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_gated(module: Any) -> bool:
    parts = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return parts and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _same(module: Any, ours: Any) -> bool:
    """Whether a layer gives this, tried out: names do not say what a layer computes."""
    weight = next(module.parameters())
    x = torch.randn(2, 3, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    if not _fast(x):
        return False
    with torch.no_grad():
        return torch.equal(module(x), ours(module, x))


def _fast(x: Tensor) -> bool:
    return x.dtype == FAST and x.device.type == "cpu"


def _forward(module: Any, ours: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
    return ours(module, x) if _fast(x) else type(module).forward(module, x)  # the model may have been moved since


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return Norm.apply(hidden, module.weight, module.variance_epsilon)  # type: ignore[return-value]


def _gated(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows ``[rows, width]`` of each of some tensors at a time; views of those that are contiguous."""
    rows = max(1, PIECE // tensors[0].shape[-1])
    return zip(*(tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in tensors), strict=True)


class Norm(torch.autograd.Function):
    """``weight * x / sqrt(mean(x^2) + epsilon)`` (Zhang and Sennrich 2019, equation 4), inside in single precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, rate = x.new_empty(x.shape), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        for given, result, scale in _pieces(x, out, rate):
            wide = given.float()
            scale.copy_(torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon))
            torch.mul(weight, wide.mul_(scale).to(x.dtype), out=result)
        ctx.save_for_backward(x, weight, rate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, rate = ctx.saved_tensors
        of_x, of_weight, wide_weight = x.new_empty(x.shape), torch.zeros(weight.shape), weight.float()
        for given, more, scale, result in _pieces(x, gradient, rate, of_x):
            unit, more = given * scale, more.float()
            of_weight += (more * unit).sum(0)
            more *= wide_weight
            # What grows x along itself changes nothing: that part of the gradient leaves.
            result.copy_((more - unit * (more * unit).mean(-1, keepdim=True)).mul_(scale))
        return of_x, of_weight.to(weight.dtype), None


class Gate(torch.autograd.Function):
    """``silu(gate) * up`` (Shazeer 2020, equation 6, without its matrices)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = gate.new_empty(gate.shape)
        for g, u, result in _pieces(gate, up, out):
            torch.mul(F.silu(g), u, out=result)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        of_gate, of_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
        for g, u, more, for_gate, for_up in _pieces(gate, up, gradient, of_gate, of_up):
            torch.mul(F.silu(g), more, out=for_up)
            for_gate.copy_(torch.ops.aten.silu_backward(more * u, g))
        return of_gate, of_up

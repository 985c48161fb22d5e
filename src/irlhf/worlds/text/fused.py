"""Norms and gates of Llama's shape on a processor, some rows at a time, with a gradient of their own.

transformers spells them as a dozen passes over memory, in single precision for the norms. Here all passes go over rows
that fit the cache, and the gradient keeps what the layer was given and nothing else. Values are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FAST = torch.bfloat16
PIECE = 1 << 17  # numbers looked at together: with what is made of them they fit the second cache


def fuse(model: nn.Module) -> None:
    """Lets the norms and gates of a model in bfloat16 compute this way: those that are found to give the same."""
    for module in model.modules():
        if is_norm(module) and _same(module, partial(_norm, module)):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]
        elif _is_gated(module) and _same(module, partial(_gated, module)):
            module.forward = partial(_gated, module)  # type: ignore[method-assign]


def is_norm(module: Any) -> bool:
    """Whether it looks like Llama's root-mean-square norm."""
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_gated(module: Any) -> bool:
    parts = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return parts and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _same(module: Any, ours: Any) -> bool:
    """Whether a layer gives this, tried out: names do not say what a layer computes."""
    weight = module.weight if hasattr(module, "weight") else module.gate_proj.weight
    x = torch.randn(2, 3, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    if not _fast(x):
        return False
    with torch.no_grad():
        return torch.equal(module(x), ours(x))


def _fast(x: Tensor) -> bool:
    return x.dtype == FAST and x.device.type == "cpu"


def _norm(module: Any, hidden: Tensor) -> Tensor:
    if not _fast(hidden):  # the model was moved since
        return type(module).forward(module, hidden)
    return Norm.apply(hidden, module.weight, module.variance_epsilon)  # type: ignore[return-value]


def _gated(module: Any, x: Tensor) -> Tensor:
    if not _fast(x):
        return type(module).forward(module, x)
    return module.down_proj(Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each of some tensors of one number of rows, ``[rows, width]``."""
    rows = max(1, PIECE // tensors[0].shape[-1])
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


class Norm(torch.autograd.Function):
    """``weight * x / sqrt(mean(x^2) + epsilon)`` (Zhang and Sennrich 2019, equation 4), inside in single precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, rate = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        for given, result, scale in _pieces(_rows(x), out.view(-1, x.shape[-1]), rate.view(-1, 1)):
            wide = given.float()
            scale.copy_(torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon))
            torch.mul(weight, wide.mul_(scale).to(x.dtype), out=result)
        ctx.save_for_backward(x, weight, rate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, rate = ctx.saved_tensors
        of_x, of_weight, wide_weight = torch.empty_like(x), torch.zeros(weight.shape), weight.float()
        every = _rows(x), _rows(gradient), rate.view(-1, 1), of_x.view(-1, x.shape[-1])
        for given, more, scale, result in _pieces(*every):
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
        out = torch.empty_like(gate)
        for g, u, result in _pieces(_rows(gate), _rows(up), out.view(-1, gate.shape[-1])):
            torch.mul(F.silu(g), u, out=result)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        width = gate.shape[-1]
        every = _rows(gate), _rows(up), _rows(gradient), of_gate.view(-1, width), of_up.view(-1, width)
        for g, u, more, for_gate, for_up in _pieces(*every):
            torch.mul(F.silu(g), more, out=for_up)
            for_gate.copy_(torch.ops.aten.silu_backward(more * u, g))
        return of_gate, of_up

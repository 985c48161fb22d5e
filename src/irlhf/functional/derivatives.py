"""Derivatives of many outputs by few parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def jacobian(
    values: Float[Tensor, "outputs"], theta: Float[Tensor, "parameters"]
) -> Float[Tensor, "outputs parameters"]:
    """d values / d theta in as many backward passes as there are parameters, however many outputs there are.

    The gradient ``J' v`` is linear in v, so that its derivative by v is a column of J: forward mode out of backward
    mode twice. ``values`` must have been computed from ``theta`` with gradients.
    """
    v = torch.zeros_like(values, requires_grad=True)
    gradient = torch.autograd.grad(values, theta, v, create_graph=True, materialize_grads=True)[0]
    columns = [torch.autograd.grad(g, v, retain_graph=True, materialize_grads=True)[0] for g in gradient]
    return torch.stack(columns, 1) if columns else values.new_zeros(len(values), 0)

"""A step of Adam as a pure function."""

from __future__ import annotations

import torch
from torch import Tensor

Moments = dict[str, Tensor]


def adam_step(
    theta: Tensor, gradient: Tensor, moments: Moments, rate: float, betas: tuple[float, float] = (0.9, 0.999)
) -> tuple[Tensor, Moments]:
    """The same step as ``torch.optim.Adam(..., lr=rate)`` takes, to the bit (Kingma and Ba 2015, algorithm 1).

    The first ``torch.optim`` optimizer of a process imports a compiler, for seconds, which small fits would wait for.
    """
    step = moments["step"] + 1 if moments else torch.tensor(1.0)
    mean, square = (moments.get(name, torch.zeros_like(theta)) for name in ("exp_avg", "exp_avg_sq"))
    mean = mean.lerp(gradient, 1 - betas[0])
    square = (square * betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    size = rate / (1 - betas[0] ** float(step))
    spread = (square.sqrt() / (1 - betas[1] ** float(step)) ** 0.5).add_(1e-8)
    return theta.addcdiv(mean, spread, value=-size), {"step": step, "exp_avg": mean, "exp_avg_sq": square}

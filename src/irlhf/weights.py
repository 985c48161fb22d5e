"""The trainable tensors of a module as one vector, in single precision, or in double where most of the module is."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import NonFiniteError

PIECE = 1 << 18  # numbers at a time that stay in the cache


def all_finite(values: Tensor) -> bool:
    """Whether no number is a NaN or an infinity.

    A finite sum says so, in an eighth of the time that looking at each takes; one that is not may have overflowed.
    """
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def norm_of(values: Tensor) -> float:
    """The 2-norm: of pieces in the precision of the numbers, which is fast, and then in double precision."""
    squares = [piece.square().sum() for piece in values.split(PIECE)]  # sums of torch go by halves, its norms do not
    norm = float(torch.stack(squares).double().sum().sqrt())
    return norm if math.isfinite(norm) else float(torch.linalg.vector_norm(values, dtype=torch.float64))


class Weights:
    """``vector()`` and ``assign(vector)``: between a module and an optimizer.

    A model may compute in bfloat16; steps of an optimizer are too small for it. So the vector is the original, and the
    module holds it rounded.
    """

    def __init__(self, module: nn.Module):
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = list(self._named.values())
        self.sizes = [tensor.numel() for tensor in self.tensors]
        double = sum(t.numel() for t in self.tensors if t.dtype == torch.float64)
        # A temperature in double precision is no reason to keep a language model in it.
        self.dtype = torch.float64 if 2 * double > len(self) else torch.float32

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def names(self) -> list[str]:
        """One for each number of the vector."""
        return [
            name if tensor.numel() == 1 else f"{name}[{k}]"
            for name, tensor in self._named.items()
            for k in range(tensor.numel())
        ]

    def vector(self) -> Float[Tensor, "parameters"]:
        """What the module holds now."""
        parts = [tensor.detach().reshape(-1).to(self.dtype) for tensor in self.tensors]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)

    def assign(self, vector: Float[Tensor, "parameters"], what: str = "the parameter vector") -> None:
        """Writes a vector into the module. Raises NonFiniteError, which says ``what`` it is, if it is not finite."""
        self.require_finite(vector, what)
        with torch.no_grad():
            for tensor, part in zip(self.tensors, vector.split(self.sizes), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def require_finite(self, vector: Float[Tensor, "parameters"], what: str) -> None:
        """Raises NonFiniteError, which says ``what`` it is and names parameters, if a number is not finite."""
        if all_finite(vector):
            return
        bad = [name for name, part in self.split(vector).items() if not torch.isfinite(part).all()]
        named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise NonFiniteError(f"{what} is not finite in {named}; no parameter was changed")

    def split(self, vector: Float[Tensor, "parameters"]) -> dict[str, Tensor]:
        """A vector in the parts that belong to each tensor, by its name."""
        return dict(zip(self._named, vector.split(self.sizes), strict=True))

    def gradient(self, value: Tensor, *, keep: bool = False) -> Float[Tensor, "parameters"]:
        """The gradient of a number, as a vector; 0 for what it does not depend on."""
        gradients = torch.autograd.grad(value, self.tensors, retain_graph=keep, materialize_grads=True)
        return torch.cat([g.reshape(-1).to(self.dtype) for g in gradients])

    def add_gradient(self, value: Tensor, total: Float[Tensor, "parameters"]) -> None:
        """Adds the gradient of a number to a vector, without another one in memory."""
        gradients = torch.autograd.grad(value, self.tensors, allow_unused=True)
        for gradient, part in zip(gradients, total.split(self.sizes), strict=True):
            if gradient is not None:
                # Two types are added by way of memory of their size: a piece of it stays in the cache.
                for more, piece in zip(gradient.reshape(-1).split(PIECE), part.split(PIECE), strict=True):
                    piece.add_(more)

"""The trainable tensors of a module as one vector, in at least single precision whatever the module computes in."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.protocols import finite_or_raise


class Weights:
    """``vector()`` and ``assign(vector)``: between a module and an optimizer.

    A model may compute in bfloat16; steps of an optimizer are too small for it. So the vector is the original, and the
    module holds it rounded.
    """

    def __init__(self, module: nn.Module):
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = list(self._named.values())
        self.dtype = torch.float32
        for tensor in self.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)

    def __len__(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

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
        if not torch.isfinite(vector).all():
            finite_or_raise(what, vector, self.names)
        with torch.no_grad():
            for tensor, part in zip(self.tensors, self.split(vector).values(), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def split(self, vector: Float[Tensor, "parameters"]) -> dict[str, Tensor]:
        """A vector in the parts that belong to each tensor, by its name."""
        return dict(zip(self._named, vector.split([t.numel() for t in self.tensors]), strict=True))

    def gradient(self, value: Tensor, *, keep: bool = False) -> Float[Tensor, "parameters"]:
        """The gradient of a number, as a vector; 0 for what it does not depend on."""
        gradients = torch.autograd.grad(value, self.tensors, retain_graph=keep, materialize_grads=True)
        return torch.cat([g.reshape(-1).to(self.dtype) for g in gradients])

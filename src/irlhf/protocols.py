"""The few nouns every world, reward and policy agrees on. Nothing here computes anything but a sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Trajectories laid end to end: step -> item -> context. Worlds add their own per-step tensors.

    ``step_weight`` is what the world's discount makes of a step (gamma to the power t), so that
    ``batch.sum(reward per step)`` is the return of each item.
    """

    contexts: Sequence[Any]  # the distinct ones
    context: Int[Tensor, "items"]  # -> contexts
    item: Int[Tensor, "steps"]  # -> items
    step_weight: Float[Tensor, "steps"]

    @property
    def n_items(self) -> int:
        return len(self.context)

    def sum(self, per_step: Float[Tensor, "steps"], *, discounted: bool = True) -> Float[Tensor, "items"]:
        """Sum over each item's steps, discounted as the world discounts unless told otherwise."""
        if discounted:
            per_step = per_step * self.step_weight.to(per_step.dtype)
        return per_step.new_zeros(self.n_items).index_add(0, self.item, per_step)

    def take(self, items: Int[Tensor, "taken"]) -> Batch:
        """The batch of these items, in this order; an item may be taken more than once."""
        steps, item = self.steps_of(items)
        rest = [f.name for f in fields(self) if f.name not in ("contexts", "context", "item")]
        per_step = {name: getattr(self, name).index_select(0, steps) for name in rest}
        return replace(self, context=self.context[items], item=item, **per_step)

    def steps_of(self, items: Int[Tensor, "taken"]) -> tuple[Int[Tensor, "steps"], Int[Tensor, "steps"]]:
        """The numbers of the steps of these items, in this order, and for each which of them it belongs to."""
        length = torch.bincount(self.item, minlength=self.n_items)
        first, own = torch.cumsum(length, 0) - length, length[items]
        item = torch.from_numpy(np.repeat(np.arange(len(items)), own.numpy()))
        shift = first[items] - (torch.cumsum(own, 0) - own)
        return shift.index_select(0, item) + torch.arange(len(item)), item


@dataclass(frozen=True, eq=False)
class Draws:
    """Trajectories drawn from a policy (or all that there are). Transitions, never rewards: those depend on when."""

    batch: Any  # a Batch of the world
    request: Int[Tensor, "items"]  # -> which of the contexts that were asked for; does not decrease
    log_q: Float[Tensor, "steps"] | None  # log-probability of each step for what drew it; None: nobody drew, all listed
    whole: Bool[Tensor, "items"]  # ended by itself; False: cut, so not a trajectory of the world

    def take(self, items: Int[Tensor, "taken"]) -> Draws:
        """Some of them."""
        log_q = None if self.log_q is None else self.log_q[self.batch.steps_of(items)[0]]
        return Draws(self.batch.take(items), self.request[items], log_q, self.whole[items])


class Factors(NamedTuple):
    """A likelihood by the chain rule: a function of ``inner``, which the parameters reach without a solver.

    ``slope`` is the derivative of the weighted log-likelihood by ``inner``, a constant. ``finish`` is given the
    derivatives of ``inner`` [parameters, *inner] and gives the scores [units, parameters] and what the Hessian has
    besides ``sum slope * (second derivatives of inner)`` [parameters, parameters].
    """

    inner: Tensor
    slope: Tensor
    finish: Callable[[Tensor], tuple[Tensor, Tensor]]


@runtime_checkable
class Reward(Protocol):
    """What a trajectory is worth. An ``nn.Module``; where the world has steps it also has ``step(batch) -> ["steps"]``.

    ``normalized = True`` (class attribute, optional) says that ``exp(R/T) mu`` sums to one at the reward's own
    temperature, as the implicit reward ``T log(pi/mu)`` does: then no partition function is needed.
    """

    def __call__(self, batch: Any) -> Tensor: ...


@runtime_checkable
class Policy(Protocol):
    """A distribution over trajectories: ``log_prob(batch) -> ["steps"]``."""

    def log_prob(self, batch: Any) -> Tensor: ...


@runtime_checkable
class World(Protocol):
    """Where trajectories live. ``deterministic``: the policy alone decides what happens.

    Worlds that policies are learned in also have ``draw(policy, contexts, n, key=) -> Draws``, ``base_policy()``,
    ``origins(batch)`` (what ``draw`` takes to draw others like each item) and ``whole(batch)`` (is each complete).
    """

    @property
    def deterministic(self) -> bool: ...

    def collate(self, contexts: Sequence[Any], trajectories: Sequence[Any]) -> Any: ...

    def log_base(self, batch: Any) -> Tensor: ...

    def log_base_step(self, batch: Any) -> Tensor: ...


@runtime_checkable
class SolvableWorld(World, Protocol):
    """A world whose partition function can be computed."""

    def solve(
        self,
        reward: Any,
        contexts: Sequence[Any],
        *,
        temperature: Tensor | float = 1.0,
        kind: str = "causal",
        warm_start: Tensor | None = None,
    ) -> Any: ...


def finite_or_raise(name: str, values: Tensor, ids: Sequence[Any]) -> None:
    """Raises NonFiniteError, naming the tensor and up to five rows, if any value is NaN or infinite."""
    from irlhf.errors import NonFiniteError

    bad = torch.nonzero(~torch.isfinite(values)).flatten()
    if len(bad):
        named = ", ".join(str(ids[int(i)]) for i in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise NonFiniteError(f"{name} is not finite for rows {named}{more}; no parameter was changed")

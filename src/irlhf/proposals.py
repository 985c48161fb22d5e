"""Where rivals come from when a choice set is too large to list: proposals, and what they add to a utility.

A rival drawn from q stands for the whole choice set if its utility carries ``log mu - log q``, and so does that of the
trajectory that was chosen (McFadden 1978; Gutmann and Hyvarinen 2010 call it noise-contrastive estimation). A proposal
draws rivals and knows that offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.protocols import Draws
from irlhf.randomness import Key


@runtime_checkable
class Proposal(Protocol):
    """What rivals are drawn from, independently of each other and of what was chosen."""

    def draw(self, world: Any, origins: Sequence[Any], n: int | np.ndarray, key: Key) -> list[Draws]:
        """``n`` rivals for each origin, in one or several parts; ``request`` says whose they are."""
        ...

    def offset(self, world: Any, batch: Any) -> Float[Tensor, "items"]:
        """``log mu - log q`` of each item of a batch, in nats."""
        ...


@dataclass(frozen=True, eq=False)
class FromPolicy:
    """Rivals are drawn from a policy. Where it hardly ever goes, little is learned: see :class:`Mixture`."""

    policy: Any

    def draw(self, world: Any, origins: Sequence[Any], n: int | np.ndarray, key: Key) -> list[Draws]:
        return [world.draw(self.policy, origins, n, key=key)]

    def offset(self, world: Any, batch: Any) -> Float[Tensor, "items"]:
        with torch.no_grad():
            return world.log_base(batch) - batch.sum(self.policy.log_prob(batch).double(), discounted=False)


@dataclass(frozen=True, eq=False)
class Base:
    """Rivals are drawn from the base measure, normalized in every state: the safe and the slow choice."""

    def draw(self, world: Any, origins: Sequence[Any], n: int | np.ndarray, key: Key) -> list[Draws]:
        return FromPolicy(world.base_policy()).draw(world, origins, n, key)

    def offset(self, world: Any, batch: Any) -> Float[Tensor, "items"]:
        return FromPolicy(world.base_policy()).offset(world, batch)


class Mixture:
    """Each rival is drawn from one of several proposals; its density is the mixture's, whichever drew it.

    With half from the base measure no offset exceeds log 2 by more than the base measure's own, so that one bad
    component does little harm.

    Args:
        parts: proposals with a density (a pool has none).
        shares: how often each is asked, in any unit; default: alike.
    """

    def __init__(self, *parts: Proposal, shares: Sequence[float | int] | None = None):
        if len(parts) < 2 or not all(isinstance(part, FromPolicy | Base | Mixture) for part in parts):
            raise ConfigError("a mixture is of at least two proposals with a density: Base(), FromPolicy(pi); not Pool")
        weights = np.ones(len(parts)) if shares is None else np.asarray(shares, float)
        if len(weights) != len(parts) or not (np.isfinite(weights) & (weights > 0)).all():
            raise ConfigError(f"the shares of {len(parts)} proposals are {shares}; give a positive number for each")
        self.parts, self.shares = parts, weights / weights.sum()

    def draw(self, world: Any, origins: Sequence[Any], n: int | np.ndarray, key: Key) -> list[Draws]:
        wanted = np.broadcast_to(n, len(origins))
        counts = key.at("parts").numpy().multinomial(wanted, self.shares)
        asked = [part.draw(world, origins, counts[:, k], key.at(k)) for k, part in enumerate(self.parts)]
        return [draws for some in asked for draws in some if len(draws.request)]

    def offset(self, world: Any, batch: Any) -> Float[Tensor, "items"]:
        each = [np.log(share) - part.offset(world, batch) for part, share in zip(self.parts, self.shares, strict=True)]
        return -torch.stack(each).logsumexp(0)


@dataclass(frozen=True, eq=False)
class Pool:
    """Rivals are picked from unlabeled trajectories, which stand for the base measure: no density, offset 0.

    What is learned is then relative to the pool: the reward says what the chosen have that the pool has less of.

    Args:
        trajectories: of the world; each may be picked more than once.
        contexts: where each was made; None: all at one.
    """

    trajectories: Sequence[Any]
    contexts: Sequence[Any] | None = None
    _laid_out: dict[int, tuple[Any, Any]] = field(
        default_factory=dict, repr=False
    )  # by id of the world, which it keeps

    def batch(self, world: Any) -> Any:
        """All of them in a world, laid out once: what a reward remembers of the batch serves every draw."""
        if id(world) not in self._laid_out:
            contexts = [None] * len(self.trajectories) if self.contexts is None else self.contexts
            self._laid_out[id(world)] = world, world.collate(contexts, self.trajectories)
        return self._laid_out[id(world)][1]

    def draw(self, world: Any, origins: Sequence[Any], n: int | np.ndarray, key: Key) -> list[Draws]:
        batch = self.batch(world)
        members: dict[Any, list[int]] = {}
        for k, origin in enumerate(world.origins(batch)):
            members.setdefault(origin, []).append(k)
        if lost := [origin for origin in dict.fromkeys(origins) if origin not in members]:
            name = getattr(world, "name", repr)(lost[0])
            raise ConfigError(f"the pool has no trajectory from {name}; add some, or draw from Base()")
        wanted = np.broadcast_to(n, len(origins))
        u = key.numpy().random(int(wanted.sum()))
        request = np.repeat(np.arange(len(origins)), wanted)
        size = np.array([len(members[origin]) for origin in origins], np.int64)
        number = {origin: np.array(own, np.int64) for origin, own in members.items()}
        first = np.cumsum([0, *map(len, number.values())])
        begins = dict(zip(number, first, strict=False))
        start = np.array([begins[origin] for origin in origins], np.int64)
        picked = np.concatenate(list(number.values()))[start[request] + (u * size[request]).astype(np.int64)]
        items = torch.from_numpy(picked)
        return [Draws(batch.take(items), torch.from_numpy(request), None, world.whole(batch)[items])]

    def offset(self, world: Any, batch: Any) -> Float[Tensor, "items"]:
        return torch.zeros(batch.n_items, dtype=torch.float64)


def as_proposal(given: Any) -> Proposal:
    """A proposal from what a user gives: None is the base measure; a policy is half of a mixture with it."""
    if given is None:
        return Base()
    if isinstance(given, Proposal):
        return given
    if hasattr(given, "log_prob"):
        return Mixture(Base(), FromPolicy(given))
    raise ConfigError(
        f"a proposal is a policy, Base(), FromPolicy(pi), Mixture(...) or Pool(...), got {type(given).__name__}"
    )

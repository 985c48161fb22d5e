"""Rewards made of other things, for any world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError


class Implicit(nn.Module):
    """``R = T log(pi/mu)``: the reward that a policy stands for (Rafailov et al. 2023, eq. 5, without its constant).

    With it, a demonstration's likelihood is behavioral cloning and a comparison's is direct preference optimization
    with ``beta = T / T_source``. Normalized: ``sum_y mu exp(R/T) = sum_y pi = 1``.

    Args:
        policy: a module with ``log_prob(batch) -> ["steps"]``.
        world: gives the base measure, ``log_base_step(batch) -> ["steps"]``.
        temperature: T.
    """

    normalized = True
    on = "pairs"

    def __init__(self, policy: nn.Module, world: Any, *, temperature: float = 1.0):
        super().__init__()
        self.policy, self.world, self.temperature = policy, world, temperature
        self.contextual, self.timed = (getattr(policy, name, False) for name in ("contextual", "timed"))

    def step(self, batch: Any) -> Tensor:
        return self.temperature * (self.policy.log_prob(batch) - self.world.log_base_step(batch))  # type: ignore[operator]

    def forward(self, batch: Any) -> Tensor:
        return batch.sum(self.step(batch))


class Ensemble(nn.Module):
    """The mean of several rewards, and how far they are apart.

    Members are fitted one by one before they are joined: from other random starts, or each on its own resample of the
    feedback (the bootstrap), which is what makes their spread an uncertainty::

        def resampled(term, k):  # rows with replacement
            n = len(term.feedback)
            return term.take(torch.from_numpy(np.random.default_rng(k).integers(0, n, n)))

        Ensemble(fit_reward(new_reward(), [resampled(t, k) for t in terms]).reward for k in range(5))

    Args:
        members: rewards of the same world and in the same units.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise ConfigError("an ensemble without members; give at least one reward")

    def each(self, batch: Any) -> Float[Tensor, "members items"]:
        """What each member makes of each item."""
        return torch.stack([member(batch) for member in self.members])

    def step(self, batch: Any) -> Float[Tensor, "steps"]:
        """The mean of what the members pay for each step, where they pay by steps."""
        return torch.stack([member.step(batch) for member in self.members]).mean(0)  # type: ignore[operator]

    def forward(self, batch: Any) -> Float[Tensor, "items"]:
        return self.each(batch).mean(0)

    def spread(self, batch: Any) -> Float[Tensor, "items"]:
        """The standard deviation between members (over ``members - 1``) of each item, in units of the reward.

        What the feedback leaves open is in it too: comparisons do not tell the level of a context, so there only the
        spread of differences within a context means something.

        Raises:
            ConfigError: there is only one member.
        """
        if len(self.members) < 2:
            raise ConfigError("an ensemble of one has no spread; give at least two rewards")
        return self.each(batch).std(0)

"""Rewards made of other things, for any world."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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

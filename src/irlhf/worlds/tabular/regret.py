"""The regret model of preferences: people compare how well somebody acted, not how much was earned.

P(a over b) = logistic(regret(b) - regret(a)),      regret(y) = sum_t discount^t (V*(s_t) - Q*(s_t, a_t))          (1)

Knox et al. 2022 (Models of human preference for learning reward functions, equation 4), here with the advantage of each
action, which is theirs where nothing is random. With soft values at a temperature it is contrastive preference learning
(Hejna et al. 2023, equation 4): minus the regret is ``T sum_t log pi(a_t|s_t)``, and the hard model is its limit as the
temperature goes to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError, InfeasibleError
from irlhf.functional.optimal import optimal_values
from irlhf.worlds.tabular.solution import SoftValues, pair_reward
from irlhf.worlds.tabular.world import TabularBatch, TabularWorld


@dataclass(frozen=True)
class regret:
    """A model of preferences for :class:`irlhf.listed`: what is compared of each path is minus its regret.

    Args:
        temperature: of the values that regret is measured against: 0 for optimal ones, above 0 for soft ones with the
            world's base measure (without one, every action counts once). In units of the reward; it has nothing to do
            with the temperature of the source.

    Raises:
        ConfigError: a negative temperature.
    """

    temperature: float | int = 0.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ConfigError(f"the temperature of regret is {self.temperature}; it must be 0 (optimal values) or more")

    def __call__(
        self, world: TabularWorld, reward: Any, batch: TabularBatch, memory: dict[str, Tensor]
    ) -> Float[Tensor, "items"]:
        """Minus the regret of each path, in units of the reward: 0 for the best, or less. ``memory``: warm starts."""
        if not self.temperature:
            return batch.sum(optimum(world, reward, batch.contexts).step_log_prob(batch))
        t = float(self.temperature)
        solution = world.solve(reward, batch.contexts, temperature=t, warm_start=memory.get("values"))
        memory["values"] = solution.values.detach()
        return t * batch.sum(solution.step_log_prob(batch))

    def __repr__(self) -> str:
        return f"regret({self.temperature:g})" if self.temperature else "regret()"


def optimum(world: TabularWorld, reward: Any, contexts: Sequence[Any] = (None,)) -> SoftValues:
    """Optimal values V* of a reward, in the shape of a soft solution and in units of the reward.

    Its ``log_policy`` and ``step_log_prob`` are the *advantages* ``Q*(s, a) - V*(s)``: at most 0, and 0 for the best.

    Raises:
        InfeasibleError: there is no end and no discount, and walking in circles pays.
    """
    t = world.transitions
    of_pair = pair_reward(world, reward, contexts)
    of_pair = torch.where(torch.isneginf(world.log_base_of_pair), -torch.inf, of_pair)
    absorbing = None
    if world.destinations:
        absorbing = torch.zeros(len(contexts), t.n_states, dtype=torch.bool)
        absorbing[torch.arange(len(contexts)), torch.from_numpy(world.state_numbers(contexts, "destination"))] = True
    if world.horizon is not None:
        n = len(contexts) if world.destinations else len(of_pair)
        of_pair = of_pair.expand(n, world.horizon, -1)
        return SoftValues(world, "causal", contexts, t, world.discount, of_pair, _in_time(world, of_pair, absorbing))
    of_pair = of_pair[:, 0]
    try:
        values = optimal_values(of_pair, t, world.discount, absorbing=absorbing)
    except ArithmeticError as error:
        raise InfeasibleError(
            f"there are no optimal values at these parameters: {error}; give a lower start, a discount below 1, or a "
            "horizon"
        ) from error
    return SoftValues(world, "causal", contexts, t, world.discount, of_pair, values)


def _in_time(world: TabularWorld, of_pair: Tensor, absorbing: Tensor | None) -> Tensor:
    """[contexts, horizon + 1, states] Backward induction (Bellman 1957)."""
    t, ended = world.transitions, torch.from_numpy(world.transitions.terminal)
    state, following = torch.from_numpy(t.state), torch.from_numpy(t.next_state)
    probability, pair = torch.from_numpy(t.probability), torch.from_numpy(t.pair_of_outcome)
    ended = ended if absorbing is None else ended | absorbing
    values = [of_pair.new_zeros(len(of_pair), t.n_states)]
    for time in reversed(range(of_pair.shape[1])):
        ahead = values[-1][:, following] * probability
        promised = of_pair[:, time] + world.discount * torch.zeros_like(of_pair[:, time]).index_add(1, pair, ahead)
        best = promised.new_full((len(promised), t.n_states), -torch.inf)
        best = best.scatter_reduce(1, state.expand(len(promised), -1), promised, "amax")
        values.append(torch.where(ended, 0.0, best))
    return torch.stack(values[::-1], 1)

"""How far two rewards of a tabular world are apart: in what they ask for, and in what optimizing one of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.functional.distance import epic_distance, starc_distance, value_canonical
from irlhf.worlds.tabular.draws import starts_of
from irlhf.worlds.tabular.policies import GreedyPolicy, SoftPolicy
from irlhf.worlds.tabular.regret import optimum
from irlhf.worlds.tabular.solution import pair_reward
from irlhf.worlds.tabular.world import TabularWorld

LARGEST = 50_000_000  # entries of a reward on all (state, action, next state)


@torch.no_grad()
def distances(
    world: TabularWorld, a: Any, b: Any, contexts: Sequence[Any] = (None,), *, discount: float | None = None
) -> pd.Series:
    """Distances between two rewards, exactly: 0 where they ask for the same, 1 for a reward and its negation.

    * **STARC** (Skalse et al. 2024) on the world's own transitions, against the base measure's policy;
    * **EPIC** (Gleave et al. 2021) on all (state, action, next state), also those that the world never makes; NaN for
      a reward of transitions that is not defined there;
    * **Spearman** and **Kendall**: rank correlations of the canonical rewards of STARC (1: the same order).

    Args:
        contexts: with destinations, those to look at; all are compared together.
        discount: of the shaping that is ignored; None: the world's. Worlds with a horizon ignore stationary potentials.

    Raises:
        ConfigError: a reward that varies with time.
    """
    discount = world.discount if discount is None else discount
    ours, theirs = (canonical(world, r, contexts, discount=discount) for r in (a, b))
    some = torch.isfinite(ours) & torch.isfinite(theirs)
    found = {"STARC": float(starc_distance(ours[some], theirs[some]))}
    try:
        found["EPIC"] = float(epic_distance(everywhere(world, a), everywhere(world, b), discount, **_weights(world)))
    except ConfigError:
        found["EPIC"] = np.nan
    x, y = ours[some].numpy().round(12), theirs[some].numpy().round(12)
    varied = np.ptp(x) > 0 and np.ptp(y) > 0
    found["Spearman"] = float(np.asarray(stats.spearmanr(x, y))[0]) if varied else np.nan
    found["Kendall"] = float(np.asarray(stats.kendalltau(x, y))[0]) if varied else np.nan
    return pd.Series(found, name="distance")


def canonical(
    world: TabularWorld, reward: Any, contexts: Sequence[Any] = (None,), *, discount: float | None = None
) -> Float[Tensor, "contexts pairs"]:
    """Advantages under the base measure's policy, which shaping does not change. NaN where it has ended."""
    t = world.transitions
    of_pair = pair_reward(world, reward, contexts)
    if of_pair.shape[1] > 1:
        raise ConfigError("a reward that varies with time has no canonical form here; compare rewards that do not")
    n = len(contexts) if world.destinations else len(of_pair)
    policy = world.base_policy().log_prob(world.table("pairs")).double().exp().expand(n, -1).clone()
    if world.destinations:
        ended = (
            torch.from_numpy(t.state)[None] == torch.from_numpy(world.state_numbers(contexts, "destination"))[:, None]
        )
        policy[ended] = 0.0
    values = value_canonical(of_pair[:, 0].expand(n, -1), t, world.discount if discount is None else discount, policy)
    return torch.where(policy > 0, values, torch.nan)


def everywhere(world: TabularWorld, reward: Any) -> Float[Tensor, "states actions states"]:
    """A reward on all (state, action, next state), 0 where an action is not possible.

    Raises:
        ConfigError: it is only defined on the world's own transitions, is of contexts, or the world is too large.
    """
    t, n_actions = world.transitions, len(world.actions)
    if t.n_states**2 * n_actions > LARGEST:
        raise ConfigError(f"a reward on all transitions of {t.n_states} states is too large; use STARC")
    if getattr(reward, "contextual", False) or getattr(reward, "timed", False):
        raise ConfigError("EPIC compares rewards of (state, action, next state), and this one also looks elsewhere")
    if hasattr(reward, "everywhere"):
        of_pair = reward.everywhere()
    elif getattr(reward, "on", "outcomes") in ("states", "pairs"):
        of_pair = reward.step(world.table("pairs")).double()[:, None].expand(-1, t.n_states)
    else:
        raise ConfigError("EPIC looks at transitions that the world never makes, where this reward is not; use STARC")
    result = torch.zeros(t.n_states, n_actions, t.n_states, dtype=torch.float64)
    result[torch.from_numpy(t.state), torch.from_numpy(world.action_of_pair)] = of_pair
    return result


def _weights(world: TabularWorld) -> dict[str, Tensor]:
    """States in which something can be done count alike, and in each the actions that are possible."""
    t = world.transitions
    possible = torch.zeros(t.n_states, len(world.actions), dtype=torch.float64)
    possible[torch.from_numpy(t.state), torch.from_numpy(world.action_of_pair)] = 1.0
    return {"action_weight": possible, "state_weight": (possible.sum(1) > 0).double()}


@torch.no_grad()
def policy_regret(
    world: TabularWorld,
    learned: Any,
    judge: Any,
    contexts: Sequence[Any],
    *,
    temperature: float | int = 0.0,
) -> pd.Series:
    """What optimizing one reward costs, judged by another.

    Args:
        learned: the reward that is optimized.
        judge: the reward by which the policy is judged: its expected discounted sum.
        contexts: where episodes start: a state's label, or ``Start(state, destination)``; all count alike.
        temperature: 0: the optimal policy; above 0: the soft-optimal one of each reward.

    Returns:
        ``best`` (the policy of the judge itself), ``attained`` (that of the learned reward), ``at random`` (the base
        measure's), ``regret`` = best - attained, and ``share``: the regret in units of best - at random; 0 is perfect,
        1 as bad as acting at random.
    """
    policies = {"best": _policy(world, judge, contexts, temperature)}
    policies["attained"] = _policy(world, learned, contexts, temperature)
    policies["at random"] = world.base_policy()
    found = {name: float(_return(world, policy, judge, contexts)) for name, policy in policies.items()}
    found["regret"] = found["best"] - found["attained"]
    gap = found["best"] - found["at random"]
    found["share"] = found["regret"] / gap if 0 < gap < np.inf else np.nan
    return pd.Series(found, name="policy regret")


def _policy(world: TabularWorld, reward: Any, contexts: Sequence[Any], temperature: float | int) -> Any:
    goals = list(dict.fromkeys(s.destination for s in starts_of(world, contexts))) if world.destinations else [None]
    if temperature:
        return SoftPolicy(world.solve(reward, goals, temperature=float(temperature)))
    return GreedyPolicy(optimum(world, reward, goals))


def _return(world: TabularWorld, policy: Any, reward: Any, contexts: Sequence[Any]) -> Tensor:
    """The mean expected discounted sum of rewards: what a policy attains, without what it attains for nothing."""
    nothing = _Nothing()
    return (world.attained(policy, reward, contexts) - world.attained(policy, nothing, contexts)).mean()


class _Nothing:
    on = "pairs"

    def step(self, batch: Any) -> Tensor:
        return torch.zeros(len(batch.pair), dtype=torch.float64)

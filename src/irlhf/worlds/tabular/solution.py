"""Soft values of a tabular world: the three likelihoods of a demonstration, their policies and partition functions.

* **causal** (Ziebart 2010, ch. 6; Rust 1987): ``sum_t log pi(a_t|s_t)`` with
  ``V(s) = log sum_a mu(a|s) exp(r(s,a)/T + discount * E V(s'))``.
* **weighted** causal: ``sum_t discount^t log pi(a_t|s_t)`` with the same policy.
* **anticipative** (Ziebart et al. 2008): ``R(y)/T + log mu(y) + log p(y) - log Z``: nature's draws are part of what is
  chosen. For a path that stops early, the sum over how it may go on is part of its probability.

All three are the same number for complete paths in a deterministic undiscounted world, and only there.
Values are in nats: ``V/T`` in the notation of reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from irlhf.errors import ConfigError, InfeasibleError, NonFiniteError
from irlhf.functional.differentiable import LinearMap, apply
from irlhf.functional.finite_horizon import finite_horizon_values
from irlhf.functional.first_passage import first_passage_values
from irlhf.functional.stationary import advantage_map, soft_values
from irlhf.functional.transitions import Transitions
from irlhf.protocols import Factors
from irlhf.worlds.tabular.tangents import factors

if TYPE_CHECKING:
    from irlhf.worlds.tabular.world import TabularBatch, TabularWorld

KINDS = ("causal", "weighted", "anticipative")


class Counts(NamedTuple):
    """How often steps chose each utility, and the balance of each value that they looked at."""

    chosen: Int[Tensor, "pairs"]
    times: Float[Tensor, "pairs"]
    seen: Int[Tensor, "states"]
    balance: Float[Tensor, "states"]


@dataclass(frozen=True, eq=False)
class SoftValues:
    """The solution of a world for one reward.

    ``values`` is [contexts, states], or [contexts, horizon + 1, states] where the policy varies with time; where all
    contexts are alike there is one. ``transitions`` are the world's, or for the anticipative kind those in which
    nature's draw is part of the choice; ``utility`` [contexts or 1, (horizon,) choices] belongs to them.
    """

    world: TabularWorld
    kind: str
    contexts: Sequence[Any]
    transitions: Transitions
    discount: float
    utility: Tensor
    values: Tensor

    @property
    def timed(self) -> bool:
        return self.values.dim() == 3

    @cached_property
    def log_policy(self) -> Tensor:
        """``log pi`` [contexts, (horizon,) choices]: choices are pairs, or outcomes for the anticipative kind."""
        following = self.values[:, 1:] if self.timed else self.values
        present = self.values[:, :-1] if self.timed else self.values
        t = self.transitions
        log_pi = self.utility + self.discount * _expected(t, following) - present[..., torch.from_numpy(t.state)]
        # From where no end can be reached, nothing is chosen: -inf - -inf must not become a number or a NaN.
        lost = torch.isneginf(self.utility) | torch.isneginf(present[..., torch.from_numpy(t.state)].detach())
        return torch.where(lost, -torch.inf, log_pi)

    def context_rows(self, batch: TabularBatch) -> Tensor:
        """[items] -> the row of ``values`` of each item's context."""
        if len(self.values) == 1:
            return torch.zeros_like(batch.context)
        number = {x: i for i, x in enumerate(self.contexts)}
        return torch.tensor([number[x] for x in batch.contexts])[batch.context]

    def looks(self, batch: TabularBatch) -> tuple[Tensor, NDArray[np.int64], LinearMap]:
        """What every step looks at: (which utility, where in the values its state is, E[V(s')] - V(s) of its choice).

        Only that is gathered from the values of all contexts and times: no policy is formed.
        """
        choice = batch.outcome if self.kind == "anticipative" else batch.pair
        if (choice < 0).any():
            raise ConfigError(
                "the anticipative likelihood needs the state that every step led to; the panel has steps without one"
            )
        t = self.transitions
        row = self.context_rows(batch)[batch.item] if len(self.values) > 1 else torch.zeros_like(choice)
        block = row * self.values.shape[1] + batch.time if self.timed else row
        ahead = t.n_states if self.timed else 0
        here = (block * t.n_states).numpy()
        advantage = advantage_map(t, self.discount, choice.numpy(), here, ahead, self.values.numel())
        steps = self.utility.shape[1] if self.timed else 1
        number = choice
        if len(self.utility) > 1:
            number = number + row * (steps * t.n_pairs)
        if steps > 1:
            number = number + batch.time * t.n_pairs
        return number, here + t.state[choice.numpy()], advantage

    def step_log_prob(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        """``log pi(a_t|s_t)`` of every step; for the anticipative kind ``log P(a_t, s_{t+1}|s_t)``."""
        number, _, advantage = self.looks(batch)
        return self.utility.reshape(-1).index_select(0, number) + apply(advantage, self.values.reshape(-1))

    def counts(self, batch: TabularBatch, weight: Float[Tensor, "items"]) -> Counts:
        """What the weighted sum of the log-likelihoods of all paths depends on; see :meth:`total`."""
        of_step = weight[batch.item]
        if self.kind == "weighted":
            of_step = of_step * batch.step_weight
        # Equal steps are counted first: adding the same fraction a thousand times would round a thousand times alike.
        place = batch.context[batch.item]
        if self.timed:
            place = place * self.values.shape[1] + batch.time
        choice = batch.outcome if self.kind == "anticipative" else batch.pair
        key = place * self.transitions.n_pairs + choice
        _, first, same = np.unique(key.numpy(), return_index=True, return_inverse=True)
        times = of_step.new_zeros(len(first)).index_add(0, torch.from_numpy(same), of_step)
        columns = ("item", "step_weight", "state", "pair", "outcome", "time")
        number, here, advantage = self.looks(replace(batch, **{name: getattr(batch, name)[first] for name in columns}))
        utility = times.new_zeros(self.utility.numel()).index_add(0, number, times)
        values = advantage.backward(times.numpy())
        chosen = number.unique()
        seen = torch.from_numpy(np.union1d(np.flatnonzero(values), here))  # a balance of 0 may hide a value of -inf
        return Counts(chosen, utility[chosen], seen, torch.from_numpy(values)[seen])

    def total(self, counts: Counts) -> Float[Tensor, ""]:
        """The weighted sum of `log_prob`, which is linear in utilities and values; not finite where one of them is not.

        ``sum_t log pi(a_t|s_t) = sum_p n(p) u(p) + sum_s b(s) V(s)`` with n(p) the number of steps that chose p, and
        b(s) the (discounted) number expected to arrive in s less the number that left it.
        """
        utility = self.utility.reshape(-1).index_select(0, counts.chosen)
        return counts.times @ utility + counts.balance @ self.values.reshape(-1).index_select(0, counts.seen)

    def factors(self, batch: TabularBatch, counts: Counts) -> Factors:
        """The likelihood of a batch for second derivatives."""
        return factors(self, batch, counts)

    def sum(self, batch: TabularBatch, per_step: Float[Tensor, "steps"]) -> Float[Tensor, "items"]:
        """Adds up the steps of each path as the kind of likelihood that was solved for does."""
        return batch.sum(per_step, discounted=self.kind == "weighted")

    def log_prob(self, batch: TabularBatch) -> Float[Tensor, "items"]:
        """The log-likelihood of each path, of the kind that was solved for."""
        return self.sum(batch, self.step_log_prob(batch))

    def log_z(self, contexts: Sequence[Any], starts: Sequence[Any]) -> Float[Tensor, "items"]:
        """``log Z`` (causal: the soft value ``V/T``) of starting at each state label under each context."""
        number = {x: i for i, x in enumerate(self.contexts)}
        row = torch.tensor([number[x] if len(self.values) > 1 else 0 for x in contexts])
        start = torch.from_numpy(self.world.state_numbers(starts))
        return self.values[(row, 0, start) if self.timed else (row, start)]


def _expected(transitions: Transitions, values: Tensor) -> Tensor:
    """``sum_{s'} p(s'|choice) V(s')``, [..., states] -> [..., choices]; -inf if any outcome has value -inf."""
    ahead = values[..., torch.from_numpy(transitions.next_state)]
    if transitions.deterministic:
        return ahead
    weighted = ahead * torch.from_numpy(transitions.probability)
    choice = torch.from_numpy(transitions.pair_of_outcome)
    return weighted.new_zeros((*values.shape[:-1], transitions.n_pairs)).index_add(-1, choice, weighted)


def solve(
    world: TabularWorld,
    reward: Any,
    contexts: Sequence[Any],
    *,
    temperature: Tensor | float,
    kind: str,
    warm_start: Tensor | None,
) -> SoftValues:
    """See :meth:`irlhf.worlds.tabular.world.TabularWorld.solve`."""
    t = world.transitions
    anticipative = kind == "anticipative"
    # In a deterministic world nature draws nothing, and only the discount sets the kinds apart.
    expand = anticipative and not world.deterministic
    on = getattr(reward, "on", "outcomes")
    per_step = world_reward(world, reward, contexts, on) / temperature
    base = world.log_base_of_pair
    outcome_pair = torch.from_numpy(t.pair_of_outcome)
    if expand:
        if on != "outcomes":
            per_step = per_step[..., outcome_pair]
        base = base[outcome_pair] + torch.from_numpy(np.log(t.probability))
        t = _by_outcome(world)
    elif on == "outcomes":
        per_step = _averaged(world, per_step)
    discount, horizon = world.discount, world.horizon
    absorbing = None
    if world.destinations:
        absorbing = torch.zeros(len(contexts), t.n_states, dtype=torch.bool)
        absorbing[torch.arange(len(contexts)), torch.from_numpy(world.state_numbers(contexts, "destination"))] = True
    if anticipative and discount < 1:
        # The discount multiplies the reward of a step, not the log-probability of what follows it.
        horizon = horizon or _effective_horizon(world, per_step)
        utility = per_step * (discount ** torch.arange(horizon, dtype=torch.float64))[:, None] + base
        discount = 1.0
    else:
        utility = per_step + base
        if horizon is None:
            utility = utility[:, 0]
    try:
        if horizon is not None:
            n = len(contexts) if world.destinations else len(utility)
            values = finite_horizon_values(utility.expand(n, -1, -1), t, discount, horizon, absorbing=absorbing)
        elif world.destinations and discount == 1 and len(utility) == 1 and t.deterministic:
            assert absorbing is not None
            values = first_passage_values(utility[0], t, absorbing.nonzero()[:, 1])
        else:
            n = len(contexts) if world.destinations else len(utility)
            if absorbing is not None:
                utility = torch.where(_into_dead_end(t, absorbing), -torch.inf, utility)
            values = soft_values(
                utility.expand(n, -1), t, discount, absorbing=absorbing, warm_start=warm_start, tolerance=1e-14
            )
    except ArithmeticError as error:
        raise InfeasibleError(
            f"log Z has no value at these parameters: {error}; give a lower start, a discount below 1, or a horizon"
        ) from error
    return SoftValues(world, kind, contexts, t, discount, utility, values)


def _into_dead_end(t: Transitions, absorbing: Tensor) -> Tensor:
    """[contexts, pairs] Where a pair may lead to a state without actions that is not the destination."""
    dead = torch.from_numpy(t.terminal) & ~absorbing
    of_outcome = dead[:, torch.from_numpy(t.next_state)]
    count = torch.zeros(len(dead), t.n_pairs, dtype=torch.int64)
    return count.index_add(1, torch.from_numpy(t.pair_of_outcome), of_outcome.long()) > 0


def world_reward(
    world: TabularWorld, reward: Any, contexts: Sequence[Any], on: str
) -> Float[Tensor, "contexts times choices"]:
    """The reward of the world's own table of pairs or outcomes, in float64.

    One context and one time stand for all, unless the reward says ``contextual = True`` (its ``step`` looks at the
    batch's contexts) or ``timed = True`` (at its times, in a world with a horizon).

    Raises:
        NonFiniteError: a NaN or an infinity; names the state and the action.
        ConfigError: the reward varies with time, but the world has no horizon.
    """
    contextual, timed = getattr(reward, "contextual", False), getattr(reward, "timed", False)
    if timed and world.horizon is None:
        raise ConfigError("the reward varies with time, but the world has no horizon; give one, or a stationary reward")
    table = world.table(on, contexts=contexts if contextual else None, timed=timed)
    n = len(world.table(on).pair)
    per_step = reward.step(table).double().reshape(len(contexts) if contextual else 1, -1, n)
    bad = ~torch.isfinite(per_step.detach())
    if getattr(reward, "normalized", False):  # T log pi/mu is -inf where the policy never goes
        bad &= ~torch.isneginf(per_step.detach())
    bad = bad.reshape(-1, n).any(0)
    if bad.any():
        pair = int(table.pair[bad.nonzero()[0, 0]])
        state, action = world.pair_table().iloc[pair]
        raise NonFiniteError(
            f"the reward of state {state!r}, action {action!r} is not finite; no parameter was changed"
        )
    return per_step


def _averaged(world: TabularWorld, of_outcome: Tensor) -> Float[Tensor, "contexts times pairs"]:
    """Over the outcomes of each pair."""
    t = world.transitions
    if world.deterministic:
        return of_outcome
    weighted = of_outcome * torch.from_numpy(t.probability)
    choice = torch.from_numpy(t.pair_of_outcome)
    return weighted.new_zeros(*of_outcome.shape[:-1], t.n_pairs).index_add(-1, choice, weighted)


def pair_reward(world: TabularWorld, reward: Any, contexts: Sequence[Any]) -> Float[Tensor, "contexts times pairs"]:
    """The expected reward of every pair; see :func:`world_reward`."""
    on = getattr(reward, "on", "outcomes")
    per_step = world_reward(world, reward, contexts, on)
    return _averaged(world, per_step) if on == "outcomes" else per_step


def _by_outcome(world: TabularWorld) -> Transitions:
    if "_by_outcome" not in world.__dict__:
        world.__dict__["_by_outcome"] = world.transitions.by_outcome()
    return world.__dict__["_by_outcome"]


def _effective_horizon(world: TabularWorld, per_step: Tensor, tolerance: float = 1e-12, limit: int = 20_000) -> int:
    """Steps after which all later discounted rewards together are below ``tolerance``."""
    mass = torch.zeros(world.transitions.n_states, dtype=torch.float64)
    mass.index_add_(0, torch.from_numpy(world.transitions.state), world.log_base_of_pair.exp())
    if not torch.allclose(mass[torch.from_numpy(~world.transitions.terminal)], torch.ones((), dtype=torch.float64)):
        raise ConfigError(
            "the anticipative likelihood of a discounted endless world needs a base measure that sums to one over the "
            "actions of every state (otherwise Z is infinite): give log_base, a horizon, or the causal kind"
        )
    top = float(per_step.detach().abs().max())
    steps = int(np.ceil(np.log(tolerance * (1 - world.discount) / max(top, tolerance)) / np.log(world.discount)))
    if steps > limit:
        raise ConfigError(
            f"at discount {world.discount} the anticipative likelihood looks {steps} steps ahead; "
            "give a horizon or use the causal kind"
        )
    return max(steps, 1)

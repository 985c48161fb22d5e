"""Policies of the tabular world, and the state values that a critic learns. All are modules, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.functional.choice import set_logsumexp
from irlhf.functional.stationary import possible

if TYPE_CHECKING:
    from irlhf.worlds.tabular.solution import SoftValues
    from irlhf.worlds.tabular.world import TabularBatch, TabularWorld


EQUAL = 1e-10  # of the largest value: actions whose advantages differ by less are equally good


class _Table(nn.Module):
    """Numbers for each (context, time, place): what a policy or a critic looks up for the steps of a batch.

    Args:
        contexts: those that have numbers of their own; None: all contexts share them.
        timed: whether every step up to the horizon has numbers of its own.
    """

    def __init__(self, world: TabularWorld, contexts: Sequence[Any] | None, timed: bool):
        super().__init__()
        if timed and world.horizon is None:
            raise ConfigError("a policy that varies with time needs a world with a horizon; leave timed out")
        self.contexts = None if contexts is None else list(dict.fromkeys(contexts))
        self._row = {x: k for k, x in enumerate(self.contexts or [])}
        self.contextual, self.timed = contexts is not None, timed
        self.times = world.horizon if timed and world.horizon is not None else 1
        self.shape = ([len(self._row)] if self.contextual else []) + ([self.times] if timed else [])

    def block(self, batch: TabularBatch) -> Int[Tensor, "steps"]:
        """Which (context, time) each step belongs to, as a number."""
        number = torch.zeros_like(batch.item)
        if self.contextual:
            if lost := [x for x in batch.contexts if x not in self._row]:
                raise ConfigError(f"the policy has no numbers for the context {lost[0]!r}; make it with this context")
            rows = torch.tensor([self._row[x] for x in batch.contexts], dtype=torch.int64)
            number = rows[batch.context].index_select(0, batch.item)
        return number * self.times + batch.time if self.timed else number


class SoftmaxPolicy(_Table):
    """``pi(a|s)`` proportional to ``mu(a|s) exp(logit)``, one logit for each pair: any policy can be written so.

    With all logits zero, as it starts, it is the base measure.

    Args:
        world: gives the pairs and the base measure.
        contexts: contexts (destinations) with logits of their own, and without the actions from which theirs cannot be
            reached; None: one policy for all, wherever they go.
        timed: whether the policy varies with time; default: where the world has a horizon. Its ``logits`` are then
            [(contexts,) horizon, pairs], otherwise [(contexts,) pairs].
    """

    on = "pairs"

    def __init__(self, world: TabularWorld, *, contexts: Sequence[Any] | None = None, timed: bool | None = None):
        super().__init__(world, contexts, world.horizon is not None if timed is None else timed)
        t = world.transitions
        self.logits = nn.Parameter(torch.zeros(*self.shape, t.n_pairs, dtype=torch.float64))
        self.register_buffer("state", torch.from_numpy(t.state), persistent=False)
        self.register_buffer("log_base", self._log_base(world), persistent=False)
        self.n_states = t.n_states

    def _log_base(self, world: TabularWorld) -> Float[Tensor, "... pairs"]:
        """``log mu``; with destinations of its own for each, -inf where an action leads out of reach of it."""
        base = world.log_base_of_pair
        if not (world.destinations and self.contexts) or world.horizon is not None:
            return base
        goals = world.state_numbers(self.contexts, "destination")
        rows = []
        for goal in goals:
            exits = np.arange(world.transitions.n_states) == goal
            _, allowed, _ = possible(base.numpy(), exits, world.transitions, world.discount, must_exit=True)
            rows.append(torch.where(torch.from_numpy(allowed), base, -torch.inf))
        return torch.stack(rows)

    def log_policy(self) -> Float[Tensor, "... pairs"]:
        utility = self.logits + self.get_buffer("log_base")
        rows = utility.reshape(-1, utility.shape[-1])
        sets = (torch.arange(len(rows))[:, None] * self.n_states + self.get_buffer("state")).reshape(-1)
        total = set_logsumexp(rows.reshape(-1), sets, len(rows) * self.n_states).index_select(0, sets)
        total = torch.where(torch.isneginf(total), 0.0, total)  # where nothing is possible, nothing is chosen
        return utility - total.reshape(utility.shape)

    def log_prob(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        log_pi = self.log_policy()
        return log_pi.reshape(-1).index_select(0, self.block(batch) * log_pi.shape[-1] + batch.pair)


class SoftPolicy(nn.Module):
    """The policy of a solved world, as ``SoftPolicy(world.solve(reward))``: fixed, it has no parameters.

    Raises:
        ConfigError: the solution is anticipative in a stochastic world, and chooses nature's draws as well.
    """

    def __init__(self, solution: SoftValues):
        super().__init__()
        if solution.kind == "anticipative" and not solution.world.deterministic:
            raise ConfigError("an anticipative solution chooses nature's draws too, so it is no policy; solve 'causal'")
        self.solution = solution
        self.contextual, self.timed = len(solution.values) > 1, solution.timed

    def log_prob(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        log_pi, row = self.solution.log_policy.detach(), self.solution.context_rows(batch)[batch.item]
        return log_pi[(row, batch.time, batch.pair) if self.timed else (row, batch.pair)]


class GreedyPolicy(SoftPolicy):
    """The optimal policy, as ``GreedyPolicy(tabular.optimum(world, reward))``: equally good actions share alike."""

    def __init__(self, solution: SoftValues):
        super().__init__(solution)
        advantage, state = solution.log_policy.detach(), torch.from_numpy(solution.transitions.state)
        values = solution.values.detach()
        scale = max(1.0, float(values[torch.isfinite(values)].abs().max()))
        best = (advantage >= -EQUAL * scale).double()
        among = torch.zeros(*best.shape[:-1], solution.transitions.n_states, dtype=torch.float64)
        among = among.index_add(-1, state, best)
        self.register_buffer("log_policy", (best / among[..., state].clamp(min=1)).log(), persistent=False)

    def log_prob(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        log_pi, row = self.get_buffer("log_policy"), self.solution.context_rows(batch)[batch.item]
        return log_pi[(row, batch.time, batch.pair) if self.timed else (row, batch.pair)]


class BasePolicy(nn.Module):
    """The base measure as a policy: ``mu(a|s)`` divided by its sum over the actions of the state."""

    contextual = timed = False

    def __init__(self, world: TabularWorld):
        super().__init__()
        state = torch.from_numpy(world.transitions.state)
        total = set_logsumexp(world.log_base_of_pair, state, world.transitions.n_states)
        self.register_buffer("log_policy", world.log_base_of_pair - total[state], persistent=False)

    def log_prob(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        return self.get_buffer("log_policy").index_select(0, batch.pair)


class StateValues(_Table):
    """A critic: one number for each state (context, time), zeros at first."""

    def __init__(self, world: TabularWorld, *, contexts: Sequence[Any] | None = None):
        super().__init__(world, contexts, world.horizon is not None)
        self.values = nn.Parameter(torch.zeros(*self.shape, world.transitions.n_states, dtype=torch.float64))
        self.register_buffer("next_state", torch.from_numpy(world.transitions.next_state), persistent=False)
        self.n_states = world.transitions.n_states

    def now(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        """The value of the state in which each step is taken."""
        return self.values.reshape(-1).index_select(0, self.block(batch) * self.n_states + batch.state)

    def after(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        """The value of the state that each step led to. Of no use where nothing follows: the learner knows where."""
        following = self.get_buffer("next_state")[batch.outcome]
        later = torch.clamp(batch.time + 1, max=self.times - 1) - batch.time if self.timed else 0
        return self.values.reshape(-1).index_select(0, (self.block(batch) + later) * self.n_states + following)

"""What people would do if the world were another: policies, flows and welfare of a counterfactual, with intervals.

The estimates are those of the fit; what changes is the world (dynamics, discount, what is possible), the features, or
the parameters themselves. Errors are those of the estimates, carried through both solutions by the delta method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.functional.derivatives import jacobian
from irlhf.functional.finite_horizon import finite_horizon_occupancy
from irlhf.functional.stationary import occupancy
from irlhf.worlds.tabular.build import from_table
from irlhf.worlds.tabular.draws import Start, origins, starts_of
from irlhf.worlds.tabular.features import Features
from irlhf.worlds.tabular.world import TabularWorld


def changed(
    world: TabularWorld,
    *,
    transitions: pd.DataFrame | None = None,
    discount: float | None = None,
    horizon: int | None = None,
    forbid: Iterable[Any] = (),
) -> TabularWorld:
    """A world like another, with something changed. States and pairs (state, action) keep their numbers.

    Args:
        transitions: a table as :func:`from_table` takes it, of the same states. Pairs that it lacks become impossible.
        discount, horizon: other ones; None: as they are.
        forbid: actions that are no longer possible: an action (wherever it is), or a pair ``(state, action)``.

    Raises:
        ConfigError: states or pairs that the world does not have, or a state that is left without any action.
    """
    base, table = world.log_base_of_pair.clone(), world.pair_table()
    dynamics = world.transitions
    if transitions is not None:
        given = from_table(transitions, states=list(world.states), discount=0.0)
        own = given.pair_table()
        action = world.actions.get_indexer(pd.Index(own["action"], dtype=object))
        number = world.pair_numbers(given.transitions.state, action)
        if (number < 0).any():
            row = own.iloc[int(np.argmax(number < 0))]
            raise ConfigError(
                f"the changed transitions have the action {row['action']!r} in state {row['state']!r}, which the world "
                "of the fit does not have; the reward says nothing about it"
            )
        missing = np.setdiff1d(np.arange(dynamics.n_pairs), number)
        base[torch.from_numpy(missing)] = -torch.inf
        kept = world.outcome_table().iloc[np.isin(dynamics.pair_of_outcome, missing)]
        both = pd.concat([given.outcome_table(), kept], ignore_index=True)
        dynamics = from_table(both, states=list(world.states), discount=0.0).transitions
    for what in forbid:
        pair = what if isinstance(what, tuple) and len(what) == 2 and what not in world.actions else (None, what)
        gone = (table["action"] == pair[1]).to_numpy().copy()
        if pair[0] is not None:
            gone &= (table["state"] == pair[0]).to_numpy()
        if not gone.any():
            where = "" if pair[0] is None else f" in state {pair[0]!r}"
            raise ConfigError(f"there is no action {pair[1]!r}{where} that could be forbidden; check the spelling")
        base[torch.from_numpy(gone)] = -torch.inf
    possible = np.bincount(dynamics.state, np.isfinite(base.numpy()), minlength=dynamics.n_states)
    if (stuck := (possible == 0) & ~dynamics.terminal & ~world.transitions.terminal).any() and not world.destinations:
        raise ConfigError(f"state {world.states[int(np.argmax(stuck))]!r} is left without any action; forbid fewer")
    return TabularWorld(
        dynamics,
        states=list(world.states),
        actions=list(table["action"]),
        discount=world.discount if discount is None else discount,
        horizon=world.horizon if horizon is None else horizon,
        destinations=world.destinations,
        log_base=base,
    )


@dataclass(frozen=True, eq=False)
class WhatIf:
    """What a change would do. Every table has the columns ``before``, ``after`` and ``change``, and of the latter two
    the standard error and the interval.

    * ``policy``: the probability of each action in each state (under each destination, at each time);
    * ``flows``: the expected (discounted) number of times that each action is taken in each state, on an average trip;
    * ``visits``: the same of states;
    * ``welfare``: the soft value of each start in units of the reward (Small and Rosen 1981; a constant is left out),
      and on average; with ``money``, its change in units of what that parameter prices.
    """

    policy: pd.DataFrame
    flows: pd.DataFrame
    visits: pd.DataFrame
    welfare: pd.DataFrame
    how: str
    """Which standard errors these are."""

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        return {"welfare": self.welfare, "policy": self.policy, "flows": self.flows, "visits": self.visits}

    def __str__(self) -> str:
        return f"{self.welfare.to_string(float_format=lambda x: f'{x:.4f}')}\n\nstandard errors: {self.how}"


def whatif(
    fit: Any,
    *,
    world: TabularWorld | None = None,
    features: Features | None = None,
    parameters: Mapping[str, float | int | Callable[[Tensor], Tensor]] | None = None,
    starts: Sequence[Any] | None = None,
    money: str | None = None,
    kind: str = "hessian",
    cluster: str | None = None,
    level: float = 0.95,
    draws: int | None = None,
    seed: int = 0,
) -> WhatIf:
    """The counterfactual of a fit: its people in another world, or with another reward.

    Args:
        fit: of a tabular world, by maximum likelihood.
        world: the other world, with the same states and pairs: see :func:`changed`.
        features: other features of a linear reward, of the same names.
        parameters: by name another value, or a function of the estimate: ``{"toll": lambda x: 2 * x}``.
        starts: where trips start: a state's label, or ``Start(state, destination)``. Default: where those of the fit
            did, as often.
        money: a parameter whose size is what one unit of its feature is worth (a cost): the change of welfare is then
            also given in these units, as a compensating variation.
        kind, cluster: of the standard errors, as in :meth:`Fit.standard_errors`.
        draws: None: the delta method; or so many draws of the parameters, and quantiles of what they give.

    Raises:
        ConfigError: no change, or one that does not fit the world.
        InfeasibleError: the changed world has no solution.
    """
    if world is None and features is None and not parameters:
        raise ConfigError("nothing is changed: give another world, features or parameters")
    problem, terms = fit.problem, [t for t in fit.terms if isinstance(t.likelihood.world, TabularWorld)]
    if not terms:
        raise ConfigError("counterfactuals are of tabular worlds, and no term of the fit has one")
    did = [t for t in terms if getattr(t.likelihood, "kind", None)] or terms[:1]
    before, how = did[0].likelihood.world, getattr(did[0].likelihood, "kind", "causal")
    if how == "anticipative" and not before.deterministic:
        raise ConfigError("the policy of an anticipative fit chooses nature's draws, too; fit the causal likelihood")
    after = before if world is None else world
    if len(after.states) != len(before.states) or not after.pair_table().equals(before.pair_table()):
        raise ConfigError("the other world has other states or pairs; make it from that of the fit by changed(...)")
    if features is not None and not hasattr(fit.reward, "features"):
        raise ConfigError("the reward has no features that could be changed")
    if features is not None and features.names != fit.reward.features.names:
        raise ConfigError(f"the other features must be {', '.join(fit.reward.features.names)}, in this order")
    for name in [*(parameters or {}), *([money] if money else [])]:
        problem._number(name)
    if starts is None:
        found = [s for t in did for s in origins(before, t.prepared.batch)]
        often = torch.cat([t.row_weight for t in did])
    else:
        found, often = starts_of(before, starts), torch.ones(len(starts), dtype=torch.float64)
    distinct = list(dict.fromkeys(found))
    share = torch.zeros(len(distinct)).double().index_add(0, torch.tensor([distinct.index(s) for s in found]), often)
    trips = _Trips(before, distinct, share / share.sum())
    source = did[0].source

    def outputs(theta: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        moved = theta if not parameters else _moved(problem.names, theta, parameters)
        now = problem.evaluated(theta, lambda reward: trips.outcome(before, reward, source.temperature))
        other = problem.evaluated(
            moved, lambda reward: trips.outcome(after, _with(reward, features), source.temperature)
        )
        both = {name: (now[name], other[name]) for name in now}
        if money:
            worth = theta[problem.names.index(money)].abs()
            both["money"] = (torch.zeros_like(now["welfare"]), (other["welfare"] - now["welfare"]) / worth)
        return both

    found_tables, label = _with_errors(fit, outputs, kind, cluster, level, draws, seed)
    welfare = found_tables["welfare"].set_axis([*map(str, distinct), "on average"])
    if money:
        priced = found_tables["money"].set_axis(welfare.index).filter(like="change")
        welfare = welfare.join(priced.add_suffix(f" in {money}"))
    policy, flows, visits = (trips.labeled(name, found_tables[name]) for name in ("policy", "flows", "visits"))
    way = "delta method" if draws is None else f"{draws} draws of the parameters"
    return WhatIf(policy, flows, visits, welfare, f"{label}, {way}")


def _moved(names: Sequence[str], theta: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    parts = []
    for name, value in zip(names, theta, strict=True):
        to = parameters.get(name)
        parts.append(value if to is None else to(value) if callable(to) else torch.full_like(value, float(to)))
    return torch.stack(parts)


def _with(reward: Any, features: Features | None) -> Any:
    """The reward with other features: a shallow copy that shares its parameters, which are swapped from outside."""
    if features is None:
        return reward
    other = copy.copy(reward)
    other.features = features
    return other


@dataclass(frozen=True, eq=False)
class _Trips:
    """Where trips start and, with destinations, go; and what is asked about them."""

    world: TabularWorld
    starts: list[Start]
    share: Tensor  # [starts]

    @property
    def goals(self) -> list[Any]:
        return list(dict.fromkeys(s.destination for s in self.starts)) if self.world.destinations else [None]

    def outcome(self, world: TabularWorld, reward: Any, temperature: Tensor) -> dict[str, Tensor]:
        t, goals = world.transitions, self.goals
        solution = world.solve(reward, goals, temperature=temperature)
        row = torch.tensor([goals.index(s.destination) if world.destinations else 0 for s in self.starts])
        state = torch.from_numpy(world.state_numbers([s.state for s in self.starts], "start"))
        initial = torch.zeros(len(goals), t.n_states, dtype=torch.float64)
        initial = initial.index_put((row, state), self.share, accumulate=True)
        absorbing = None
        if world.destinations:
            absorbing = torch.zeros(len(goals), t.n_states, dtype=torch.bool)
            absorbing[torch.arange(len(goals)), torch.from_numpy(world.state_numbers(goals, "destination"))] = True
        visit = finite_horizon_occupancy if solution.timed else occupancy
        times = visit(solution.log_policy, initial, t, world.discount, absorbing=absorbing)
        flows = times.reshape(-1, t.n_pairs).sum(0)
        values = temperature * solution.log_z([s.destination if world.destinations else None for s in self.starts],
                                              [s.state for s in self.starts])  # fmt: skip
        if solution.contexts != goals:
            raise ConfigError("the solution has other contexts than were asked for")
        return {
            "policy": solution.log_policy.exp(),
            "flows": flows,
            "visits": flows.new_zeros(t.n_states).index_add(0, torch.from_numpy(t.state), flows),
            "welfare": torch.cat([values, (self.share @ values)[None]]),
        }

    def labeled(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        if name == "visits":
            return table.set_axis(pd.Index(self.world.states, name="state"))
        pairs = self.world.pair_table()
        if name == "flows":
            return table.set_axis(pd.MultiIndex.from_frame(pairs))
        n, times = len(table) // len(pairs), self.world.horizon or 1
        index = pd.concat([pairs] * n, ignore_index=True)
        block = np.arange(n).repeat(len(pairs))
        if self.world.horizon is not None:
            index.insert(0, "time", block % times)
        if self.world.destinations:
            index.insert(0, "destination", [self.goals[k] for k in block // times])
        return table.set_axis(pd.MultiIndex.from_frame(index))


def _with_errors(
    fit: Any,
    outputs: Callable[[Tensor], dict[str, tuple[Tensor, Tensor]]],
    kind: str,
    cluster: str | None,
    level: float,
    draws: int | None,
    seed: int,
) -> tuple[dict[str, pd.DataFrame], str]:
    """A table for each output, and which standard errors these are."""
    theta = fit.theta.clone().requires_grad_()
    both = outputs(theta)
    flat = lambda found: torch.cat([x.reshape(-1) for a, b in found.values() for x in (b, b - a)])  # noqa: E731
    told = flat(both)
    at = told.detach()
    if draws is None:
        found = fit.errors_of(jacobian(told, theta), kind, cluster=cluster)
        errors, label = torch.from_numpy(found.to_numpy().copy()), str(found.name)
        half = stats.norm.ppf(0.5 + level / 2) * errors
        low, high = at - half, at + half
    else:
        covariance = fit.covariance(kind, cluster=cluster).to_numpy()
        label = str(fit.standard_errors(kind, cluster=cluster).name)
        if not np.isfinite(covariance).all():
            raise ConfigError("some parameters are not identified, so they cannot be simulated; leave draws out")
        rng, simulated = np.random.default_rng(seed), []
        with torch.no_grad():
            for row in rng.multivariate_normal(fit.theta.numpy(), covariance, size=draws):
                simulated.append(flat(outputs(torch.from_numpy(row))))
        every = torch.stack(simulated)
        errors = every.std(0)
        low, high = torch.quantile(every, torch.tensor([0.5 - level / 2, 0.5 + level / 2]).double(), dim=0)
    percent = f"{100 * level:g}%"
    columns = {"std. error": errors, f"lower {percent}": low, f"upper {percent}": high}
    tables, first = {}, 0
    for name, (a, b) in both.items():
        n = a.numel()
        table = {"before": a.detach().reshape(-1), "after": b.detach().reshape(-1)}
        table |= {key: x[first : first + n] for key, x in columns.items()}
        table |= {"change": table["after"] - table["before"]}
        table |= {f"change: {key}": x[first + n : first + 2 * n] for key, x in columns.items()}
        tables[name] = pd.DataFrame({key: x.numpy() for key, x in table.items()})
        first += 2 * n
    return tables, label

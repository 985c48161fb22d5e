"""The tabular world: finitely many states and actions, known or estimated transitions, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from irlhf.errors import ConfigError, TrajectoryError
from irlhf.functional.transitions import Transitions
from irlhf.protocols import Batch, Draws
from irlhf.randomness import Key
from irlhf.worlds.tabular import draws
from irlhf.worlds.tabular.attained import attained
from irlhf.worlds.tabular.draws import Start
from irlhf.worlds.tabular.feasible import feasible_start
from irlhf.worlds.tabular.gauge import explain
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths, objects
from irlhf.worlds.tabular.policies import BasePolicy, StateValues
from irlhf.worlds.tabular.solution import KINDS, SoftValues, solve


@dataclass(frozen=True, eq=False)
class TabularBatch(Batch):
    """Steps of paths as numbers of the world's states, pairs (state, action) and outcomes (state, action, next)."""

    state: Int[Tensor, "steps"]
    pair: Int[Tensor, "steps"]
    outcome: Int[Tensor, "steps"]  # -1 where the next state was not observed
    time: Int[Tensor, "steps"]  # when the step was, counted from 0; steps missing in a gap count


class TabularWorld:
    """A Markov decision process or a graph with labels, a discount, and how it ends.

    Three ways to end, and with them three ways to solve:

    * ``discount`` < 1: infinite horizon, one stationary policy;
    * ``horizon=H``: H steps, a policy for every step, any discount in [0, 1];
    * ``discount=1``: undiscounted until an absorbing state. With ``destinations=True`` the context of a path is the
      label of the state where it is going, absorbing for that path alone; otherwise states without actions absorb.

    Args:
        transitions: sparse dynamics; see :class:`irlhf.functional.transitions.Transitions`.
        states: the label of each state.
        actions: the label of the action of each pair. Within a state they must differ.
        log_base: [pairs] ``log mu(a|s)``, the base measure; None counts every action once (log mu = 0).

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        transitions: Transitions,
        *,
        states: Sequence[Any] | None = None,
        actions: Sequence[Any],
        discount: float = 1.0,
        horizon: int | None = None,
        destinations: bool = False,
        log_base: Float[Tensor, "pairs"] | NDArray[np.float64] | None = None,
    ):
        self.transitions = transitions
        self._tables: dict[bool, TabularBatch] = {}
        self.states = _index("states", range(transitions.n_states) if states is None else states)
        self.actions = _index("actions", sorted(set(actions), key=_label_order))
        self.action_of_pair = self.actions.get_indexer(pd.Index(objects(list(actions)), dtype=object))
        self.discount, self.horizon, self.destinations = float(discount), horizon, destinations
        if len(self.states) != transitions.n_states:
            raise ConfigError(f"{len(self.states)} state labels for {transitions.n_states} states; give one for each")
        if len(self.action_of_pair) != transitions.n_pairs:
            raise ConfigError(f"{len(self.action_of_pair)} actions for {transitions.n_pairs} pairs; give one for each")
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"discount is {discount}; it must lie between 0 and 1")
        if horizon is not None and horizon < 1:
            raise ConfigError(f"horizon is {horizon}; give at least 1 step, or None for no limit")
        if self.discount == 1 and horizon is None and not destinations and not transitions.terminal.any():
            raise ConfigError(
                "discount is 1, there is no horizon and no state absorbs: the sum over paths never ends; "
                "give a discount below 1, a horizon, states without actions, or destinations=True"
            )
        key = self._pair_key(transitions.state, self.action_of_pair)
        if np.any(np.diff(key) <= 0):
            raise ConfigError("pairs must be sorted by (state, action label) without repetition; use from_table")
        base = np.zeros(transitions.n_pairs) if log_base is None else log_base
        self.log_base_of_pair = torch.as_tensor(np.asarray(base), dtype=torch.float64)
        if self.log_base_of_pair.shape != (transitions.n_pairs,):
            raise ConfigError(f"log_base has shape {tuple(self.log_base_of_pair.shape)}; give one number for each pair")
        if torch.isnan(self.log_base_of_pair).any() or (self.log_base_of_pair == torch.inf).any():
            raise ConfigError("log_base must be numbers; -inf forbids an action")

    def __repr__(self) -> str:
        t = self.transitions
        ends = f"horizon={self.horizon}" if self.horizon else f"discount={self.discount:g}"
        kind = "deterministic" if self.deterministic else "stochastic"
        return f"TabularWorld({t.n_states} states, {t.n_pairs} state-action pairs, {kind}, {ends})"

    @property
    def deterministic(self) -> bool:
        """True where the policy alone decides what happens."""
        return self.transitions.deterministic

    def _pair_key(self, state: NDArray[np.int64], action: NDArray[np.int64]) -> NDArray[np.int64]:
        return state * len(self.actions) + action

    @cached_property
    def _pair_keys(self) -> NDArray[np.int64]:
        return self._pair_key(self.transitions.state, self.action_of_pair)

    @cached_property
    def _outcome_keys(self) -> NDArray[np.int64]:
        t = self.transitions
        return t.pair_of_outcome * t.n_states + t.next_state

    def pair_table(self) -> pd.DataFrame:
        """One row for each pair, with the labels ``state`` and ``action``: what features of pairs must cover."""
        states = self.states.to_numpy()[self.transitions.state]
        return pd.DataFrame({"state": states, "action": self.actions.to_numpy()[self.action_of_pair]}, dtype=object)

    def outcome_table(self) -> pd.DataFrame:
        """One row for each outcome: ``state``, ``action``, ``next_state``, ``probability``."""
        t = self.transitions
        table = self.pair_table().iloc[t.pair_of_outcome].reset_index(drop=True)
        return table.assign(next_state=self.states.to_numpy()[t.next_state], probability=t.probability)

    def state_numbers(self, labels: Sequence[Any], what: str = "state") -> NDArray[np.int64]:
        """The numbers of states given by label. Raises ConfigError for one that the world does not have."""
        number = self.states.get_indexer(pd.Index(objects(list(labels)), dtype=object))
        if (number < 0).any():
            raise ConfigError(f"{what} {labels[int(np.argmax(number < 0))]!r} is not a state of this world")
        return number

    def pair_numbers(self, state: NDArray[np.int64], action: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs of given states and action numbers; -1 where the world has no such pair."""
        return _lookup(self._pair_keys, np.where(action >= 0, self._pair_key(state, action), -1))

    def outcome_numbers(self, pair: NDArray[np.int64], following: NDArray[np.int64]) -> NDArray[np.int64]:
        """The outcomes of given pairs and next states; -1 where there is none (or pair or state is -1)."""
        known = (pair >= 0) & (following >= 0)
        return _lookup(self._outcome_keys, np.where(known, pair * self.transitions.n_states + following, -1))

    def collate(self, contexts: Sequence[Any], trajectories: Sequence[Path] | Paths) -> TabularBatch:
        """One batch of paths, each at its context.

        Raises:
            ConfigError: a path that this world does not allow: names the path, the step and the reason.
        """
        paths = Paths.of(trajectories)
        if len(contexts) != len(paths):
            raise ConfigError(f"{len(contexts)} contexts for {len(paths)} trajectories; give one for each")
        distinct: dict[Any, int] = {}
        context = np.array([distinct.setdefault(x, len(distinct)) for x in contexts], np.int64)
        length = np.diff(paths.first_step)
        item = np.repeat(np.arange(len(paths)), length)
        time = paths.time

        def check(wrong: NDArray[np.bool_], reason: str) -> None:
            if wrong.any():
                k = int(np.argmax(wrong))
                s, a = paths.state[k], paths.action[k]
                raise TrajectoryError(int(item[k]), f"step {time[k]} (state {s!r}, action {a!r}): {reason}")

        state = self.states.get_indexer(pd.Index(paths.state, dtype=object))
        check(state < 0, "the world has no such state")
        action = self.actions.get_indexer(pd.Index(paths.action, dtype=object))
        pair = self.pair_numbers(state, action)
        check(pair < 0, "this action is not possible in this state")
        check(np.isneginf(self.log_base_of_pair.numpy())[pair], "the base measure forbids this action")
        known = np.array([label is not UNKNOWN for label in paths.next_state], bool)
        following = np.full(len(item), -1)
        following[known] = self.states.get_indexer(pd.Index(paths.next_state[known], dtype=object))
        check(known & (following < 0), "the world has no state like the one this step led to")
        if self.deterministic:
            inferred = self.transitions.next_state[pair]
            check(known & (following != inferred), "this action does not lead to the state that follows")
            outcome = pair
        else:
            outcome = self.outcome_numbers(pair, following)
            check(known & (outcome < 0), "the state that follows has probability 0 after this action")
        if self.horizon is not None:
            check(time >= self.horizon, f"the path is longer than the horizon of {self.horizon} steps")
        if self.destinations:
            target = self.state_numbers(list(distinct), "destination")[context] if distinct else context
            check(state == target[item], "the path goes on after its destination")
        return TabularBatch(
            contexts=list(distinct),
            context=torch.from_numpy(context),
            item=torch.from_numpy(item),
            step_weight=torch.from_numpy(self.discount ** time.astype(float)),
            state=torch.from_numpy(state),
            pair=torch.from_numpy(pair),
            outcome=torch.from_numpy(outcome),
            time=torch.tensor(time),
        )

    def table(self, on: str, *, contexts: Sequence[Any] | None = None, timed: bool = False) -> TabularBatch:
        """Every pair (``on`` "states" or "pairs") or every outcome of the world as one step of a batch.

        With contexts, or timed, for each (context, time up to the horizon) as an item of its own, in this order.
        """
        by_outcome = on == "outcomes"
        if by_outcome not in self._tables:
            self._tables[by_outcome] = self._table(by_outcome)
        once = self._tables[by_outcome]
        times = self.horizon if timed and self.horizon is not None else 1
        if contexts is None and times == 1:
            return once
        blocks, n = (1 if contexts is None else len(contexts)) * times, len(once.pair)
        return replace(
            once,
            contexts=[None] if contexts is None else list(contexts),
            context=torch.arange(blocks) // times,
            item=torch.arange(blocks).repeat_interleave(n),
            step_weight=torch.ones(blocks * n, dtype=torch.float64),
            state=once.state.repeat(blocks),
            pair=once.pair.repeat(blocks),
            outcome=once.outcome.repeat(blocks),
            time=(torch.arange(blocks) % times).repeat_interleave(n),
        )

    def _table(self, by_outcome: bool) -> TabularBatch:
        t = self.transitions
        pair = t.pair_of_outcome if by_outcome else np.arange(t.n_pairs)
        outcome = np.arange(t.n_outcomes) if by_outcome or self.deterministic else np.full(t.n_pairs, -1)
        n = len(pair)
        return TabularBatch(
            contexts=[None],
            context=torch.zeros(1, dtype=torch.int64),
            item=torch.zeros(n, dtype=torch.int64),
            step_weight=torch.ones(n, dtype=torch.float64),
            state=torch.from_numpy(t.state[pair]),
            pair=torch.from_numpy(pair),
            outcome=torch.from_numpy(outcome),
            time=torch.zeros(n, dtype=torch.int64),
        )

    def log_base_step(self, batch: TabularBatch) -> Float[Tensor, "steps"]:
        """``log mu(a|s)`` of every step."""
        return self.log_base_of_pair.index_select(0, batch.pair)

    def log_base(self, batch: TabularBatch) -> Float[Tensor, "items"]:
        """``log mu(y|x)``: the base measure of the actions of each path. Dynamics are not in it."""
        return batch.sum(self.log_base_step(batch), discounted=False)

    def log_dynamics(self, batch: TabularBatch) -> Float[Tensor, "items"]:
        """``sum_t log p(s'|s,a)`` over the observed transitions of each path: the part no reward explains."""
        log_p = torch.from_numpy(np.log(self.transitions.probability))
        known = batch.outcome >= 0
        return batch.sum(torch.where(known, log_p[batch.outcome.clamp(min=0)], 0.0), discounted=False)

    def solve(
        self,
        reward: Any,
        contexts: Sequence[Any] = (None,),
        *,
        temperature: Tensor | float = 1.0,
        kind: str = "causal",
        warm_start: Tensor | None = None,
    ) -> SoftValues:
        """Soft values, policies and log Z of a reward, for all contexts together.

        Args:
            reward: a module with ``step(batch) -> ["steps"]``; evaluated on the world's own table of transitions.
            contexts: where ``destinations=True``, the labels of the destinations; otherwise all contexts are alike.
            temperature: T; the utility of a step is ``r/T + log mu``.
            kind: "causal", "weighted" or "anticipative"; see :mod:`irlhf.worlds.tabular.solution`.
            warm_start: the ``values`` of an earlier, similar solution; changes the time, never the answer.

        Raises:
            InfeasibleError: the sum over paths diverges.
        """
        if kind not in KINDS:
            raise ConfigError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
        return solve(self, reward, contexts, temperature=temperature, kind=kind, warm_start=warm_start)

    def draw(
        self,
        policy: Any,
        contexts: Sequence[Any],
        n: int | NDArray[np.int64],
        *,
        key: Key,
        max_steps: int | None = None,
    ) -> Draws:
        """``n`` trajectories from each context, drawn from a policy; those of one context follow each other.

        Args:
            policy: ``log_prob(batch) -> ["steps"]``; evaluated once on the world's own table of pairs.
            contexts: where each starts: a state's label, or ``Start(state, destination)``; may repeat.
            n: how many, alike or of each context.
            key: of the random numbers.
            max_steps: longer ones are cut, and then are not ``whole``. Default: the horizon; or when the discount
                leaves 1e-4 of a step; or 10,000.

        Raises:
            ConfigError: a state that is not there, a policy that gives no numbers.
        """
        return draws.draw(self, policy, contexts, n, key=key, max_steps=max_steps)

    def every(self, contexts: Sequence[Any], *, limit: int = 1_000_000) -> Draws:
        """All trajectories from each context, in worlds small enough to list them; nobody drew them (no ``log_q``).

        Raises:
            ConfigError: more than ``limit`` from one context.
        """
        return draws.every(self, contexts, limit=limit)

    @cached_property
    def base_is_normalized(self) -> bool:
        """Whether the base measure is a probability in every state; if it counts actions it is not."""
        return bool((BasePolicy(self).log_prob(self.table("pairs")) - self.log_base_of_pair).abs().max() < 1e-9)

    def base_policy(self) -> BasePolicy:
        """The base measure as a policy, normalized in every state."""
        return BasePolicy(self)

    def best(self, reward: Any, contexts: Sequence[Any], *, temperature: float = 1.0) -> Float[Tensor, "contexts"]:
        """What no policy exceeds: the soft value ``V/T`` of each context, as :meth:`draw` takes them."""
        starts = draws.starts_of(self, contexts)
        goals = [s.destination for s in starts] if self.destinations else [None] * len(starts)
        solution = self.solve(reward, list(dict.fromkeys(goals)), temperature=temperature)
        return solution.log_z(goals, [s.state for s in starts])

    def attained(
        self, policy: Any, reward: Any, contexts: Sequence[Any], *, temperature: float = 1.0
    ) -> Float[Tensor, "contexts"]:
        """What a policy attains from each context, exactly: at most :meth:`best`, and there ``pi = P``.

        The expectation of the discounted sum of ``r/T + log mu - log pi``. Minus infinity if the policy may come to
        where no end can be reached.
        """
        return attained(self, policy, reward, contexts, temperature=temperature)

    def critic(self, policy: Any) -> StateValues:
        """State values for a learner of this policy, with contexts of their own where the policy has such."""
        return StateValues(self, contexts=getattr(policy, "contexts", None))

    def origins(self, batch: TabularBatch) -> list[Start]:
        """Where each trajectory started and, with destinations, was going: what :meth:`draw` takes."""
        return draws.origins(self, batch)

    def whole(self, batch: TabularBatch) -> Bool[Tensor, "items"]:
        """Whether each trajectory is complete: without a gap, and at an end, its destination or the horizon."""
        return draws.whole(self, batch)

    def feasible_start(self, reward: Any, contexts: Sequence[Any], **limits: Any) -> dict[str, float]:
        """Parameters at which log Z is finite, if it is not now; see :mod:`irlhf.worlds.tabular.feasible`."""
        return feasible_start(self, reward, contexts, **limits)

    def explain(self, reward: Any, change: Mapping[str, float]) -> str | None:
        """What a change of the parameters of a linear reward is: shaping, a constant; see :mod:`.gauge`."""
        return explain(self, reward, change)


def _lookup(sorted_keys: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of keys in a sorted array; -1 where absent."""
    position = np.searchsorted(sorted_keys, keys)
    position[position == len(sorted_keys)] = 0
    return np.where(sorted_keys[position] == keys, position, -1)


def _label_order(label: Any) -> tuple[str, Any]:
    """Sorts numbers as numbers and text as text, whatever the mixture."""
    if isinstance(label, (int, float, np.integer, np.floating)):
        return ("", label)
    return (type(label).__name__, str(label))


def _index(name: str, labels: Sequence[Any]) -> pd.Index:
    index = pd.Index(objects(list(labels)), dtype=object)
    if not index.is_unique:
        raise ConfigError(f"{name} must have distinct labels; {index[index.duplicated()][0]!r} comes twice")
    return index

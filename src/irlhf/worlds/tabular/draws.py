"""Drawing trajectories from a policy, and listing all of them where they are few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from irlhf.errors import ConfigError, NonFiniteError
from irlhf.functional.walks import walk
from irlhf.protocols import Draws
from irlhf.randomness import Key

if TYPE_CHECKING:
    from irlhf.worlds.tabular.world import TabularBatch, TabularWorld

TAIL = 1e-4  # what the discount may leave of the steps after a cut
LONGEST = 10_000  # steps of an undiscounted walk that finds no end


class Start(NamedTuple):
    """Where a trajectory is drawn from: its first state and, in worlds with destinations, where it is going."""

    state: Any
    destination: Any = None

    def __str__(self) -> str:
        return str(self.state) if self.destination is None else f"{self.state} to {self.destination}"


def starts_of(world: TabularWorld, contexts: Sequence[Any]) -> list[Start]:
    """What ``draw`` was given, as :class:`Start`: a state's label, or (state, destination) where paths have one."""
    starts = []
    for context in contexts:
        if isinstance(context, Start):
            starts.append(context)
        elif not world.destinations:
            starts.append(Start(context))
        elif isinstance(context, tuple) and len(context) == 2:
            starts.append(Start(*context))
        else:
            raise ConfigError(
                f"a path is drawn from (state, destination) in this world, but {context!r} was given; "
                "write tabular.Start(state, destination)"
            )
    return starts


def origins(world: TabularWorld, batch: TabularBatch) -> list[Start]:
    """Where each item of a batch started, and was going: what ``draw`` takes to draw others like it."""
    first = torch.searchsorted(batch.item, torch.arange(batch.n_items))
    if batch.n_items and (
        int(first[-1]) >= len(batch.item) or not bool((batch.item[first] == torch.arange(batch.n_items)).all())
    ):
        raise ConfigError("a trajectory without a step has no start; leave it out")
    labels = world.states.to_numpy()[batch.state[first].numpy()]
    if not world.destinations:
        return [Start(label) for label in labels]
    return [Start(label, batch.contexts[int(c)]) for label, c in zip(labels, batch.context, strict=True)]


def whole(world: TabularWorld, batch: TabularBatch) -> Bool[Tensor, "items"]:
    """Whether each trajectory is complete: from its start to where it has to end, without a gap."""
    t = world.transitions
    count = torch.bincount(batch.item, minlength=batch.n_items)
    last = torch.cumsum(count, 0) - 1
    steps = last.clamp(min=0)
    known = batch.outcome[steps] >= 0
    state = torch.from_numpy(t.next_state)[batch.outcome[steps].clamp(min=0)]
    ended = known & torch.from_numpy(t.terminal.copy())[state]
    if world.destinations:
        ended &= torch.tensor(world.horizon is not None)  # without a horizon a dead end is no end
        ended |= known & (state == torch.from_numpy(world.state_numbers(batch.contexts, "destination"))[batch.context])
    if world.horizon is not None:
        ended |= batch.time[steps] == world.horizon - 1
    without_gap = batch.time[steps] == count - 1
    return (count > 0) & ended & without_gap


def policy_table(world: TabularWorld, policy: Any, contexts: Sequence[Any]) -> Float[Tensor, "rows times pairs"]:
    """``log pi`` of every pair, for each context (or one row for all) and each time (or one for all)."""
    contextual = getattr(policy, "contextual", world.destinations)
    timed = world.horizon is not None and getattr(policy, "timed", True)
    everything = world.table("pairs", contexts=contexts if contextual else None, timed=timed)
    with torch.no_grad():
        log_pi = policy.log_prob(everything).double()
    bad = torch.isnan(log_pi) | (log_pi == torch.inf)
    if bad.any():
        number = int(bad.nonzero()[0, 0])
        state, action = world.pair_table().iloc[int(everything.pair[number])]
        going = f" on the way to {contexts[int(everything.context[everything.item[number]])]!r}" if contextual else ""
        raise NonFiniteError(
            f"the log-probability of action {action!r} in state {state!r}{going} is not a number; nothing was drawn"
        )
    return log_pi.reshape(len(contexts) if contextual else 1, -1, world.transitions.n_pairs)


def draw(
    world: TabularWorld,
    policy: Any,
    contexts: Sequence[Any],
    n: int | NDArray[np.int64],
    *,
    key: Key,
    max_steps: int | None = None,
) -> Draws:
    """See :meth:`irlhf.worlds.tabular.world.TabularWorld.draw`."""
    count = np.broadcast_to(n, len(contexts))
    if not (count > 0).any() or (count < 0).any():
        raise ConfigError(f"{n} draws of each context; give at least 1")
    starts = starts_of(world, contexts)
    goals = [s.destination for s in starts] if world.destinations else [None] * len(starts)
    distinct = {x: k for k, x in enumerate(dict.fromkeys(goals))}
    labels = list(distinct)
    log_pi = policy_table(world, policy, labels)
    number = np.array([distinct[x] for x in goals], np.int64)
    start = world.state_numbers([s.state for s in starts], "start")
    goal = world.state_numbers(labels, "destination")[number] if world.destinations else np.full(len(starts), -1)
    walks = walk(
        world.transitions,
        log_pi.exp().numpy(),
        np.repeat(number if len(log_pi) > 1 else np.zeros_like(number), count),
        np.repeat(start, count),
        np.repeat(goal, count),
        max_steps=max_steps or most_steps(world),
        horizon=world.horizon,
        rng=key.numpy(),
    )
    t, first = world.transitions, walks.first_step
    length = np.diff(first)
    item = np.repeat(np.arange(len(length)), length)
    time = np.arange(len(item)) - np.repeat(first[:-1], length)
    request = np.repeat(np.arange(len(starts)), count)
    context = number[request]
    batch = replace(
        world.table("pairs"),
        contexts=labels,
        context=torch.from_numpy(context),
        item=torch.from_numpy(item),
        step_weight=torch.from_numpy(world.discount ** time.astype(float)),
        state=torch.from_numpy(t.state[walks.pair]),
        pair=torch.from_numpy(walks.pair),
        outcome=torch.from_numpy(walks.outcome),
        time=torch.from_numpy(time),
    )
    rows, times, n_pairs = log_pi.shape
    block = (context[item] if rows > 1 else 0) * times + (time if times > 1 else 0)
    log_q = log_pi.reshape(-1).index_select(0, torch.from_numpy(block * n_pairs + walks.pair))
    return Draws(batch, torch.from_numpy(request), log_q, torch.from_numpy(walks.ended))


def most_steps(world: TabularWorld) -> int:
    """After how many steps a walk is cut that finds no end: when the discount leaves 1e-4, or after 10,000."""
    if world.horizon is not None:
        return world.horizon
    if world.discount == 1:
        return LONGEST
    return max(1, int(np.ceil(np.log(TAIL) / np.log(world.discount)))) if world.discount > 0 else 1


def every(world: TabularWorld, contexts: Sequence[Any], *, limit: int = 1_000_000) -> Draws:
    """See :meth:`irlhf.worlds.tabular.world.TabularWorld.every`."""
    from irlhf.worlds.tabular.sampling import enumerate_paths

    if world.horizon is None and not _acyclic(world):
        raise ConfigError("trajectories of this world go on without end, so they cannot be listed; give it a horizon")
    paths: list[Any] = []
    goals: list[Any] = []
    request: list[int] = []
    for k, (state, destination) in enumerate(starts_of(world, contexts)):
        goal = {"destination": destination} if world.destinations else {}
        own = list(enumerate_paths(world, state, max_steps=most_steps(world), limit=limit, **goal))
        paths += own
        goals += [destination] * len(own)
        request += [k] * len(own)
    batch = world.collate(goals, paths)
    is_whole = whole(world, batch)
    kept = is_whole.nonzero()[:, 0].tolist()
    if len(kept) < len(paths):  # dead ends are no trajectories of the world
        batch = world.collate([goals[k] for k in kept], [paths[k] for k in kept])
        request, is_whole = [request[k] for k in kept], is_whole[is_whole]
    return Draws(batch, torch.tensor(request), None, is_whole)


def _acyclic(world: TabularWorld) -> bool:
    """Whether no state can be reached again."""
    t = world.transitions
    moves = sp.csr_array((np.ones(t.n_outcomes), (t.state[t.pair_of_outcome], t.next_state)), shape=(t.n_states,) * 2)
    return connected_components(moves, connection="strong")[0] == t.n_states and not moves.diagonal().any()

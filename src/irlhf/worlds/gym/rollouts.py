"""Playing an environment: many copies side by side, whole episodes or a stretch of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from irlhf.errors import ConfigError, NonFiniteError
from irlhf.loop import State
from irlhf.randomness import Key
from irlhf.worlds.gym.batch import GymBatch

if TYPE_CHECKING:
    from irlhf.worlds.gym.world import GymWorld

LONGEST = 100_000  # steps of an episode that finds no end
STINT = 4  # times the longest episode: so long are copies played before they all start again


@dataclass(eq=False)
class Played:
    """What happened in each copy of an environment at each step, [steps, copies, ...].

    ``real``: was a step. False: an ended episode made room for the next one, and the environment took no action.
    """

    obs: NDArray[np.float32]
    next_obs: NDArray[np.float32]
    action: Tensor
    log_q: Tensor
    paid: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    real: NDArray[np.bool_]


class Copies:
    """Copies of an environment that are played side by side, and where each of them is."""

    def __init__(self, world: GymWorld, n: int):
        self.world, self.n = world, n
        self.envs = world.make(n)
        mode = self.envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.NEXT_STEP:
            raise ConfigError(
                f"the vector environment resets itself in mode {mode}; make it with AutoresetMode.NEXT_STEP, in which "
                "the last observation of an episode is not lost"
            )
        self.obs = np.zeros((n, world.spaces.observation_size), np.float32)
        self.over = np.zeros(n, bool)  # its next step is a reset
        self.clock = np.zeros(n, np.int64)  # steps of its episode so far
        self.earned = np.zeros(n)  # what its episode was paid so far
        self.ended: list[tuple[float, int]] = []  # (return, steps) of episodes that ended since this list was emptied
        self.followed: Tensor | None = None  # the actions that led here, see :func:`stretch`

    def reset(self, seed: int) -> None:
        """All copies start again, as the seed says."""
        self.followed = None
        obs, _ = self.envs.reset(seed=seed)
        self.obs = self.world.spaces.encode(obs)
        self.over[:] = False
        self.clock[:] = 0
        self.earned[:] = 0

    def step(self, action: Tensor) -> tuple[Any, Any, Any, Any]:
        """(next observations, what was paid, terminated, truncated); copies that were over start again instead."""
        obs, paid, terminated, truncated, _ = self.envs.step(self.world.spaces.playable(action))
        self.obs = self.world.spaces.encode(obs)
        self.clock = np.where(self.over, 0, self.clock + 1)
        self.earned = np.where(self.over, 0.0, self.earned + paid)
        self.over = np.logical_or(terminated, truncated)
        self.ended += [(float(self.earned[k]), int(self.clock[k])) for k in np.flatnonzero(self.over)]
        return self.obs, paid, terminated, truncated

    @torch.no_grad()
    def play(self, policy: Any, steps: int, rng: np.random.Generator, *, greedy: bool = False) -> Played:
        """So many steps of all copies.

        Raises:
            NonFiniteError: the policy or the environment gave something that is not finite.
        """
        d, n = self.obs.shape[1], self.n
        noise = policy.noise(rng, (steps, n))
        obs, after = np.empty((steps, n, d), np.float32), np.empty((steps, n, d), np.float32)
        paid = np.empty((steps, n), np.float32)
        terminated, truncated, real = (np.empty((steps, n), bool) for _ in range(3))
        actions, log_q = [], torch.empty(steps, n)
        for t in range(steps):
            obs[t], real[t] = self.obs, ~self.over
            action, log_q[t] = policy.act(torch.from_numpy(self.obs), None if greedy and policy.has_mode else noise[t])
            actions.append(action)
            after[t], paid[t], terminated[t], truncated[t] = self.step(action)
        action = torch.stack(actions)
        for what, values in (("an action of the policy", action.double()), ("an observation", torch.from_numpy(after))):
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(f"{what} is not finite while the environment is played; no parameter was changed")
        return Played(obs, after, action, log_q, paid, terminated, truncated, real)


def laid_out(
    world: GymWorld, played: Played, began: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[GymBatch, Tensor, Tensor]:
    """What was played, as (batch, log q of its steps, whether each item is whole): copy by copy, in order of time.

    ``began``: [copies] how many steps into its episode each copy was at first; ``keep``: [steps, copies] of what.
    """
    real = (played.real & keep).T  # [copies, steps]
    copy, time = np.nonzero(real)
    done = (played.terminated | played.truncated).T
    last = done[copy, time] | np.append(copy[1:] != copy[:-1], True)
    item = np.concatenate([[0], np.cumsum(last)[:-1]]).astype(np.int64)
    first = np.flatnonzero(np.diff(item, prepend=-1))
    # An item that was under way when this stretch began goes on counting; all others begin at 0.
    under_way = np.zeros(len(first), np.int64)
    opening = np.flatnonzero(np.diff(copy[first], prepend=-1))
    under_way[opening] = np.where(time[first[opening]] == 0, began[copy[first[opening]]], 0)
    clock = np.arange(len(item)) - first[item] + under_way[item]
    ends = np.flatnonzero(last)
    return world.padded(
        obs=torch.from_numpy(played.obs[time, copy]),
        next_obs=torch.from_numpy(played.next_obs[time, copy]),
        action=played.action[torch.from_numpy(time), torch.from_numpy(copy)],
        paid=torch.from_numpy(played.paid[time, copy]),
        log_q=played.log_q[torch.from_numpy(time), torch.from_numpy(copy)],
        item=torch.from_numpy(item),
        time=torch.from_numpy(clock),
        ended=torch.from_numpy(played.terminated[time[ends], copy[ends]]),
        cut=torch.from_numpy(~done[copy[ends], time[ends]]),
    )


def episodes(
    world: GymWorld, policy: Any, n: int, key: Key, *, greedy: bool = False
) -> tuple[GymBatch, Tensor, Tensor]:
    """``n`` whole episodes, from the first step of each; as :func:`laid_out`.

    Each copy plays its share of them: who takes the first ones to end, takes short ones.
    """
    copies = world.copies(min(n, 32), "episodes")
    copies.reset(key.at("reset").bits(32) >> 1)
    share = np.full(copies.n, n // copies.n)
    share[: n % copies.n] += 1
    rng, stretch = key.at("actions").numpy(), 32
    parts: list[Played] = []
    finished = np.zeros(copies.n, np.int64)
    began, total = copies.clock.copy(), 0
    while (finished < share).any():
        if total > (world.horizon or LONGEST) * int(share.max()) + LONGEST:
            raise ConfigError(f"an episode did not end within {LONGEST:,} steps; give GymWorld a horizon")
        parts.append(copies.play(policy, stretch, rng, greedy=greedy))
        finished += (parts[-1].terminated | parts[-1].truncated).sum(0)
        total += stretch
        stretch = min(2 * stretch, 256)
    whole = _joined(parts)
    done = whole.terminated | whole.truncated
    before = np.cumsum(done, axis=0) - done  # episodes that had ended before each step
    return laid_out(world, whole, began, before < share)


def _joined(parts: list[Played]) -> Played:
    columns = {}
    for name in Played.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        columns[name] = torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)
    return Played(**columns)


def stretch(
    world: GymWorld, policy: Any, steps: int, n: int, state: State, key: Key
) -> tuple[GymBatch, Tensor, Tensor, State]:
    """The next ``steps`` of ``n`` copies that go on from where they were; as :func:`laid_out`, and the new state.

    Where environments are cannot be written down, but how they got there can: the state is the seed of the last common
    start and all actions since, from which copies that are elsewhere catch up. So a resumed fit goes on as if it had
    never been interrupted. After a while all copies start again, to keep that short.
    """
    copies = world.copies(n, "stretch")
    longest = STINT * (world.horizon or 1000)
    past: list[Tensor] = []
    known = state.get("actions")
    if known is not None and len(known) + steps <= longest:
        past = [known]
        if copies.followed is not known:
            copies.reset(int(state["seed"]))
            for action in known:
                copies.step(action)
        seed = state["seed"]
    else:
        seed = torch.tensor(key.at("reset").bits(32) >> 1)
        copies.reset(int(seed))
    began = np.where(copies.over, 0, copies.clock)
    copies.ended.clear()
    played = copies.play(policy, steps, key.at("actions").numpy())
    actions = torch.cat([*past, played.action])
    copies.followed = actions
    found = laid_out(world, played, began, np.ones_like(played.real))
    return *found, {"seed": seed, "actions": actions}


def vectorized(make: Any, n: int) -> gymnasium.vector.VectorEnv:
    """``n`` copies: the environment's own vector form where it has one, else one after the other in this process."""
    if isinstance(make, str):
        spec = gymnasium.spec(make)
        if isinstance(spec.vector_entry_point, str) and ".phys2d." not in spec.vector_entry_point:
            return gymnasium.make_vec(make, num_envs=n, vectorization_mode="vector_entry_point")
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(make)] * n)
    return gymnasium.vector.SyncVectorEnv([make] * n)

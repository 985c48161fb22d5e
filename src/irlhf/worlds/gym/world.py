"""A Gymnasium environment as a world: trajectories are episodes, and nature's part is only ever sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from irlhf.errors import ConfigError, TrajectoryError
from irlhf.feedback import Feedback
from irlhf.loop import State
from irlhf.protocols import Draws
from irlhf.randomness import Key
from irlhf.worlds.gym.batch import GymBatch
from irlhf.worlds.gym.episodes import Episode, Episodes
from irlhf.worlds.gym.policies import Critic, Function, UniformPolicy
from irlhf.worlds.gym.rollouts import Copies, episodes, stretch, vectorized
from irlhf.worlds.gym.spaces import Encoder, Spaces

LOOK = 20  # episodes at random, by which observations are standardized
SMALLEST = 1e-3  # standard deviation of a number that is observed; what varies less is taken as constant


class GymWorld:
    """Episodes of an environment.

    Args:
        env: the id of an environment, an environment, or a function that makes one. One that is given is copied.
        seen: episodes (or feedback of them) by which observations are standardized, together with some at random.
        absorbing: whether an episode that terminates early goes on in a state where nothing more happens, until
            ``horizon``. Otherwise a reward that is positive throughout makes long episodes good, and a negative one
            short ones, whatever is done in them: then lengths speak.
        horizon: steps that an episode can have; None: the environment's own limit of time.
        discount: of the return of an episode, by which comparisons judge; policies are learned with the learner's own.
        encoder: see :class:`irlhf.worlds.gym.spaces.Spaces`.
        moments: mean and standard deviation of observations, if they are known; then nothing is played for them.
        key: of the episodes at random.
    """

    deterministic = False
    base_is_normalized = True

    def __init__(
        self,
        env: str | gymnasium.Env | Callable[[], gymnasium.Env],
        *,
        seen: Feedback | Episodes | Sequence[Episode] | None = None,
        absorbing: bool = True,
        horizon: int | None = None,
        discount: float | int = 1.0,
        encoder: Encoder | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        key: Key | None = None,
    ):
        self._make: Any = _maker(env)
        try:
            first = gymnasium.make(self._make) if isinstance(self._make, str) else self._make()
        except gymnasium.error.Error as error:
            raise ConfigError(f"the environment {env!r} cannot be made: {error}") from None
        if not isinstance(first, gymnasium.Env):
            raise ConfigError(f"an environment is an id, a gymnasium.Env or a function that makes one, got {env!r}")
        self.name = first.spec.id if first.spec is not None else type(first.unwrapped).__name__
        self.spaces = Spaces(first.observation_space, first.action_space, encoder)
        limit = _limit(first)
        self.horizon = limit if horizon is None else horizon
        if not 0 < discount <= 1:
            raise ConfigError(f"discount is {discount}; it must lie in (0, 1]")
        if absorbing and self.horizon is None and discount == 1:
            raise ConfigError(
                f"{self.name} has no limit of time, so that the state after its end would count for ever; give a "
                "horizon, a discount below 1, or no absorbing state"
            )
        if self.horizon is not None and (limit is None or self.horizon < limit):
            self._make = _limited(self._make, self.horizon)
        self.absorbing, self.discount = absorbing, float(discount)
        self.key = Key(0).at("gym") if key is None else key
        self._copies: dict[Any, Copies] = {}
        self._given = moments
        self._seen = None if seen is None else Episodes.of(seen.trajectories if isinstance(seen, Feedback) else seen)
        first.close()

    def __repr__(self) -> str:
        limit = "no limit of time" if self.horizon is None else f"{self.horizon} steps"
        actions = f"{self.spaces.n_actions} {'actions' if self.spaces.discrete else 'numbers to choose'}"
        padded = "padded to their limit" if self.absorbing else "of their own lengths"
        return f"GymWorld({self.name}; {self.spaces.observation_size} observed, {actions}, {limit}, episodes {padded})"

    def cautions(self) -> list[str]:
        """What to be careful about in any fit here, as sentences."""
        if self.absorbing:
            return []
        return [
            "episodes of different length are not padded: a reward that is positive throughout makes long ones good, a "
            "negative one short ones, whatever is done in them; leave absorbing on, or compare with constant rewards"
        ]

    @property
    def ends_seen(self) -> bool:
        """Whether an episode that was seen ended early; True where none was given, and nobody knows."""
        return self._seen is None or bool(self._seen.terminated.any())

    # ------------------------------------------------------------------------------------------------ the environment

    def make(self, n: int) -> gymnasium.vector.VectorEnv:
        """``n`` copies of the environment, side by side."""
        return vectorized(self._make, n)

    def copies(self, n: int, what: str) -> Copies:
        """``n`` copies that are kept for a purpose: making them takes time."""
        if (n, what) not in self._copies:
            self._copies[n, what] = Copies(self, n)
        return self._copies[n, what]

    @cached_property
    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and standard deviation of observations: of episodes at random, and of those that were seen, alike."""
        if self._given is not None:
            return self._given
        batch, _, _ = episodes(self, UniformPolicy(self), LOOK, self.key.at("look"))
        looks = [batch.next_obs[batch.decided].double()]
        if self._seen is not None:
            looks.append(torch.from_numpy(self.spaces.encode(self._seen.obs)).double())
        mean = torch.stack([look.mean(0) for look in looks]).mean(0)
        square = torch.stack([(look - mean).square().mean(0) for look in looks]).mean(0)
        sd = square.sqrt()
        return mean.float(), torch.where(sd < SMALLEST, 1.0, sd).float()

    # --------------------------------------------------------------------------------------------------- trajectories

    def collate(self, contexts: Sequence[Any], trajectories: Episodes | Sequence[Episode]) -> GymBatch:
        """Episodes laid out. A context is anything: an environment starts where it starts.

        What reached the limit of time was cut by it, also where a file calls that terminal (older libraries do).

        Raises:
            TrajectoryError: an episode without a step, with numbers that are not finite, or longer than any can be.
            ConfigError: observations or actions that are not the environment's.
        """
        given = Episodes.of(trajectories)
        steps = given.steps
        if (steps == 0).any():
            raise TrajectoryError(int(np.argmax(steps == 0)), f"{self.name}: has no step; leave it out")
        obs = self.spaces.encode(given.obs)
        bad = ~np.isfinite(obs).all(1)
        if bad.any():
            at = int(np.argmax(bad))
            item = int(np.searchsorted(given.first + np.arange(len(given) + 1), at, side="right") - 1)
            step = at - int(given.first[item]) - item
            raise TrajectoryError(item, f"step {step}: an observation is not finite; correct it or leave it out")
        if self.horizon is not None and (steps > self.horizon).any():
            item = int(np.argmax(steps > self.horizon))
            raise TrajectoryError(
                item, f"has {steps[item]} steps, but {self.name} ends after {self.horizon}; give GymWorld its horizon"
            )
        action = self._unrecorded(len(obs) - len(given))
        if given.acts is not None:
            values = np.asarray(given.acts)
            if not np.isfinite(values.reshape(len(values), -1).sum(1)).all():
                at = int(np.argmin(np.isfinite(values.reshape(len(values), -1).sum(1))))
                item = int(np.searchsorted(given.first, at, side="right") - 1)
                raise TrajectoryError(item, f"step {at - given.first[item]}: an action is not finite; leave it out")
            action = torch.from_numpy(self.spaces.check_actions(values))
        item = np.repeat(np.arange(len(given)), steps)
        time = np.arange(len(item)) - np.repeat(given.first[:-1], steps)
        at = np.arange(len(item)) + item  # each episode has one observation more than steps
        batch, _, _ = self.padded(
            obs=torch.from_numpy(obs[at]),
            next_obs=torch.from_numpy(obs[at + 1]),
            action=action,
            paid=torch.from_numpy(given.rewards.astype(np.float32)),
            log_q=torch.full((len(item),), torch.nan),
            item=torch.from_numpy(item),
            time=torch.from_numpy(time),
            ended=torch.from_numpy(given.terminated & (steps < (self.horizon or np.inf))),
            cut=torch.zeros(len(given), dtype=torch.bool),
            length=torch.from_numpy(given.length),
        )
        return self._with_contexts(batch, contexts)

    def _unrecorded(self, steps: int) -> Tensor:
        if self.spaces.discrete:
            return torch.full((steps,), -1)
        return torch.full((steps, self.spaces.n_actions), torch.nan)

    def padded(
        self,
        *,
        obs: Tensor,
        next_obs: Tensor,
        action: Tensor,
        paid: Tensor,
        log_q: Tensor,
        item: Tensor,
        time: Tensor,
        ended: Bool[Tensor, "items"],
        cut: Bool[Tensor, "items"],
        length: Tensor | None = None,
    ) -> tuple[GymBatch, Tensor, Bool[Tensor, "items"]]:
        """Steps as a batch (one context, None), log q and whether each item is whole: neither cut nor under way.

        Each item that ``ended`` is followed by the absorbing state, for the time that is left.
        """
        n, steps = len(ended), torch.bincount(item, minlength=len(ended))
        last = torch.cumsum(steps, 0) - 1
        terminated = torch.zeros(len(item), dtype=torch.bool)
        terminated[last] = ended
        until = time[last] + 1
        goal = torch.full((n,), math.inf if self.horizon is None else float(self.horizon), dtype=torch.float64)
        if length is not None:
            goal = torch.where(length >= 0, length.double(), goal)
        rest = torch.where(ended, (goal - until).clamp(min=0), 0.0)
        after = (rest > 0).nonzero()[:, 0] if self.absorbing else torch.empty(0, dtype=torch.int64)
        order = torch.cat([torch.arange(len(item)), last[after]]).argsort(stable=True)
        extra = torch.cat([torch.zeros(len(item), dtype=torch.bool), torch.ones(len(after), dtype=torch.bool)])[order]
        g, when = self.discount, torch.cat([time, until[after]])[order].double()
        left = torch.cat([torch.ones(len(item), dtype=torch.float64), rest[after]])[order]
        weight = left if g == 1 else g**when * (1 - g**left) / (1 - g)

        def column(values: Tensor, fill: Any = None) -> Tensor:
            return torch.cat(
                [values, values[last[after]] if fill is None else torch.full_like(values[last[after]], fill)]
            )[order]

        nothing = -1 if self.spaces.discrete else torch.nan
        batch = GymBatch(
            contexts=[None],
            context=torch.zeros(n, dtype=torch.int64),
            item=column(item),
            step_weight=weight,
            obs=torch.cat([obs, next_obs[last[after]]])[order],
            next_obs=column(next_obs),
            action=column(action, nothing),
            terminated=column(terminated, False),
            absorbing=extra,
            time=when.long(),
            span=left.float(),
            paid=column(paid, 0.0),
        )
        whole = ended | (~cut if self.horizon is None else until >= self.horizon)
        return batch, column(log_q, 0.0), whole

    def _with_contexts(self, batch: GymBatch, contexts: Sequence[Any]) -> GymBatch:
        number = {x: k for k, x in enumerate(dict.fromkeys(contexts))}
        return replace(batch, contexts=list(number), context=torch.tensor([number[x] for x in contexts]))

    def whole(self, batch: GymBatch) -> Bool[Tensor, "items"]:
        """Whether each episode came to an end: it terminated, or reached the limit of time."""
        ended = torch.zeros(batch.n_items, dtype=torch.bool).index_put(
            (batch.item[batch.terminated],), torch.tensor(True)
        )
        if self.horizon is None:
            return ended
        span = batch.sum(batch.span.double(), discounted=False)
        return ended | (span >= self.horizon)

    def origins(self, batch: GymBatch) -> list[Any]:
        """Where each item started: an environment starts where it starts."""
        return [None] * batch.n_items

    def log_base_step(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        """Log-density of an action at random (all that is allowed, alike), in nats; 0 where nothing was decided."""
        return torch.where(batch.absorbing, 0.0, UniformPolicy(self).log_density).double()

    def log_base(self, batch: GymBatch) -> Float[Tensor, "items"]:
        """Of whole items, without nature's part, which is not known."""
        return batch.sum(self.log_base_step(batch), discounted=False)

    def base_policy(self) -> UniformPolicy:
        """The base measure as a policy."""
        return UniformPolicy(self)

    def critic(self, policy: nn.Module) -> Critic:
        """For a learner that wants values of observations."""
        return Critic(self)

    # -------------------------------------------------------------------------------------------------------- playing

    def draw(self, policy: Any, contexts: Sequence[Any], n: Any, *, key: Key, greedy: bool = False) -> Draws:
        """``n`` whole episodes of a policy for each context (they all start where the environment starts).

        ``greedy``: the likeliest action each time; then log q is that of a draw, not of what was done.
        """
        count = np.broadcast_to(n, len(contexts))
        if not (count > 0).any() or (count < 0).any():
            raise ConfigError(f"{n} draws of each context; give at least 1")
        batch, log_q, whole = episodes(self, policy, int(count.sum()), key, greedy=greedy)
        request = np.repeat(np.arange(len(contexts)), count)
        labels = [contexts[k] for k in request.tolist()]
        return Draws(self._with_contexts(batch, labels), torch.from_numpy(request), log_q.double(), whole)

    def stretch(self, policy: Any, steps: int, n: int, state: State, key: Key) -> tuple[Draws, State, dict[str, float]]:
        """What ``n`` copies do in their next ``steps``, pieces of episodes: :func:`irlhf.worlds.gym.rollouts.stretch`.

        Returns draws, the new state, and what there is to tell of the episodes that ended.
        """
        batch, log_q, whole, state = stretch(self, policy, steps, n, state, key)
        ended = np.array(self.copies(n, "stretch").ended).reshape(-1, 2)
        told = {"return": float(ended[:, 0].mean()), "length": float(ended[:, 1].mean())} if len(ended) else {}
        return Draws(batch, torch.zeros(batch.n_items, dtype=torch.int64), log_q.double(), whole), state, told

    def record(self, policy: Any, n: int, *, key: Key | None = None, greedy: bool = False) -> Episodes:
        """``n`` episodes of a policy, or of a function from an observation to an action, to be kept."""
        player = policy if hasattr(policy, "act") else Function(policy)
        batch, _, _ = episodes(self, player, n, self.key.at("record") if key is None else key, greedy=greedy)
        return as_episodes(batch)

    def describe(self, draws: Draws) -> dict[str, float]:
        """What the environment itself paid for whole episodes, and how long they were; on average."""
        batch = draws.batch
        paid = batch.sum(batch.paid.double(), discounted=False)
        steps = batch.sum(batch.decided.double(), discounted=False)
        return {"return": float(paid.mean()), "length": float(steps.mean())}

    def likeliest(self, policy: Any, contexts: Sequence[Any], n: int, *, key: Key) -> dict[str, float]:
        """What :meth:`describe` tells of ``n`` episodes of each context where the likeliest action is always taken."""
        return self.describe(self.draw(policy, contexts, n, key=key, greedy=True))


def as_episodes(batch: GymBatch) -> Episodes:
    """A batch as episodes, without the absorbing state."""
    own = batch.decided.nonzero()[:, 0]
    item = batch.item[own]
    steps = torch.bincount(item, minlength=batch.n_items)
    last = torch.cumsum(steps, 0) - 1
    after = torch.cat([torch.arange(len(own)), last]).argsort(stable=True)
    obs = torch.cat([batch.obs[own], batch.next_obs[own][last]])[after]
    return Episodes(
        obs.numpy(),
        batch.action[own].numpy(),
        np.concatenate([[0], np.cumsum(steps.numpy())]),
        batch.terminated[own][last].numpy(),
        batch.paid[own].numpy(),
    )


def _limit(env: gymnasium.Env) -> int | None:
    """The limit of time of an environment: what it was registered with, or that of a wrapper around it."""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return env.spec.max_episode_steps
    inner: Any = env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.wrappers.TimeLimit):
            return inner._max_episode_steps
        inner = inner.env
    return None


def _limited(make: Any, steps: int) -> Any:
    def limited() -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(gymnasium.make(make) if isinstance(make, str) else make(), steps)

    return limited


def _maker(env: Any) -> Any:
    if isinstance(env, gymnasium.Env):
        if env.spec is not None:
            spec = copy.deepcopy(env.spec)
            return lambda: gymnasium.make(spec)
        return lambda: copy.deepcopy(env)
    return env

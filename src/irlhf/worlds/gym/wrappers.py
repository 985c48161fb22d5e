"""A learned reward in place of the environment's own, for other libraries: ``gymnasium`` wrappers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.worlds.gym.batch import GymBatch

if TYPE_CHECKING:
    from irlhf.worlds.gym.world import GymWorld


class _Paying:
    """What a learned reward pays for steps, and for the time after an end."""

    def __init__(self, world: GymWorld, reward: nn.Module, discount: float):
        if not 0 <= discount <= 1:
            raise ConfigError(f"discount is {discount}; it must lie in [0, 1]")
        self.world, self.reward, self.discount = world, reward, discount

    @torch.no_grad()
    def __call__(
        self, before: Any, action: Any, after: Any, terminated: NDArray[np.bool_], clock: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        world, n = self.world, len(terminated)
        obs, after = (torch.from_numpy(world.spaces.encode(x)) for x in (before, after))
        actions = torch.from_numpy(world.spaces.check_actions(np.asarray(action)))
        batch = GymBatch.of_columns(
            {"obs": obs, "next_obs": after, "action": actions, "terminated": torch.from_numpy(terminated)}
        )
        paid: Tensor = self.reward.step(batch).double()  # type: ignore[operator]
        if world.absorbing and terminated.any():
            ended = self.reward.step(GymBatch.of_ends(batch, after)).double().numpy()  # type: ignore[operator]
            left = np.inf if world.horizon is None else np.maximum(world.horizon - clock, 0)
            g = self.discount
            steps = left if g == 1 else g * (1 - np.power(g, left)) / (1 - g)
            paid = paid + torch.from_numpy(np.where(terminated, ended * np.broadcast_to(steps, n), 0.0))
        return paid.numpy()


class RewardWrapper(gymnasium.Wrapper):
    """An environment that pays what a reward says. What it paid itself is in ``info["paid"]``.

    A learner outside knows nothing of an absorbing state, so where an episode terminates, the time that would have been
    spent there until the horizon is paid at once, discounted as the learner discounts.

    Args:
        env: like the world's.
        world, reward: that the reward was learned in, and the reward.
        discount: of the learner that will use it; an endless time after the end needs one below 1.
    """

    def __init__(self, env: gymnasium.Env, world: GymWorld, reward: nn.Module, *, discount: float | int = 0.99):
        super().__init__(env)
        self._pay = _Paying(world, reward, float(discount))
        self._before: Any = None
        self._clock = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._before, info = self.env.reset(**kwargs)
        self._clock = 0
        return self._before, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        after, own, terminated, truncated, info = self.env.step(action)
        self._clock += 1
        one = [np.asarray(x)[None] if not isinstance(x, dict) else [x] for x in (self._before, after)]
        ended, clock = np.array([terminated]), np.array([self._clock])
        paid = self._pay(one[0], np.asarray(action)[None], one[1], ended, clock)
        self._before = after
        return after, float(paid[0]), terminated, truncated, {**info, "paid": own}


class VectorRewardWrapper(gymnasium.vector.VectorWrapper):
    """The same for many copies at once, which reset themselves in the step after an end (NEXT_STEP)."""

    def __init__(
        self, env: gymnasium.vector.VectorEnv, world: GymWorld, reward: nn.Module, *, discount: float | int = 0.99
    ):
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.NEXT_STEP:
            raise ConfigError(f"the vector environment resets itself in mode {mode}; make it with NEXT_STEP")
        self._pay = _Paying(world, reward, float(discount))
        self._before: Any = None
        self._over = np.zeros(env.num_envs, bool)
        self._clock = np.zeros(env.num_envs, np.int64)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._before, info = self.env.reset(**kwargs)
        self._before = np.array(self._before)
        self._over[:] = False
        self._clock[:] = 0
        return self._before, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        after, own, terminated, truncated, info = self.env.step(actions)
        self._clock = np.where(self._over, 0, self._clock + 1)
        paid = self._pay(self._before, actions, after, np.asarray(terminated, bool), self._clock)
        paid = np.where(self._over, 0.0, paid)  # that step was a reset
        self._over = np.logical_or(terminated, truncated)
        self._before = np.array(after)
        return after, paid, terminated, truncated, {**info, "paid": own}

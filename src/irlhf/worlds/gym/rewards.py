"""Rewards of environments: networks, linear ones on given features, and what the environment itself pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.worlds.gym.policies import Standardize, network, through

if TYPE_CHECKING:
    from irlhf.worlds.gym.batch import GymBatch
    from irlhf.worlds.gym.world import GymWorld

On = Literal["state", "state_action", "next_state", "transition"]


class NeuralReward(nn.Module):
    """A network's reward of a step; an episode is worth the (discounted) sum.

    It reads what ``on`` names, and two flags: whether this step ended the episode, and whether it is over already (and
    stays where it ended: a landing is not a crash). What an action adds should be asked for only where it matters: a
    policy that is trained anew on the reward finds its way on states more easily.

    Where nobody was seen to end early there are no landings either, and what the network says of places where only its
    own policy ended is made up, for all the time that is left. Then all ends are one state to it (``ends``).

    Args:
        world: whose observations.
        on: "state" s, "state_action" (s, a), "next_state" s' (where the step led), or "transition" (s, a, s').
        hidden: units of the layers between.
        shaping: adds ``discount phi(s') - phi(s)``, which changes no optimal policy but eases the fit (Ng, Harada and
            Russell 1999; as Fu, Luo and Levine 2018 have it). ``phi`` is 0 where nothing follows.
        ends: whether it may tell ends apart by where they were. None: if a seen episode ended early.
        seed: of the first weights.
    """

    ends: Tensor

    def __init__(
        self,
        world: GymWorld,
        *,
        on: On = "next_state",
        hidden: tuple[int, ...] = (64, 64),
        shaping: bool = False,
        ends: bool | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if on not in ("state", "state_action", "next_state", "transition"):
            raise ConfigError(f"on is {on!r}; choose 'state', 'state_action', 'next_state' or 'transition'")
        self.on: On = on
        self.spaces, self.discount = world.spaces, world.discount
        d, k = world.spaces.observation_size, world.spaces.n_actions
        inputs = {"state": d, "state_action": d + k, "next_state": d, "transition": 2 * d + k}[on] + 2
        self.standardize = Standardize(world)
        self.register_buffer("ends", torch.tensor(world.ends_seen if ends is None else ends))  # kept with the weights
        self.net = network([inputs, *hidden, 1], last=1.0, seed=seed)
        self.potential = network([d, *hidden, 1], last=1.0, seed=seed + 1) if shaping else None

    def inputs(self, batch: GymBatch) -> Float[Tensor, "steps inputs"]:
        """What the network reads. Where the episode is over: where it ended (or 0), no action, and the second flag."""
        parts = []
        nowhere = (batch.absorbing & ~self.ends)[:, None]
        if self.on != "next_state":
            parts.append(self.standardize(batch.obs).masked_fill(nowhere, 0.0))
        if self.on in ("state_action", "transition"):
            nothing = batch.absorbing if self.spaces.discrete else batch.absorbing[:, None]
            action = self.spaces.to_unit(batch.action.masked_fill(nothing, 0))
            parts.append(action.masked_fill(batch.absorbing[:, None], 0.0))
        if self.on in ("next_state", "transition"):
            parts.append(self.standardize(batch.next_obs).masked_fill(nowhere, 0.0))
        parts.append(batch.terminated[:, None].float())
        return torch.cat([*parts, batch.absorbing[:, None].float()], 1)

    def step(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        worth = through(self.net, self.inputs(batch))[:, 0]
        return worth if self.potential is None else worth + self._shaped(batch)

    def _shaped(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        assert self.potential is not None
        now = through(self.potential, self.standardize(batch.obs))[:, 0]
        after = through(self.potential, self.standardize(batch.next_obs))[:, 0]
        shaped = self.discount * torch.where(batch.terminated, 0.0, after) - now
        return torch.where(batch.absorbing, 0.0, shaped)

    def forward(self, batch: GymBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.step(batch))

    def roughness(self, some: GymBatch, others: GymBatch, mix: Float[Tensor, "steps 1"]) -> Float[Tensor, "steps"]:
        """``|grad r|^2`` by the inputs, at points between the steps of two batches (Gulrajani et al. 2017, section 4).

        Steps are compared with steps, and what is over with what is over.

        A reward that is steep anywhere is one that a policy exploits; the square is pulled to 0, not to 1 as there.
        """
        with torch.no_grad():
            between = mix * self.inputs(some) + (1 - mix) * self.inputs(others)
        between.requires_grad_()
        worth = through(self.net, between).sum()
        return torch.autograd.grad(worth, between, create_graph=True)[0].square().sum(1)


class LinearReward(nn.Module):
    """``theta . features`` of a step.

    Args:
        features: a function from a batch to [steps, k]; it should look at ``batch.absorbing`` and ``batch.terminated``
            where the end of an episode is worth something.
        names: of the k features.
    """

    def __init__(self, features: Callable[[Any], Tensor], names: Sequence[str]):
        super().__init__()
        self.features, self.names = features, list(names)
        self.theta = nn.Parameter(torch.zeros(len(self.names), dtype=torch.float64))
        self.parameter_labels = {"theta": self.names}

    def step(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        found = self.features(batch).double()
        if found.shape != (len(batch.obs), len(self.names)):
            raise ConfigError(f"features gave {tuple(found.shape)} for {len(batch.obs)} steps and names {self.names}")
        return found @ self.theta

    def forward(self, batch: GymBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.step(batch))


class PaidReward(nn.Module):
    """What the environment itself paid: the true reward, where it has one."""

    def step(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        return batch.paid

    def forward(self, batch: GymBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.step(batch))


class ConstantReward(nn.Module):
    """The same for every step, and nothing once the episode is over unless ``absorbing`` says so: a baseline."""

    def __init__(self, value: float | int, absorbing: float | int | None = None):
        super().__init__()
        self.value, self.absorbing = float(value), float(value if absorbing is None else absorbing)

    def step(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        return torch.where(batch.absorbing, self.absorbing, self.value)

    def forward(self, batch: GymBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.step(batch))

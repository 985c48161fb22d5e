"""Policies of environments: networks that choose among actions, or numbers around a mean."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from irlhf.worlds.gym.batch import GymBatch
    from irlhf.worlds.gym.world import GymWorld

FAR = 10.0  # standard deviations, beyond which an observation is read as if it were there
WIDEST, NARROWEST = 0.5, -5.0  # log standard deviation of an action, in units of half its range


class Standardize(nn.Module):
    """Observations in standard deviations from their mean, as the world saw them when it was made; then frozen."""

    def __init__(self, world: GymWorld):
        super().__init__()
        mean, sd = world.moments
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("sd", sd.clone())

    def forward(self, obs: Float[Tensor, "steps d"]) -> Float[Tensor, "steps d"]:
        return ((obs - self.mean) / self.sd).clamp(-FAR, FAR)


def network(sizes: list[int], *, last: float, seed: int) -> nn.Sequential:
    """Layers with tanh between them; orthogonal weights (gain sqrt 2, of the last layer ``last``), biases of zero."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(inputs, outputs)
        final = k == len(sizes) - 2
        nn.init.orthogonal_(layer.weight, last if final else math.sqrt(2), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if final else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def through(net: nn.Sequential, x: Tensor) -> Tensor:
    """The network applied without the bookkeeping of modules, which costs more than small layers do."""
    for layer in net:
        x = torch.addmm(layer.bias, x, layer.weight.t()) if isinstance(layer, nn.Linear) else torch.tanh(x)
    return x


class GymPolicy(nn.Module):
    """A network that says what to do: logits of discrete actions, or the mean of a Gaussian around numbers.

    The Gaussian's standard deviation is one number for each action, fitted; what falls outside the environment's bounds
    is clipped when it is played, and has its log-probability before that (the usual practice of policy gradients).

    Args:
        world: whose observations and actions.
        hidden: units of the layers between.
        seed: of the first weights.
    """

    has_mode = True  # an action that is likeliest

    def __init__(self, world: GymWorld, *, hidden: tuple[int, ...] = (64, 64), seed: int = 0):
        super().__init__()
        self.spaces = world.spaces
        self.standardize = Standardize(world)
        self.net = network([world.spaces.observation_size, *hidden, world.spaces.n_actions], last=0.01, seed=seed)
        if not self.spaces.discrete:
            self.log_sd = nn.Parameter(torch.full((self.spaces.n_actions,), -0.5))
            low, high = self.spaces._bounds()
            self.register_buffer("half_range", (high - low) / 2)

    def log_prob(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        """Of every step's action; 0 where nothing was decided."""
        if bool(batch.absorbing.any()):
            own = batch.decided.nonzero()[:, 0]
            found = self.log_density(batch.obs[own], batch.action[own])
            return found.new_zeros(len(batch.obs)).index_put((own,), found)
        return self.log_density(batch.obs, batch.action)

    def log_density(self, obs: Float[Tensor, "steps d"], action: Tensor) -> Float[Tensor, "steps"]:
        """Of actions at observations, in the environment's units."""
        out = through(self.net, self.standardize(obs))
        if self.spaces.discrete:
            return out.log_softmax(1).gather(1, action[:, None])[:, 0]
        log_sd = self.log_sd.clamp(NARROWEST, WIDEST)
        z = (self.spaces.to_unit(action) - out) / log_sd.exp()
        return (-0.5 * z.square() - log_sd - 0.5 * math.log(2 * math.pi) - self.half_range.log()).sum(1)  # type: ignore[operator]

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        """What :meth:`act` needs of chance, for so many steps."""
        shape = (*shape, self.spaces.n_actions)
        drawn = rng.gumbel(size=shape) if self.spaces.discrete else rng.standard_normal(shape)
        return torch.from_numpy(drawn.astype(np.float32))

    def act(self, obs: Float[Tensor, "n d"], noise: Float[Tensor, "n k"] | None) -> tuple[Tensor, Float[Tensor, "n"]]:
        """An action for each observation, and its log-probability; the likeliest one without noise."""
        out = through(self.net, self.standardize(obs))
        if self.spaces.discrete:
            log_p = out.log_softmax(1)
            action = (log_p if noise is None else log_p + noise).argmax(1)
            return action, log_p.gather(1, action[:, None])[:, 0]
        log_sd = self.log_sd.clamp(NARROWEST, WIDEST)
        z = torch.zeros_like(out) if noise is None else noise
        log_p = (-0.5 * z.square() - log_sd - 0.5 * math.log(2 * math.pi) - self.half_range.log()).sum(1)  # type: ignore[operator]
        return self.spaces.from_unit(out + log_sd.exp() * z), log_p


class UniformPolicy(nn.Module):
    """Everything that is allowed, alike: the base measure."""

    has_mode = False

    def __init__(self, world: GymWorld):
        super().__init__()
        self.spaces = world.spaces
        if self.spaces.discrete:
            self.log_density = -math.log(self.spaces.n_actions)
        else:
            low, high = self.spaces._bounds()
            self.log_density = -float((high - low).double().log().sum())

    def log_prob(self, batch: GymBatch) -> Float[Tensor, "steps"]:
        return torch.where(batch.absorbing, 0.0, self.log_density)

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        size = shape if self.spaces.discrete else (*shape, self.spaces.n_actions)
        return torch.from_numpy(rng.random(size).astype(np.float32))

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Float[Tensor, "n"]]:
        log_p = torch.full((len(obs),), self.log_density)
        if self.spaces.discrete:
            return (noise * self.spaces.n_actions).long().clamp(max=self.spaces.n_actions - 1), log_p
        return self.spaces.from_unit(noise * 2 - 1), log_p


class Function:
    """Any function from an observation (as the environment shows it, or encoded) to an action, as a policy.

    It has no log-probabilities, so it can be played and recorded, not learned from.
    """

    has_mode = False

    def __init__(self, function: Any):
        self.function = function

    def noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        return torch.empty((*shape, 0))

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Float[Tensor, "n"]]:
        actions = np.stack([np.asarray(self.function(row)) for row in obs.numpy()])
        return torch.from_numpy(actions), torch.full((len(obs),), torch.nan)


class Critic(nn.Module):
    """The value of observations, in units of a step's worth: times ``1 / (1 - discount)`` it is the value."""

    def __init__(self, world: GymWorld, *, hidden: tuple[int, ...] = (64, 64), seed: int = 0):
        super().__init__()
        self.standardize = Standardize(world)
        self.net = network([world.spaces.observation_size, *hidden, 1], last=1.0, seed=seed)

    def forward(self, obs: Float[Tensor, "steps d"]) -> Float[Tensor, "steps"]:
        return through(self.net, self.standardize(obs))[:, 0]

"""Rewards and policies of environments as files: safetensors, with what they are made of in the header."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from irlhf.errors import CheckpointError, ConfigError
from irlhf.rewards import Ensemble
from irlhf.storage.checkpoint import check_like, encode_tensors, read_tensors, valid
from irlhf.storage.files import atomic_write, make_directory, parse_json
from irlhf.worlds.gym.policies import GymPolicy
from irlhf.worlds.gym.rewards import LinearReward, NeuralReward, On

if TYPE_CHECKING:
    from irlhf.worlds.gym.world import GymWorld

REWARD, POLICY, RUN = "reward.safetensors", "policy.safetensors", "config.json"
Module = TypeVar("Module", bound=nn.Module)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Interface(_Strict):
    """What a network reads and what it says: a world with another one is another environment."""

    observation_size: int
    actions: int
    discrete: bool
    low: list[float] | None
    high: list[float] | None


class _Neural(_Strict):
    kind: Literal["NeuralReward"]
    interface: _Interface
    on: On
    hidden: list[int]
    shaping: bool
    discount: float


class _Linear(_Strict):
    kind: Literal["LinearReward"]
    names: list[str]


class _Policy(_Strict):
    kind: Literal["GymPolicy"]
    interface: _Interface
    hidden: list[int]


class _OfRun(BaseModel):
    """What the configuration of an ``irlhf fit`` says of its reward, among all else."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    world: Literal["gym"]
    on: On
    hidden: list[int]
    shaping: bool
    discount: float


class _AboutReward(_Strict):
    """The header. Several members are those of an ensemble; ``ensemble`` tells an ensemble of one from its member."""

    format: Literal[1]
    environment: str
    ensemble: bool
    members: list[_Neural | _Linear] = Field(min_length=1)


class _AboutPolicy(_Strict):
    format: Literal[1]
    environment: str
    policy: _Policy


def save_reward(reward: nn.Module, world: GymWorld, folder: str | os.PathLike[str]) -> None:
    """Writes a :class:`NeuralReward`, a :class:`LinearReward` or an ``Ensemble`` of them to a folder.

    What it held before is replaced; at every moment it holds the old reward or the new one, whole. The function behind
    a linear reward's features is not written: it is given again when the reward is loaded.

    Raises:
        ConfigError: a reward of another kind, or the folder is a run.
        OSError: the folder cannot be written.
    """
    members = list(reward.members) if isinstance(reward, Ensemble) else [reward]
    about = _AboutReward(
        format=1,
        environment=world.name,
        ensemble=isinstance(reward, Ensemble),
        members=[_about_reward(member) for member in members],
    )
    _write(Path(folder), REWARD, reward, about)


def load_reward(
    folder: str | os.PathLike[str], world: GymWorld, *, features: Callable[[Any], Tensor] | None = None
) -> NeuralReward | LinearReward | Ensemble:
    """The reward that :func:`save_reward` or ``irlhf fit`` wrote: the same numbers, to the bit, for the same steps.

    Args:
        folder: where it is, or a run.
        world: any of an environment with the same observations and actions. How observations are standardized is a
            part of the reward and comes from the file.
        features: of a linear reward.

    Raises:
        CheckpointError: there is none, it is damaged, or the world has other observations or actions.
        ConfigError: a linear reward without ``features``.
    """
    file = Path(folder) / REWARD
    tensors, info = read_tensors(file)
    if "format" not in info and (file.parent / RUN).exists():
        config = file.parent / RUN
        of_run = valid(_OfRun, parse_json(config.read_bytes(), str(config)), f"{config} is not one")
        own = {name.removeprefix("reward."): x for name, x in tensors.items() if name.startswith("reward.")}
        return _filled(_network(of_run, world), own, file)
    about = valid(_AboutReward, info, f"{file} is not one")
    members = [_made(member, world, features, file) for member in about.members]
    reward = Ensemble(members) if about.ensemble else members[0]
    return _filled(reward, tensors, file)


def save_policy(policy: nn.Module, world: GymWorld, folder: str | os.PathLike[str]) -> None:
    """Writes a policy to a folder, as :func:`save_reward` does. Raises ConfigError, OSError."""
    if not isinstance(policy, GymPolicy):
        raise ConfigError(f"a {type(policy).__name__} cannot be saved; a GymPolicy can")
    own = _Policy(kind="GymPolicy", interface=_interface(policy.spaces), hidden=_hidden(policy.net))
    _write(Path(folder), POLICY, policy, _AboutPolicy(format=1, environment=world.name, policy=own))


def load_policy(folder: str | os.PathLike[str], world: GymWorld) -> GymPolicy:
    """The policy that :func:`save_policy`, ``irlhf fit`` or ``irlhf distill`` wrote.

    Raises CheckpointError as :func:`load_reward` does.
    """
    file = Path(folder) / POLICY
    tensors, info = read_tensors(file)
    if "format" not in info and (file.parent / RUN).exists():
        policy = GymPolicy(world, hidden=_hidden_in(tensors))
        here = policy.state_dict().get("half_range", torch.empty(0)).clone()
        _filled(policy, tensors, file)
        if not torch.equal(here, tensors.get("half_range", torch.empty(0))):
            raise CheckpointError(
                f"what is in {file} is of another environment than {world.name}: its actions reach other bounds"
            )
        return policy
    about = valid(_AboutPolicy, info, f"{file} is not one")
    _check_interface(about.policy.interface, world, file)
    return _filled(GymPolicy(world, hidden=tuple(about.policy.hidden)), tensors, file)


def _about_reward(reward: nn.Module) -> _Neural | _Linear:
    if isinstance(reward, LinearReward):
        return _Linear(kind="LinearReward", names=list(reward.names))
    if not isinstance(reward, NeuralReward):
        raise ConfigError(
            f"a {type(reward).__name__} cannot be saved; a NeuralReward, a LinearReward and an Ensemble of them can"
        )
    return _Neural(
        kind="NeuralReward",
        interface=_interface(reward.spaces),
        on=reward.on,
        hidden=_hidden(reward.net),
        shaping=reward.potential is not None,
        discount=float(reward.discount),
    )


def _made(
    about: _Neural | _Linear, world: GymWorld, features: Callable[[Any], Tensor] | None, file: Path
) -> NeuralReward | LinearReward:
    if isinstance(about, _Linear):
        if features is None:
            raise ConfigError(
                f"the reward in {file} is linear in {', '.join(about.names)}; give features=, the function from a "
                "batch to them"
            )
        return LinearReward(features, about.names)
    _check_interface(about.interface, world, file)
    return _network(about, world)


def _network(about: _Neural | _OfRun, world: GymWorld) -> NeuralReward:
    reward = NeuralReward(world, on=about.on, hidden=tuple(about.hidden), shaping=about.shaping)
    reward.discount = about.discount  # of the shaping term that was fitted, whatever this world's is
    return reward


def _interface(spaces_: Any) -> _Interface:
    box = spaces_.action if isinstance(spaces_.action, spaces.Box) else None
    return _Interface(
        observation_size=spaces_.observation_size,
        actions=spaces_.n_actions,
        discrete=spaces_.discrete,
        low=None if box is None else [float(x) for x in box.low],
        high=None if box is None else [float(x) for x in box.high],
    )


def _check_interface(stored: _Interface, world: GymWorld, file: Path) -> None:
    here = _interface(world.spaces)
    if wrong := [name for name in _Interface.model_fields if getattr(stored, name) != getattr(here, name)]:
        told = "; ".join(
            f"{name.replace('_', ' ')} {getattr(stored, name)}, here {getattr(here, name)}" for name in wrong
        )
        raise CheckpointError(f"what is in {file} is of another environment than {world.name}: {told}")


def _hidden(net: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in net if isinstance(layer, nn.Linear)][:-1]


def _write(folder: Path, name: str, module: nn.Module, about: BaseModel) -> None:
    if (folder / RUN).exists():
        raise ConfigError(f"{folder} is a run, which keeps a {name} of its own; choose another folder")
    make_directory(folder)
    atomic_write(folder / name, encode_tensors(module.state_dict(), about.model_dump()))


def _hidden_in(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """The units of the layers of a policy's network, of which a run keeps the tensors alone."""
    layers = {
        int(name.split(".")[1]): x.shape[0] for name, x in tensors.items() if re.fullmatch(r"net\.\d+\.weight", name)
    }
    return tuple(units for _, units in sorted(layers.items()))[:-1]


def _filled(module: Module, tensors: dict[str, Tensor], file: Path) -> Module:
    check_like(tensors, module.state_dict(), [], str(file))
    module.load_state_dict(tensors)
    return module

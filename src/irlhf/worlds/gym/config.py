"""The Gymnasium world's own settings, and how its files become a world, a reward, a policy and feedback."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import model_validator

from irlhf.config import File, Files, Learning, Setup, setting
from irlhf.config import Settings as Shared
from irlhf.errors import ConfigError
from irlhf.feedback import CHOICE, DEMONSTRATION, RATING, Feedback
from irlhf.randomness import Key
from irlhf.worlds.gym.cloning import clone
from irlhf.worlds.gym.episodes import Episodes
from irlhf.worlds.gym.judging import judged
from irlhf.worlds.gym.pictures import pictures
from irlhf.worlds.gym.policies import GymPolicy
from irlhf.worlds.gym.reading import read as read_episodes
from irlhf.worlds.gym.rewards import NeuralReward
from irlhf.worlds.gym.world import GymWorld

__all__ = [  # what irlhf.config asks of a world
    "LEARNING",
    "Settings",
    "contexts_of",
    "from_config",
    "from_kept",
    "keep",
    "pictures",
    "policy_files",
    "policy_of",
    "read",
    "scored",
]

DATA, WORLD, REWARD, FIT = "What was observed", "The world", "The reward", "How to fit"
SHARPNESS = 0.05  # temperature of people, for each step of the reward: whoever demonstrates is nearly right
PAIRS = 16  # rows of comparisons in a step
LOOKS = 5000  # rows of comparisons that are looked at in a fit without demonstrations
LEARNING = Learning(learner="control", judged=64, choices=32)


class Settings(Shared):
    """Settings of a fit in an environment."""

    FILES: ClassVar[tuple[str, ...]] = ("demonstrations", "choices")

    demonstrations: File | None = setting(None, "Episodes: .npz, JSON Lines, or the folder of a Minari dataset.", DATA)
    choices: Files = setting(
        [], "Comparisons, rankings, ratings of episodes or segments: JSON Lines. May be repeated.", DATA
    )
    env: str | None = setting(None, "The id of the environment, for example CartPole-v1.", WORLD, "ID")
    absorbing: bool = setting(True, "Pad episodes that end early, so that their length says nothing.", WORLD)
    horizon: int | None = setting(
        None, "Steps of an episode at most (default: the environment's limit of time).", WORLD, ge=1, le=10**9
    )
    discount: float = setting(1.0, "Of the return by which episodes are compared.", WORLD, gt=0, le=1)
    on: Literal["state", "state_action", "next_state", "transition"] = setting(
        "next_state", "What a step's reward may depend on.", REWARD
    )
    hidden: list[int] = setting([64, 64], "Units of the layers of reward and policy.", REWARD)
    shaping: bool = setting(False, "Add a shaping term, which changes no policy, to ease the fit.", REWARD)
    rounds: int | None = setting(
        None, "How often policy and reward alternate (default: 80, or 150 where actions are numbers).", FIT, ge=4,
        le=10**9,
    )  # fmt: skip
    warm_start: bool = setting(False, "Let the policy begin as a clone of the demonstrations.", FIT)

    @model_validator(mode="after")
    def _agree_in_this_world(self) -> Settings:
        if self.env is None:
            raise ValueError("nothing says which environment it is: give --env ID")
        if self.demonstrations is None and not self.choices:
            raise ValueError("there is nothing to learn from: give --demonstrations FILE or --choices FILE")
        if any(units < 1 or units > 4096 for units in self.hidden) or not self.hidden:
            raise ValueError("hidden has layers with no unit, or more than 4096; write one number for each layer")
        given = [name for name in ("fix", "bound", "start", "optimizer", "errors", "cluster", "likelihood")
                 if getattr(self, name)]  # fmt: skip
        if given:
            raise ValueError(f"--{given[0]} is of other worlds; a network's reward of an environment has no use for it")
        if self.warm_start and self.demonstrations is None:
            raise ValueError("--warm-start clones demonstrations: give --demonstrations FILE")
        return self

    @classmethod
    def flag_for(cls, name: str) -> str:
        return "--demonstrations" if name.endswith(".npz") else "--choices"

    @property
    def models_ties(self) -> bool:
        return self.ties is not None or any(source.ties for source in self.sources.values())


def read(settings: Settings, path: Path) -> Feedback:
    """Feedback from one file. Raises DataError."""
    return read_episodes(path, ties=settings.models_ties)


def from_config(settings: Settings) -> Setup:
    """Everything that the files of a configuration say.

    Raises:
        DataError: a file that cannot be read.
        ConfigError: an environment that is not there, or settings that do not fit the data.
    """
    parts: list[Feedback] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        for path in [*([settings.demonstrations] if settings.demonstrations else []), *settings.choices]:
            part = read(settings, path)
            wrong = part.kind != DEMONSTRATION if path == settings.demonstrations else part.kind == DEMONSTRATION
            if wrong.any():
                here, there = ("demonstrations", "choices") if path == settings.demonstrations else ("choices",) * 2
                other = "choices" if here == "demonstrations" else "demonstrations"
                raise ConfigError(f"{path} is given as --{there}, but has {other}; give it as --{other}")
            parts.append(part)
    world = _world(settings, seen=Episodes.concatenate([Episodes.of(part.trajectories) for part in parts]))
    setup = _setup(settings, world, parts)
    setup.notes.extend(str(warning.message) for warning in said)
    return setup


def _world(settings: Settings, **seen: Any) -> GymWorld:
    assert settings.env is not None
    return GymWorld(
        settings.env,
        absorbing=settings.absorbing,
        horizon=settings.horizon,
        discount=settings.discount,
        key=Key(settings.seed).at("gym"),
        **seen,
    )


def _setup(settings: Settings, world: GymWorld, parts: list[Feedback]) -> Setup:
    hidden = tuple(settings.hidden)
    reward = NeuralReward(world, on=settings.on, hidden=hidden, shaping=settings.shaping, seed=settings.seed % 2**31)
    demonstrated = settings.demonstrations is not None
    rows = sum(len(part) for part in parts)
    length = world.horizon or 1000
    notes = [f"careful: {sentence}" for sentence in world.cautions()]
    policy = None
    if demonstrated:
        policy = GymPolicy(world, hidden=hidden, seed=settings.seed % 2**31 + 1)
        if settings.warm_start and parts:
            clone(world, parts[0], policy=policy, key=Key(settings.seed).at("clone"))
            notes.append("the policy begins as a clone of the demonstrations")
    return Setup(
        world,
        reward,
        parts,
        likelihood="variational",
        policy=policy,
        rounds=settings.rounds,
        notes=notes,
        minibatches={"rows": PAIRS, "at_once": PAIRS, "epochs": max(1.0, LOOKS / max(rows, 1)), "rate": 1e-3},
        fit_temperatures=False,
        temperatures={DEMONSTRATION: SHARPNESS, CHOICE: SHARPNESS * length, RATING: SHARPNESS * length},
        judge=_judge,
        about={"environment": world.name, "alarms": world.cautions()},
    )


def _judge(world: GymWorld, policy: GymPolicy, held: Feedback, training: Feedback | None) -> pd.DataFrame:
    """How well the policy predicts held-out demonstrations, beside a clone of the others and what is done at random."""
    policies: dict[str, Any] = {"policy": policy}
    if training is not None and Episodes.of(training.trajectories).acts is not None:
        policies["cloning"] = clone(world, training)
    policies["at random"] = world.base_policy()
    return judged(world, policies, held)


# ------------------------------------------------------------------------------------------------------- kept worlds


def keep(setup: Setup) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """By what observations are standardized: all else is in the settings."""
    mean, sd = setup.world.moments
    return {"mean": mean, "sd": sd}, {"environment": setup.world.name}


def from_kept(settings: Settings, tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> Setup:
    """The setup without its feedback."""
    return _setup(settings, _world(settings, moments=(tensors["mean"], tensors["sd"])), [])


def scored(setup: Setup, path: Path) -> list[dict[str, Any]]:
    """Every episode or segment in a file with its score, the reward's return; and what the environment paid."""
    feedback = read_episodes(path, ties=True)
    episodes = Episodes.of(feedback.trajectories)
    batch = setup.world.collate([None] * len(episodes), episodes)
    with torch.no_grad():
        score = setup.reward(batch).double()
    paid, steps = episodes.returns(), episodes.steps
    return [
        {
            "episode": episodes.ids[k],
            "steps": int(steps[k]),
            "score": float(score[k]),
            "paid": None if np.isnan(paid[k]) else float(paid[k]),
        }
        for k in range(len(episodes))
    ]


# --------------------------------------------------------------------------------------------------- irlhf distill


def contexts_of(setup: Setup, how: Any) -> list[Any]:
    """An environment starts where it starts: there is one context."""
    if how.start or how.prompts is not None:
        raise ConfigError("--start and --prompts are of other worlds; an environment starts where it starts")
    return [None]


def policy_of(setup: Setup, contexts: Any, how: Any) -> tuple[GymPolicy, list[Any]]:
    """A new policy, which knows nothing of the one that the fit made."""
    return GymPolicy(setup.world, seed=how.seed % 2**31 + 1000), [None]


def policy_files(setup: Setup, policy: GymPolicy) -> dict[str, bytes]:
    """None beside ``policy.safetensors``."""
    return {}

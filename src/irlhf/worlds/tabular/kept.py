"""World and reward of a fit as tensors: what a run keeps, so that it can score without the files it was fitted to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irlhf.config import Setup
from irlhf.errors import CheckpointError, ConfigError
from irlhf.functional.transitions import Transitions
from irlhf.worlds.tabular.features import Features
from irlhf.worlds.tabular.rewards import Linear, Neural, Tabular
from irlhf.worlds.tabular.world import TabularWorld


def keep(setup: Setup) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, info) from which :func:`from_kept` makes the same world and the same form of reward, to the bit."""
    world: TabularWorld = setup.world
    t = world.transitions
    labels = {"states": world.states.tolist(), "actions": world.actions.tolist()}
    arrays = {
        "state": t.state,
        "action": world.action_of_pair,
        "first_outcome": t.first_outcome,
        "next_state": t.next_state,
        "probability": t.probability,
        "labels": np.frombuffer(json.dumps(labels).encode(), np.uint8),
    }
    tensors = {name: torch.tensor(array) for name, array in arrays.items()} | {"log_base": world.log_base_of_pair}
    info: dict[str, Any] = {
        "discount": world.discount,
        "horizon": world.horizon,
        "destinations": world.destinations,
        "kind": setup.kind,
        "on": setup.reward.on,
    }
    if of_reward := getattr(setup.reward, "features", None):
        tensors["features"], info["features"] = of_reward.values, list(of_reward.names)
    return tensors, info


def from_kept(settings: Any, tensors: dict[str, Tensor], info: dict[str, Any]) -> Setup:
    """The setup that was kept, without its feedback. Raises CheckpointError if it cannot be one."""
    try:
        labels = json.loads(tensors["labels"].numpy().tobytes())
        names = ("state", "first_outcome", "next_state", "probability")
        transitions = Transitions(len(labels["states"]), *(tensors[name].numpy() for name in names))
        world = TabularWorld(
            transitions,
            states=labels["states"],
            actions=[labels["actions"][k] for k in tensors["action"].tolist()],
            discount=info["discount"],
            horizon=info["horizon"],
            destinations=info["destinations"],
            log_base=tensors["log_base"],
        )
        if settings.reward == "tabular":
            reward = Tabular(world, on=info["on"])
        else:
            columns = Features(tensors["features"], tuple(info["features"]), info["on"])
            linear = settings.reward == "linear"
            reward = Linear(columns) if linear else Neural(columns, hidden=settings.hidden, seed=settings.seed)
        return Setup(world, reward, [], info["kind"], model=settings.model)
    except (KeyError, IndexError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"the world that the run kept is damaged ({error}); fit again") from error

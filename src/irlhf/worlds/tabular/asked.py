"""``irlhf whatif`` in the tabular world: what was asked for in words, as a changed world, features and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irlhf.config import Setup
from irlhf.errors import ConfigError
from irlhf.io import label
from irlhf.worlds.tabular.draws import Start
from irlhf.worlds.tabular.features import Features, features
from irlhf.worlds.tabular.panel import read_features, read_transitions
from irlhf.worlds.tabular.whatif import WhatIf, changed, whatif
from irlhf.worlds.tabular.world import TabularWorld


def counterfactual(setup: Setup, fit: Any, how: Mapping[str, Any]) -> WhatIf:
    """See :func:`irlhf.worlds.tabular.whatif.whatif`.

    Args:
        how: ``discount, horizon, transitions, features, forbid, set, scale, start, money, errors, cluster, draws``, as
            the flags of the command give them.

    Raises:
        DataError, ConfigError: what cannot be read, or does not fit the run.
    """
    world: TabularWorld = setup.world
    table = None if how["transitions"] is None else read_transitions(how["transitions"])
    other = None
    if table is not None or how["forbid"] or any(how[name] is not None for name in ("discount", "horizon")):
        forbid = [_action(world, text) for text in how["forbid"]]
        other = changed(world, transitions=table, discount=how["discount"], horizon=how["horizon"], forbid=forbid)
    columns: Features | None = None
    if how["features"] is not None:
        if not hasattr(fit.reward, "features"):
            raise ConfigError("--features: the reward of this run has none; leave it out")
        columns = features(world, read_features(how["features"]), names=list(fit.reward.features.names))
    if both := how["set"].keys() & how["scale"].keys():
        raise ConfigError(f"{both.pop()!r} is in --set and in --scale; keep one")
    parameters: dict[str, Any] = dict(how["set"])
    parameters |= {name: (lambda x, factor=factor: factor * x) for name, factor in how["scale"].items()}
    return whatif(
        fit,
        world=other,
        features=columns,
        parameters=parameters,
        starts=[_start(world, text) for text in how["start"]] or None,
        money=how["money"],
        kind=how["errors"],
        cluster=how["cluster"],
        draws=how["draws"],
    )


def _read(text: str, flag: str) -> Any:
    try:
        return label(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _action(world: TabularWorld, text: str) -> Any:
    if (whole := _read(text, "--forbid")) in world.actions or ":" not in text:
        return whole
    state, _, action = text.rpartition(":")
    return _read(state, "--forbid"), _read(action, "--forbid")


def _start(world: TabularWorld, text: str) -> Any:
    if not world.destinations:
        return _read(text, "--start")
    state, between, goal = text.rpartition(":")
    if not between:
        raise ConfigError(f"--start {text!r} says not where it goes; write STATE:DESTINATION")
    return Start(_read(state, "--start"), _read(goal, "--start"))

"""The tabular world's own settings, and how its files become a world, a reward and feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field, model_validator

from irlhf.config import File, Files, Setup, named, setting
from irlhf.config import Settings as Shared
from irlhf.errors import ConfigError, TrajectoryError
from irlhf.feedback import DEMONSTRATION, Feedback, picked
from irlhf.io import label, read_jsonl, read_table
from irlhf.worlds.tabular.asked import counterfactual
from irlhf.worlds.tabular.build import from_table
from irlhf.worlds.tabular.distill import contexts_of, policy_files, policy_of
from irlhf.worlds.tabular.estimate import TransitionEstimate
from irlhf.worlds.tabular.features import features
from irlhf.worlds.tabular.kept import from_kept, keep
from irlhf.worlds.tabular.load import observed_paths, observed_transitions
from irlhf.worlds.tabular.panel import KEYS, read_features, read_panel, read_transitions
from irlhf.worlds.tabular.paths import objects
from irlhf.worlds.tabular.regret import regret
from irlhf.worlds.tabular.rewards import Linear, Neural, Tabular
from irlhf.worlds.tabular.trajectories import parse_context, parse_trajectory
from irlhf.worlds.tabular.world import TabularWorld

__all__ = [  # what irlhf.config asks of a world
    "Settings",
    "contexts_of",
    "counterfactual",
    "from_config",
    "from_kept",
    "keep",
    "pictures",
    "policy_files",
    "policy_of",
    "read",
]

DATA, WORLD, REWARD = "What was observed", "The world", "The reward"
SHOWN_UNSEEN = 20  # pairs (state, action) never seen that the result lists


def _widths(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class Settings(Shared):
    """Settings of a fit in the tabular world."""

    FILES: ClassVar[tuple[str, ...]] = ("panel", "choices", "features", "transitions", "base")

    panel: File | None = setting(
        None,
        "Demonstrations: CSV or Parquet with trajectory, step, state, action[, next_state, context, person].",
        DATA,
    )
    choices: Files = setting([], "Comparisons, rankings, ratings, demonstrations: JSON Lines. May be repeated.", DATA)
    features: File | None = setting(
        None, "CSV: state[, action][, next_state], and one column for each feature.", REWARD
    )
    reward: Literal["linear", "tabular", "neural"] = setting("linear", "Of which form the reward is.", REWARD)
    on: Literal["states", "pairs", "outcomes"] = setting("states", "What a tabular reward has a parameter for.", REWARD)
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], BeforeValidator(_widths)] = setting(
        [32, 32], "Widths of the hidden layers of a neural reward.", REWARD, "N,N", max_length=8
    )
    transitions: File | None = setting(
        None,
        "CSV: state, action, next_state, probability. Without it they are estimated from what was observed.",
        WORLD,
    )
    pooling: Literal["frequencies", "increments"] = setting(
        "frequencies",
        "Estimate transitions for each (state, action), or one distribution of next_state - state.",
        WORLD,
    )
    reset: Annotated[dict[str, int], named("ACTION=STATE")] = setting(
        {}, "With increments: an action that starts from this state instead.", WORLD, "ACTION=STATE"
    )
    discount: float = setting(1.0, "What the next step counts for, from 0 to 1.", WORLD, ge=0, le=1)
    horizon: int | None = setting(None, "Episodes end after so many steps.", WORLD, ge=1, le=1_000_000)
    destinations: bool = setting(False, "The context of a trajectory is the state where it is going.", WORLD)
    base: File | None = setting(None, "CSV: state, action, log_base: how easy each action is, in nats.", WORLD)
    kind: Literal["causal", "weighted", "anticipative"] = setting(
        "causal", "Which likelihood of a demonstration.", WORLD
    )
    regret: float | None = setting(
        None, "People compare regret, not return, against values at this temperature (0: optimal ones).", REWARD, ge=0
    )

    @property
    def model(self) -> regret | None:
        """What of a path is compared: None for its return."""
        return None if self.regret is None else regret(self.regret)

    @model_validator(mode="after")
    def _agree_in_this_world(self) -> Settings:
        if self.panel is None and not self.choices:
            raise ValueError("there is nothing to learn from: give --panel (demonstrations), --choices, or both")
        if self.reset and self.pooling != "increments":
            raise ValueError("--reset belongs to --pooling increments; give that, or leave --reset out")
        if self.pooling == "increments" and self.transitions is not None:
            raise ValueError("--pooling says how to estimate transitions, but --transitions gives them; leave one out")
        if self.features is None and self.reward != "tabular":
            raise ValueError(f"a {self.reward} reward needs features; give --features, or --reward tabular")
        return self

    @classmethod
    def flag_for(cls, name: str) -> str:
        return "--choices" if name.endswith((".jsonl", ".ndjson")) else "--panel"

    @property
    def models_ties(self) -> bool:
        return self.ties is not None or any(source.ties for source in self.sources.values())


# -------------------------------------------------------------------------------------------------------- feedback


def read(settings: Settings, path: FilePath) -> Feedback:
    """Feedback from one file: JSON Lines by its name, otherwise a panel.

    With destinations, a demonstration without a context is taken to have arrived where it was going.

    Raises:
        DataError: names file, line, field and reason.
    """
    if FilePath(path).name.removesuffix(".gz").lower().endswith((".jsonl", ".ndjson", ".json")):
        feedback = read_jsonl(
            path, parse_trajectory=parse_trajectory, parse_context=parse_context, ties=settings.models_ties
        )
    else:
        feedback = read_panel(path)
    return _arrived(feedback) if settings.destinations else feedback


def _arrived(feedback: Feedback) -> Feedback:
    """Contexts that nobody gave: where each trajectory ended (of a choice, the first that was shown)."""
    if all(context is not None for context in feedback.contexts):
        return feedback
    contexts = [feedback.contexts[x] for x in feedback.context]
    for row, context in enumerate(contexts):
        if context is None:
            path = feedback.trajectories[int(feedback.trajectory[feedback.first_item[row]])]
            if len(path.states) == len(path.actions):
                raise ConfigError(
                    f"row {feedback.id[row]!r} has no context, and it is not known where it ended; "
                    "with destinations give a context (where it was going) or the next_state of its last step"
                )
            contexts[row] = path.states[-1]
    distinct: dict[Any, int] = {}
    numbers = np.array([distinct.setdefault(context, len(distinct)) for context in contexts], np.int64)
    return replace(feedback, contexts=list(distinct), context=numbers)


# ------------------------------------------------------------------------------------------- the world and the reward


def from_config(settings: Settings) -> Setup:
    """Everything that the files of a configuration say.

    Raises:
        DataError: a file that cannot be read.
        ConfigError: settings that do not fit the data.
    """
    parts = [read(settings, path) for path in ([settings.panel] if settings.panel else []) + settings.choices]
    table = None if settings.features is None else read_features(settings.features)
    notes: list[str] = []
    transitions, about, estimate = _transitions(settings, parts, table, notes)
    horizon = settings.horizon
    solved = any((part.kind == DEMONSTRATION).any() for part in parts)
    looks_ahead = solved or settings.regret is not None
    if horizon is None and settings.discount == 1 and not settings.destinations and not looks_ahead:
        horizon = max(len(path.actions) for part in parts for path in part.trajectories)
    world = from_table(
        transitions,
        log_base=None if settings.base is None else _read_base(settings.base),
        discount=settings.discount,
        horizon=horizon,
        destinations=settings.destinations,
    )
    if "log_likelihood" not in about and not world.deterministic and solved:
        about["log_likelihood"] = _log_dynamics(world, parts)
    reward = _reward(settings, world, table)
    told: dict[str, Any] = {"transitions": about}
    if settings.model is not None:
        notes.append(f"comparisons are of {settings.model!r}: how well somebody acted, not how much was earned")
        told["preferences"] = repr(settings.model)
    return Setup(world, reward, parts, settings.kind, notes, told, estimate, model=settings.model)


def pictures(fit: Any) -> list[Any]:
    """What a report shows of a fit in this world. Raises ConfigError without matplotlib."""
    from irlhf.worlds.tabular.pictures import pictures as draw

    return draw(fit)


def _reward(settings: Settings, world: TabularWorld, table: pd.DataFrame | None) -> torch.nn.Module:
    if settings.reward == "tabular":
        return Tabular(world, on=settings.on)
    of_world = features(world, table)
    if settings.reward == "linear":
        return Linear(of_world)
    return Neural(of_world.standardized(), hidden=settings.hidden, seed=settings.seed % 2**63)


def _transitions(
    settings: Settings, parts: Sequence[Feedback], table: pd.DataFrame | None, notes: list[str]
) -> tuple[pd.DataFrame, dict[str, Any], TransitionEstimate | None]:
    """The table of transitions, what the result says about it, and how it was estimated."""
    if settings.transitions is not None:
        return read_transitions(settings.transitions), {"from": str(settings.transitions)}, None
    reset = {label(action): state for action, state in settings.reset.items()}
    paths, weights = observed_paths(parts)
    transitions, estimate = observed_transitions(
        paths, table, weights=weights, pooling=settings.pooling, reset=reset, name="what was observed"
    )
    if estimate is None:
        notes.append(f"every action is the state it leads to: a network of {len(transitions)} links")
        about = {"from": "a network: every action is the state it leads to", "links": len(transitions)}
        return transitions, about, None
    about = _about(estimate)
    notes.append(
        f"transitions estimated from {estimate.n_observed} steps (pooling: {settings.pooling}); "
        f"log-likelihood {estimate.log_likelihood:.4f}, {estimate.n_parameters} parameters"
    )
    if estimate.n_unseen:
        pooled = settings.pooling == "increments"
        means = (
            "they have the common increments"
            if pooled
            else "impossible here; give --transitions or --pooling increments"
        )
        careful = "" if pooled else "careful: "
        notes.append(f"{careful}{estimate.n_unseen} pairs (state, action) never seen: {means}")
    if ends := set(estimate.table["next_state"]) - set(estimate.table["state"]):
        notes.append(f"careful: {len(ends)} states were reached and never left: trajectories end there")
    return estimate.table, about, estimate


def _about(estimate: TransitionEstimate) -> dict[str, Any]:
    unseen = [list(pair) for pair in estimate.unseen[:SHOWN_UNSEEN]]
    increments = estimate.increments
    return {
        "from": "estimated from what was observed",
        "pooling": "increments" if estimate.pooling == "increments" else "frequencies",
        "log_likelihood": estimate.log_likelihood,
        "parameters": estimate.n_parameters,
        "steps": estimate.n_observed,
        "set_aside": estimate.n_set_aside,
        "never_seen": estimate.n_unseen,
        "never_seen_first": unseen,
        **({"increments": {str(d): p for d, p in increments.items()}} if increments else {}),
    }


def _read_base(path: FilePath) -> pd.DataFrame:
    table = read_table(path, what="the base measure")
    table.require([*KEYS[:2], "log_base"], [*KEYS[:2], "log_base"])
    labels, (state, action) = table.labels(*KEYS[:2])
    values = table.numbers("log_base")
    table.check()
    return pd.DataFrame({"state": objects(labels[state].tolist()), "action": objects(labels[action].tolist())}).assign(
        log_base=values
    )


def _log_dynamics(world: TabularWorld, parts: Sequence[Feedback]) -> float:
    """The weighted log-likelihood of the observed transitions under transitions that were given."""
    total = 0.0
    for part in (part.where(kind=DEMONSTRATION) for part in parts):
        if len(part):
            paths = picked(part.trajectories, part.trajectory)
            contexts = [part.contexts[x] for x in part.context]
            try:
                batch = world.collate(contexts, paths)
            except TrajectoryError as error:
                raise ConfigError(f"demonstration {part.id[error.item]!r}, {error.reason}") from None
            total += float(world.log_dynamics(batch) @ torch.from_numpy(part.weight))
    return total

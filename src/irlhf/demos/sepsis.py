"""The intensive-care world of the PyPI package ``icu-sepsis``: a Markov decision process estimated from records.

Choudhary et al. (2024), "ICU-Sepsis: a benchmark MDP built from real medical data", after Komorowski et al. (2018):
713 states are clusters of patients' measurements; an action is one of 5 levels of intravenous fluid x 5 of vasopressor;
death and survival end a stay. An action is admissible where the records have enough of it to estimate what it does.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.worlds.tabular import Features, Paths, TabularWorld, features, from_arrays, sample_paths

PATIENT_STATES = 713
DEATH, SURVIVAL = 713, 714
LONGEST = 1000  # steps; stays end after 9 on average
INSTALL = "pip install --no-deps icu-sepsis==2.0.1"


@dataclass(frozen=True, eq=False)
class Sepsis:
    """The world, and what else the package knows; everything [pairs] is in the world's order of (state, action)."""

    world: TabularWorld
    start: np.ndarray  # [states] how often a stay starts there
    log_clinicians: Tensor  # [pairs] log-probability that clinicians give this dose, among admissible ones
    fluid: np.ndarray  # [pairs] level 0..4
    vasopressor: np.ndarray  # [pairs] level 0..4
    sofa: np.ndarray  # [states] organ failure, standardized over patients' states; 0 after the stay
    axis: np.ndarray  # [states] second principal component of the states' measurements (the first follows SOFA)
    kept: np.ndarray  # [states] how much of what the clinicians do there is admissible; the rest is left out here

    def sample(self, log_policy: Tensor, starts: list[int], rng: np.random.Generator) -> Paths:
        """One complete stay from each start."""
        return sample_paths(self.world, log_policy, starts, max_steps=LONGEST, seed=rng)

    def starts(self, n: int, rng: np.random.Generator) -> list[int]:
        return rng.choice(len(self.start), n, p=self.start).tolist()

    def features(self) -> Features:
        """What the linear reward may care about, for every admissible dose in every state."""
        t = self.world.transitions
        state, move = t.state, t.matrix
        any_vasopressor = (self.vasopressor > 0).astype(float)
        columns = {
            "fluid": self.fluid,
            "any vasopressor": any_vasopressor,
            "vasopressor": self.vasopressor,
            "fluid x SOFA": self.fluid * self.sofa[state],
            "vasopressor x SOFA": self.vasopressor * self.sofa[state],
            "fluid x axis 2": self.fluid * self.axis[state],
            "survival": move[:, [SURVIVAL]].toarray()[:, 0],  # probability that this step ends in discharge
            "step": np.ones(t.n_pairs),
            "SOFA": self.sofa[state],
            "axis 2": self.axis[state],
            "SOFA change": move @ self.sofa - self.sofa[state],  # expected; a potential's, so pure shaping
        }
        return features(self.world, np.column_stack(list(columns.values())), names=list(columns))

    def visits(self, log_policy: Tensor) -> np.ndarray:
        """[states] How often a stay passes through each state under a policy, exactly."""
        inner = slice(0, PATIENT_STATES)
        move = self._moves(log_policy)[inner, inner]
        return np.linalg.solve((np.eye(PATIENT_STATES) - move).T, self.start[inner])

    def _moves(self, log_policy: Tensor) -> np.ndarray:
        t = self.world.transitions
        pi = np.exp(log_policy.detach().numpy())
        shape = (t.n_states, t.n_pairs)
        averaged: Any = sp.csr_array((pi, (t.state, np.arange(t.n_pairs))), shape=shape) @ t.matrix
        return averaged.toarray()

    def likeliest(self, log_policy: Tensor) -> Tensor:
        """The policy that always gives the likeliest dose."""
        pi, first = log_policy.numpy(), self.world.transitions.first_pair
        chosen = np.full(len(pi), -np.inf)
        for start, end in pairwise(first[: PATIENT_STATES + 1]):
            chosen[start + pi[start:end].argmax()] = 0.0
        return torch.from_numpy(chosen)

    def outside(self) -> float:
        """The share of the clinicians' decisions that are not admissible."""
        visits = self.visits(self.log_clinicians)
        return float(1 - visits @ self.kept / visits.sum())

    def outlook(self, log_policy: Tensor) -> dict[str, float]:
        """Of a policy, exactly: probability of survival, steps of a stay, mean level of fluid, use of vasopressors."""
        visits, state = self.visits(log_policy), self.world.transitions.state
        decisions = visits[state] * np.exp(log_policy.detach().numpy()) / visits.sum()
        return {
            "survival": float(visits @ self._moves(log_policy)[:PATIENT_STATES, SURVIVAL]),
            "steps": float(visits.sum()),
            "fluid": float(decisions @ self.fluid),
            "vasopressor": float(decisions @ (self.vasopressor > 0)),
        }


def load() -> Sepsis:
    """Reads the arrays of the installed package without importing it (its own imports need an old ``gym``).

    Raises:
        ConfigError: the package is not installed.
    """
    folder = _assets()
    with np.load(folder / "dynamics.npz", allow_pickle=False) as arrays:
        n = PATIENT_STATES + 2  # the last state of the package only follows death and survival
        probabilities = arrays["tx_mat"][:n, :, :n]
        start, clinicians = arrays["d_0"][:n], arrays["expert_policy"][:n]
        sofa, centers = arrays["sofa_scores"][:n], arrays["state_cluster_centers"][:PATIENT_STATES]
    # The first line says how many actions are admissible in each state; then there is one line for each state.
    lines = (folder / "admissible_actions.txt").read_text().splitlines()[1 : PATIENT_STATES + 1]
    allowed = np.zeros(clinicians.shape, bool)
    for state, line in enumerate(lines):
        allowed[state, [int(action) for action in line.split()]] = True
    state, action = np.nonzero(allowed)
    # mu: every admissible dose alike. Discount 1: every stay ends, so the sum over its steps is finite.
    log_mu = -np.log(allowed.sum(1)[state])
    world = from_arrays(probabilities, allowed=allowed, terminal=[DEATH, SURVIVAL], discount=1.0, log_base=log_mu)
    admissible = np.where(allowed, clinicians, 0.0)
    axes = np.linalg.svd(_standardized(centers), full_matrices=False)[0]
    axis = axes[:, 1] * np.sign(axes[np.abs(axes[:, 1]).argmax(), 1])  # the sign of an axis is arbitrary: fix it
    ends = np.zeros(2)  # death and survival have no measurements
    return Sepsis(
        world=world,
        start=start,
        log_clinicians=torch.from_numpy(np.log(admissible[state, action] / admissible.sum(1)[state])),
        fluid=(action // 5).astype(float),
        vasopressor=(action % 5).astype(float),
        sofa=np.append(_standardized(sofa[:PATIENT_STATES]), ends),
        axis=np.append(_standardized(axis), ends),
        kept=admissible.sum(1)[:PATIENT_STATES],
    )


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def _assets() -> Path:
    found = importlib.util.find_spec("icu_sepsis")
    folder = Path(found.origin).parent / "envs" / "assets" if found and found.origin else None
    if folder is None or not (folder / "dynamics.npz").exists():
        raise ConfigError(f"this demo reads the MDP of the package icu-sepsis, which is not installed: {INSTALL}")
    return folder

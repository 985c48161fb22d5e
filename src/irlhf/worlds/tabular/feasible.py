"""Where to start a search if the sum over endless paths diverges at zero: where every step costs enough to end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linprog

from irlhf.errors import InfeasibleError

if TYPE_CHECKING:
    from irlhf.worlds.tabular.world import TabularWorld


def feasible_start(
    world: TabularWorld,
    reward: Any,
    contexts: Sequence[Any],
    *,
    temperature: float,
    kind: str,
    fixed: Mapping[str, float],
    bounds: Mapping[str, tuple[float | None, float | None]],
) -> dict[str, float]:
    """Parameters by name at which log Z is finite; empty if it is finite now, or if nothing can be proposed.

    ``sum_a mu(a|s) exp(r(s,a)/T) < 1`` in every state is enough. The parameters that are nearest to zero (in units of
    what they do to a typical step) are found by linear programming, for a reward that is linear in them: one with a
    ``design`` matrix.
    """
    if world.discount < 1 or world.horizon is not None or not hasattr(reward, "design"):
        return {}
    try:
        with torch.no_grad():
            world.solve(reward, contexts, temperature=temperature, kind=kind)
        return {}
    except InfeasibleError:
        pass
    names = reward.parameter_labels["theta"]
    scale = np.asarray(getattr(reward, "parameter_scale", np.ones(len(names))))
    state = world.transitions.state
    mass = np.bincount(state, np.exp(world.log_base_of_pair.numpy()), minlength=world.transitions.n_states)
    rows = reward.design[np.unique(state)] if reward.on == "states" else reward.design
    enough = np.full(rows.shape[0], -temperature * (np.log(max(mass.max(), 1.0)) + 0.1))
    ranges = [(fixed[name], fixed[name]) if name in fixed else bounds.get(name, (None, None)) for name in names]
    # theta and its size: size >= theta, size >= -theta, and the sum of sizes is as small as can be
    n = len(names)
    eye = sp.eye_array(n)
    found = linprog(
        np.concatenate([np.zeros(n), scale]),
        A_ub=sp.block_array([[rows, None], [eye, -eye], [-eye, -eye]], format="csr"),
        b_ub=np.concatenate([enough, np.zeros(2 * n)]),
        bounds=[*ranges, *[(0, None)] * n],
    )
    if found.x is None:
        return {}
    return {name: float(value) for name, value in zip(names, found.x, strict=False) if name not in fixed}

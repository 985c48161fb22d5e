"""What a direction of the parameters means: shaping, a constant, nothing at all.

Feedback is blind to some changes of a reward. Which ones depends on the feedback; what they are called does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import lsqr

if TYPE_CHECKING:
    from irlhf.worlds.tabular.world import TabularWorld

TINY = 1e-6  # of the size of a change: what is left over is rounding


def explain(world: TabularWorld, reward: Any, change: Mapping[str, float]) -> str | None:
    """What adding ``change`` to the parameters of a linear reward does to it, in words; None: nothing that has a name.

    Args:
        change: by the names of the parameters.
    """
    labels, design = getattr(reward, "parameter_labels", {}).get("theta"), getattr(reward, "design", None)
    if labels is None or design is None or any(name not in labels for name in change):
        return None
    of_row = design @ np.array([change.get(name, 0.0) for name in labels])
    t = world.transitions
    typical = np.sqrt((design.multiply(design)).mean(0)) @ np.abs([change.get(name, 0.0) for name in labels])
    on = reward.on
    per_pair = of_row[t.state] if on == "states" else of_row
    per_outcome = per_pair if on == "outcomes" else per_pair[t.pair_of_outcome]
    if on == "outcomes":
        per_pair = np.bincount(t.pair_of_outcome, t.probability * of_row, minlength=t.n_pairs)
    size = float(np.abs(per_pair).max(initial=0.0))
    if max(size, float(np.abs(per_outcome).max(initial=0.0))) <= TINY * float(typical):
        return "changes no reward: these features are collinear"
    if np.ptp(per_outcome) <= TINY * size:
        return "adds the same to every step"
    if world.discount > 0:
        each = (np.ones(t.n_outcomes), t.next_state, np.arange(t.n_outcomes + 1))
        outcome = sp.csr_array(each, (t.n_outcomes, t.n_states))
        if _is_shaping(np.asarray(per_outcome, float), world.discount * outcome, t.state[t.pair_of_outcome]):
            return "is potential shaping, g p(s') - p(s): it moves values, not what is best"
        if not world.deterministic and _is_shaping(np.asarray(per_pair, float), world.discount * t.matrix, t.state):
            return "is shaping in expectation: only what nature did by chance tells it from nothing"
    with_pairs = np.flatnonzero(~t.terminal)
    first = t.first_pair[with_pairs]
    apart = np.maximum.reduceat(per_pair, first) - np.minimum.reduceat(per_pair, first)
    if float(apart.max()) <= TINY * size:
        return "depends on the state alone, not on what is done there"
    return None


def _is_shaping(change: NDArray[np.float64], ahead: Any, state: NDArray[np.int64]) -> bool:
    """Whether ``change = ahead @ p - p[state]`` for some potential p."""
    here = sp.csr_array((np.ones(len(state)), state, np.arange(len(state) + 1)), (len(state), ahead.shape[1]))
    system = (ahead - here).tocsr()
    found = lsqr(system, change, atol=1e-13, btol=1e-13, iter_lim=20 * ahead.shape[1])[0]
    return float(np.abs(system @ found - change).max()) <= TINY * float(np.abs(change).max())

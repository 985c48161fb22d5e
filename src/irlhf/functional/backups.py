"""The soft Bellman backup of stationary problems, compiled, in blocks of states that stay in the cache.

None is type-checked at run time: a checker in between would keep the functions from being compiled.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit

from irlhf.functional.kernels import exp_of_nonpositive

BLOCK = 256  # states


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def back_up(
    values, utility, fixed, discount,
    first_pair, first_outcome, probability, row_start, column, slot, diagonal, first, last, new, policy, flow,
):  # fmt: skip
    """One soft Bellman backup of ``values`` into ``new``, its ``policy`` and ``flow`` = discount * P_policy.

    For the states first .. last - 1. Returns the largest |new - values| (infinite if one is not a number) and the
    largest magnitude that entered (the scale of rounding errors).
    """
    widest, most = 0, 0
    for s in range(first, last):
        widest = max(widest, np.int64(row_start[s + 1]) - np.int64(row_start[s]))
    for start in range(first, last, BLOCK):
        most = max(most, np.int64(first_pair[min(start + BLOCK, last)]) - np.int64(first_pair[start]))
    ahead, power = np.empty(widest), np.empty(most)
    residual = 0.0
    scale = 1.0
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for s in range(start, stop):
            row = row_start[s]
            for k in range(row_start[s + 1] - row):
                ahead[k] = values[column[row + k]]
            best = -np.inf
            for p in range(first_pair[s], first_pair[s + 1]):
                expected = 0.0
                for o in range(first_outcome[p], first_outcome[p + 1]):
                    expected += probability[o] * ahead[slot[o]]
                q = utility[p] + discount * expected
                policy[p] = q
                if q > best:
                    best = q
            new[s] = best
            if fixed[s]:
                best = np.inf  # nothing is done here: every exp is 0
            for p in range(first_pair[s], first_pair[s + 1]):
                policy[p] -= best
        pairs = policy[first_pair[start] : first_pair[stop]]
        exp_of_nonpositive(pairs, power[: len(pairs)])
        for s in range(start, stop):
            row = row_start[s]
            for k in range(row, row_start[s + 1]):
                flow[k] = 0.0
            if fixed[s]:
                new[s] = 0.0
                continue
            total = 0.0
            for p in range(first_pair[s], first_pair[s + 1]):
                total += policy[p]
            new[s] += math.log(total)
            change = abs(new[s] - values[s])
            if not change <= residual:
                residual = change if change > residual else np.inf
            scale = max(scale, abs(new[s]))
            share = 1.0 / total
            for p in range(first_pair[s], first_pair[s + 1]):
                policy[p] *= share
                weight = discount * policy[p]
                for o in range(first_outcome[p], first_outcome[p + 1]):
                    flow[row + slot[o]] += weight * probability[o]
    return residual, scale


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def sweep(
    values, order, utility, fixed, discount,
    first_pair, first_outcome, probability, row_start, column, slot, diagonal,
):  # fmt: skip
    """Soft Bellman backups in place (Gauss-Seidel), in the given order of states."""
    for s in order:
        if fixed[s]:
            continue
        row = row_start[s]
        best = -np.inf
        total = 0.0
        for p in range(first_pair[s], first_pair[s + 1]):
            expected = 0.0
            for o in range(first_outcome[p], first_outcome[p + 1]):
                expected += probability[o] * values[column[row + slot[o]]]
            q = utility[p] + discount * expected
            if q > best:
                total = total * math.exp(best - q) + 1.0
                best = q
            elif q > -np.inf:
                total += math.exp(q - best)
        values[s] = best + math.log(total)

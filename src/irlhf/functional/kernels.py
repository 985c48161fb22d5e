"""The inner loops of the tabular solvers, compiled: loops over states, their pairs and their outcomes, in float64.

Arrays are those of `Transitions` and of its `policy_pattern`. A pair whose utility is -inf is not allowed; a state
that is ``fixed`` has the value 0 and is left (it is terminal, absorbing, or excluded because nothing is possible there).
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True)
def merge_outcomes(first_pair, first_outcome, next_state, n_states):
    """The pattern of "from state to next state" (rows sorted, diagonal included) and the place of each outcome in it."""
    row_start = np.empty(n_states + 1, np.int64)
    column = np.empty(len(next_state) + n_states, np.int32)
    slot = np.empty(len(next_state), np.int32)
    diagonal = np.empty(n_states, np.int32)
    place_of = np.full(n_states, -1, np.int64)
    count = 0
    for s in range(n_states):
        start = count
        row_start[s] = start
        column[count] = s
        place_of[s] = count
        count += 1
        first, last = first_outcome[first_pair[s]], first_outcome[first_pair[s + 1]]
        for o in range(first, last):
            t = next_state[o]
            if place_of[t] < start:
                place_of[t] = count
                column[count] = t
                count += 1
        column[start:count] = np.sort(column[start:count])
        for k in range(start, count):
            place_of[column[k]] = k
        for o in range(first, last):
            slot[o] = place_of[next_state[o]]
        diagonal[s] = place_of[s]
    row_start[n_states] = count
    return row_start, column[:count].copy(), slot, diagonal


@njit(cache=True)
def admissible(utility, exits, must_exit, first_pair, first_outcome, next_state, first_arrival, arrival):
    """What is possible: (alive [states], allowed [pairs], exit_pair [states]).

    A pair is allowed if its utility is not -inf and no outcome of it is dead; a state is dead if it is no exit and has
    no allowed pair or, with ``must_exit``, no way to an exit. ``exit_pair`` (with ``must_exit``) is a pair with an
    outcome that is one step nearer to an exit: following it everywhere is a policy that leaves with probability 1.
    ``arrival`` lists the pairs that may lead to a state (from ``first_arrival``).
    """
    n_states = len(first_pair) - 1
    alive = np.ones(n_states, np.bool_)
    allowed = utility > -np.inf
    exit_pair = np.full(n_states, -1, np.int64)
    queue = np.empty(n_states, np.int64)
    state_of = np.empty(len(utility), np.int64)
    remaining = np.zeros(n_states, np.int64)
    for s in range(n_states):
        for p in range(first_pair[s], first_pair[s + 1]):
            state_of[p] = s
            remaining[s] += allowed[p]
    head, tail = 0, 0
    for s in range(n_states):
        if remaining[s] == 0 and not exits[s]:
            alive[s] = False
            queue[tail] = s
            tail += 1
    while True:
        while head < tail:  # what leads to a dead state with positive probability is not allowed
            t = queue[head]
            head += 1
            for i in range(first_arrival[t], first_arrival[t + 1]):
                p = arrival[i]
                if allowed[p]:
                    allowed[p] = False
                    s = state_of[p]
                    remaining[s] -= 1
                    if remaining[s] == 0 and alive[s] and not exits[s]:
                        alive[s] = False
                        queue[tail] = s
                        tail += 1
        if not must_exit:
            break
        found = exits.copy()
        way = np.empty(n_states, np.int64)
        here, end = 0, 0
        for s in range(n_states):
            if exits[s]:
                way[end] = s
                end += 1
        while here < end:
            t = way[here]
            here += 1
            for i in range(first_arrival[t], first_arrival[t + 1]):
                p = arrival[i]
                s = state_of[p]
                if allowed[p] and not found[s]:
                    found[s] = True
                    exit_pair[s] = p
                    way[end] = s
                    end += 1
        for s in range(n_states):
            if alive[s] and not found[s]:
                alive[s] = False
                queue[tail] = s
                tail += 1
        if head == tail:
            break
    return alive, allowed, exit_pair


@njit(cache=True)
def back_up(
    values, utility, fixed, discount, first_pair, first_outcome, probability, row_start, column, slot, new, policy, flow
):
    """One soft Bellman backup of ``values`` into ``new``, its ``policy`` and ``flow`` = discount * P_policy.

    Returns the largest |new - values| and the largest magnitude that entered (the scale of rounding errors).
    """
    widest = 0
    for s in range(len(first_pair) - 1):
        widest = max(widest, row_start[s + 1] - row_start[s])
    ahead = np.empty(widest)
    residual = 0.0
    scale = 1.0
    for s in range(len(first_pair) - 1):
        start = row_start[s]
        for k in range(start, row_start[s + 1]):
            flow[k] = 0.0
            ahead[k - start] = values[column[k]]
        if fixed[s]:
            new[s] = 0.0
            for p in range(first_pair[s], first_pair[s + 1]):
                policy[p] = 0.0
            continue
        best = -np.inf
        for p in range(first_pair[s], first_pair[s + 1]):
            q = utility[p]
            if q > -np.inf:
                expected = 0.0
                for o in range(first_outcome[p], first_outcome[p + 1]):
                    expected += probability[o] * ahead[slot[o] - start]
                q += discount * expected
                best = max(best, q)
            policy[p] = q
        total = 0.0
        for p in range(first_pair[s], first_pair[s + 1]):
            policy[p] = math.exp(policy[p] - best)
            total += policy[p]
        new[s] = best + math.log(total)
        residual = max(residual, abs(new[s] - values[s]))
        scale = max(scale, abs(new[s]))
        for p in range(first_pair[s], first_pair[s + 1]):
            policy[p] /= total
            share = discount * policy[p]
            if share > 0.0:
                for o in range(first_outcome[p], first_outcome[p + 1]):
                    flow[slot[o]] += share * probability[o]
    return residual, scale


@njit(cache=True)
def mix_outcomes(policy, discount, first_pair, first_outcome, probability, row_start, slot, flow):
    """``flow`` = discount * P_policy in the order of the pattern."""
    flow[:] = 0.0
    for p in range(len(policy)):
        share = discount * policy[p]
        if share > 0.0:
            for o in range(first_outcome[p], first_outcome[p + 1]):
                flow[slot[o]] += share * probability[o]


@njit(cache=True)
def remain(row_start, column, flow, x, transposed, out):
    """``out`` = x - K x, or x - K' x, where K holds ``flow``."""
    if transposed:
        out[:] = x
        for s in range(len(x)):
            xs = x[s]
            if xs != 0.0:
                for k in range(row_start[s], row_start[s + 1]):
                    out[column[k]] -= flow[k] * xs
    else:
        for s in range(len(x)):
            total = 0.0
            for k in range(row_start[s], row_start[s + 1]):
                total += flow[k] * x[column[k]]
            out[s] = x[s] - total


@njit(cache=True)
def bicgstab(row_start, column, flow, b, x, goal, patience, transposed):
    """BiCGSTAB (van der Vorst 1992) for (I - K) x = b or its transpose, from the given x, until |b - A x|_2 <= goal.

    Returns (iterations, norm of the recursive residual); the caller checks the true one. It may break down or diverge:
    then the norm is large or NaN.
    """
    n = len(b)
    r, p, v, s, t = np.empty(n), np.zeros(n), np.zeros(n), np.empty(n), np.empty(n)
    remain(row_start, column, flow, x, transposed, t)
    norm = 0.0
    for i in range(n):
        r[i] = b[i] - t[i]
        norm += r[i] * r[i]
    norm = math.sqrt(norm)
    if norm <= goal:
        return 0, norm
    shadow = r.copy()
    start = norm
    rho, alpha, omega = 1.0, 1.0, 1.0
    for iteration in range(1, patience + 1):
        new_rho = 0.0
        for i in range(n):
            new_rho += shadow[i] * r[i]
        beta = new_rho / rho * (alpha / omega) if rho * omega != 0.0 else np.nan
        rho = new_rho
        for i in range(n):
            p[i] = r[i] + beta * (p[i] - omega * v[i])
        remain(row_start, column, flow, p, transposed, v)
        along = 0.0
        for i in range(n):
            along += shadow[i] * v[i]
        alpha = rho / along if along != 0.0 else np.nan
        for i in range(n):
            s[i] = r[i] - alpha * v[i]
        remain(row_start, column, flow, s, transposed, t)
        ts, tt = 0.0, 0.0
        for i in range(n):
            ts += t[i] * s[i]
            tt += t[i] * t[i]
        omega = ts / tt if tt > 0.0 else 0.0
        norm = 0.0
        for i in range(n):
            x[i] += alpha * p[i] + omega * s[i]
            r[i] = s[i] - omega * t[i]
            norm += r[i] * r[i]
        norm = math.sqrt(norm)
        if norm <= goal or not norm < 1e4 * start:
            return iteration, norm
    return patience, norm

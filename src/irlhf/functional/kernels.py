"""The inner loops of the tabular solvers, compiled: loops over states, their pairs and their outcomes, in float64.

Arrays are those of `Transitions.pattern`; its unsigned indices spare the compiled code the check for negative ones.
A pair whose utility is -inf is not allowed; a state that is ``fixed`` has the value 0 and is left (it is terminal,
absorbing, or excluded because nothing is possible there).

None is type-checked at run time: a checker in between would keep the functions from being compiled.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True)
@no_type_check
def merge_outcomes(first_pair, first_outcome, next_state, n_states):
    """(row_start, column, slot, diagonal) of `Pattern`: rows sorted, the diagonal included."""
    row_start = np.empty(n_states + 1, np.uint32)
    column = np.empty(len(next_state) + n_states, np.uint32)
    slot = np.empty(len(next_state), np.uint32)
    diagonal = np.empty(n_states, np.uint32)
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
            slot[o] = place_of[next_state[o]] - start
        diagonal[s] = place_of[s]
    row_start[n_states] = count
    return row_start, column[:count].copy(), slot, diagonal


@njit(cache=True)
@no_type_check
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


@njit(inline="always")
@no_type_check
def _widest(row_start):
    widest = 0
    for s in range(len(row_start) - 1):
        widest = max(widest, np.int64(row_start[s + 1]) - np.int64(row_start[s]))
    return widest


@njit(cache=True)
@no_type_check
def mix_outcomes(policy, discount, first_pair, first_outcome, probability, row_start, column, slot, diagonal, flow):
    """``flow`` = discount * P_policy in the order of the pattern."""
    flow[:] = 0.0
    for s in range(len(first_pair) - 1):
        for p in range(first_pair[s], first_pair[s + 1]):
            share = discount * policy[p]
            for o in range(first_outcome[p], first_outcome[p + 1]):
                flow[row_start[s] + slot[o]] += share * probability[o]


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def exp_of_nonpositive(x, power):
    """x = exp(x) in place, for x <= 0, to one unit in the last place; below -708 it is 0. ``power`` is working space.

    Written so that it compiles to vector instructions, which `math.exp` does not: exp(x) = 2^k exp(r), k an integer in
    the low bits of k + 1.5 * 2^52, |r| <= log(2) / 2, and exp(r) a Taylor polynomial.
    """
    bits = power.view(np.int64)
    for i in range(len(x)):
        v = -709.0 if x[i] < -708.0 else x[i]
        power[i] = v * 1.4426950408889634 + 6755399441055744.0
        k = power[i] - 6755399441055744.0
        r = (v - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
        p = 1.6059043836821613e-10
        p = p * r + 2.08767569878681e-09
        p = p * r + 2.505210838544172e-08
        p = p * r + 2.755731922398589e-07
        p = p * r + 2.7557319223985893e-06
        p = p * r + 2.48015873015873e-05
        p = p * r + 1.984126984126984e-04
        p = p * r + 1.388888888888889e-03
        p = p * r + 8.333333333333333e-03
        p = p * r + 4.1666666666666664e-02
        p = p * r + 1.6666666666666666e-01
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        x[i] = 0.0 if v == -709.0 else p
    for i in range(len(x)):
        bits[i] = (bits[i] + 1023) << 52
        x[i] *= power[i]


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def back_up_in_time(
    utility, fixed, discount,
    first_pair, first_outcome, probability, row_start, column, slot, diagonal, values, policy,
):  # fmt: skip
    """``values`` [batch, horizon + 1, states] from its last row backwards, and ``policy`` [batch, horizon, pairs].

    ``utility`` is [batch, horizon or 1, pairs], ``fixed`` [batch, states].
    """
    ahead, power = np.empty(_widest(row_start)), np.empty(policy.shape[2])
    for i in range(policy.shape[0]):
        for h in range(policy.shape[1] - 1, -1, -1):
            u = utility[i, min(h, utility.shape[1] - 1)]
            after, now, pi = values[i, h + 1], values[i, h], policy[i, h]
            for s in range(len(first_pair) - 1):
                start = row_start[s]
                for k in range(row_start[s + 1] - start):
                    ahead[k] = after[column[start + k]] if discount > 0.0 else 0.0
                best = -np.inf
                for p in range(first_pair[s], first_pair[s + 1]):
                    expected = 0.0
                    for o in range(first_outcome[p], first_outcome[p + 1]):
                        expected += probability[o] * ahead[slot[o]]
                    q = u[p] + discount * expected
                    pi[p] = q
                    if q > best:
                        best = q
                now[s] = best
                if fixed[i, s] or best == -np.inf:
                    best = np.inf  # nothing is done here: every exp is 0
                for p in range(first_pair[s], first_pair[s + 1]):
                    pi[p] -= best
            exp_of_nonpositive(pi, power)
            for s in range(len(first_pair) - 1):
                if fixed[i, s]:
                    now[s] = 0.0
                elif now[s] > -np.inf:
                    total = 0.0
                    for p in range(first_pair[s], first_pair[s + 1]):
                        total += pi[p]
                    now[s] += math.log(total)
                    for p in range(first_pair[s], first_pair[s + 1]):
                        pi[p] /= total


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def carry_in_time(
    policy, b, discount, first_pair, first_outcome, probability, row_start, column, slot, diagonal, transposed, x
):
    """x = b + K x in time: x[h] = b[h] + K_h x[h + 1] from the end, or x[h + 1] = b[h + 1] + K_h' x[h] from the start.

    ``policy`` is [batch, horizon, pairs]; ``b`` and ``x`` are [batch, horizon + 1, states].
    """
    mixed = np.empty(_widest(row_start))
    horizon = policy.shape[1]
    x[:] = b
    for i in range(policy.shape[0]):
        for step in range(horizon):
            h = step if transposed else horizon - 1 - step
            pi, now, after = policy[i, h], x[i, h], x[i, h + 1]
            for s in range(len(first_pair) - 1):
                start = row_start[s]
                width = row_start[s + 1] - start
                for k in range(width):
                    mixed[k] = 0.0
                for p in range(first_pair[s], first_pair[s + 1]):
                    share = discount * pi[p]
                    for o in range(first_outcome[p], first_outcome[p + 1]):
                        mixed[slot[o]] += share * probability[o]
                if transposed:
                    for k in range(width):
                        after[column[start + k]] += mixed[k] * now[s]
                else:
                    total = now[s]
                    for k in range(width):
                        total += mixed[k] * after[column[start + k]]
                    now[s] = total


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def visits_in_time(policy, visits, state, total):
    """Adds policy * visits[state] to ``total`` [batch, horizon or 1, pairs]."""
    for i in range(policy.shape[0]):
        for h in range(policy.shape[1]):
            pi, here, out = policy[i, h], visits[i, h], total[i, min(h, total.shape[1] - 1)]
            for p in range(len(pi)):
                out[p] += pi[p] * here[state[p]]


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def advantage_of(pair, here, step, discount, first_outcome, next_state, probability, state, values, out):
    """``out`` = discount * E[values[here + step + s']] - values[here + s] of each listed pair (s, a)."""
    for k in range(len(pair)):
        p, ahead = pair[k], here[k] + step
        expected = 0.0
        for o in range(first_outcome[p], first_outcome[p + 1]):
            expected += probability[o] * values[ahead + next_state[o]]
        out[k] = (discount * expected if discount > 0.0 else 0.0) - values[here[k] + state[p]]


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def advantage_of_transposed(pair, here, step, discount, first_outcome, next_state, probability, state, g, out):
    """Adds the transpose of `advantage_of`, applied to ``g``, to ``out``."""
    for k in range(len(pair)):
        p, ahead = pair[k], here[k] + step
        out[here[k] + state[p]] -= g[k]
        share = discount * g[k]
        for o in range(first_outcome[p], first_outcome[p + 1]):
            out[ahead + next_state[o]] += probability[o] * share


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def add_squares(slope, after, now, weight, discount, first_outcome, next_state, probability, state, total):
    """Adds sum_p weight[p] g(p) g(p)' to ``total`` [k, k]: g(p) = slope[p] + discount * E[after[s']] - now[s].

    ``slope`` is [k, pairs], ``after`` and ``now`` are [states, k]: tangents of utilities and values make that of
    log pi. The lower triangle alone is filled.
    """
    g = np.empty(len(slope))
    for p in range(len(weight)):
        if weight[p] != 0.0:
            for i in range(len(g)):
                g[i] = slope[i, p] - now[state[p], i]
            for o in range(first_outcome[p], first_outcome[p + 1]):
                share, s = discount * probability[o], next_state[o]
                for i in range(len(g)):
                    g[i] += share * after[s, i]
            for i in range(len(g)):
                for j in range(i + 1):
                    total[i, j] += weight[p] * g[i] * g[j]


@njit(cache=True)
@no_type_check
def can_reach(destination, log_weight, first_arrival, arrival, state):
    """[states] Whether a path of pairs with log_weight > -inf leads to the destination."""
    n_states = len(first_arrival) - 1
    found = np.zeros(n_states, np.bool_)
    way = np.empty(n_states, np.int64)
    found[destination] = True
    way[0] = destination
    here, end = 0, 1
    while here < end:
        t = way[here]
        here += 1
        for i in range(first_arrival[t], first_arrival[t + 1]):
            p = arrival[i]
            if log_weight[p] > -np.inf and not found[state[p]]:
                found[state[p]] = True
                way[end] = state[p]
                end += 1
    return found


@njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
@no_type_check
def passage_residual(row_start, column, flow, z, destination):
    """[destinations] The largest |z - K z| / z over states but the destination; z [states, destinations], 0: no way."""
    n_states, count = z.shape
    worst = np.zeros(count)
    total = np.empty(count)
    for s in range(n_states):
        total[:] = 0.0
        for k in range(row_start[s], row_start[s + 1]):
            weight, ahead = flow[k], z[column[k]]
            for i in range(count):
                total[i] += weight * ahead[i]
        here = z[s]
        for i in range(count):
            if here[i] > 0.0 and destination[i] != s:
                worst[i] = max(worst[i], abs(total[i] - here[i]) / here[i])
    return worst


@njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
@no_type_check
def passage_gradient(weight, state, next_state, y, z, total):
    """Adds weight * sum_d y[state, d] z[next state, d] of each pair to ``total``."""
    for p in range(len(weight)):
        before, after = y[state[p]], z[next_state[p]]
        together = 0.0
        for i in range(len(before)):
            together += before[i] * after[i]
        total[p] += weight[p] * together

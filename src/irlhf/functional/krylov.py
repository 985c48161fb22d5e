"""BiCGSTAB for (I - K) x = b, compiled, where K holds ``flow`` >= 0 in the compressed rows of `Transitions.pattern`.

None is type-checked at run time: a checker in between would keep the functions from being compiled.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

RELAXED = 0.5  # of 0 to .9, the fewest iterations at discounts .95 to .99999


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def remain(row_start, column, flow, x, transposed, out):
    """``out`` = x - K x, or x - K' x, where K holds ``flow``."""
    if transposed:
        out[:] = x
        for s in range(len(x)):
            for k in range(row_start[s], row_start[s + 1]):
                out[column[k]] -= flow[k] * x[s]
    else:
        for s in range(len(x)):
            total = 0.0
            for k in range(row_start[s], row_start[s + 1]):
                total += flow[k] * x[column[k]]
            out[s] = x[s] - total


# In the loops below every state waits for the one before it. What goes from a state to the next one stays in a register
# (``near``), because a number that was just stored cannot be loaded at once: almost twice as fast on grids and chains.


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def _from_last(row_start, column, flow, diagonal, transposed, x):
    """x = (I - U)^-1 x, or (I - L')^-1 x: from the last state to the first."""
    near = 0.0
    if transposed:
        for s in range(len(x) - 1, -1, -1):
            here = x[s] + near
            x[s] = here
            first, last = row_start[s], diagonal[s]
            near = 0.0
            if last > first and column[last - 1] + 1 == s:
                last -= 1
                near = flow[last] * here
            for k in range(first, last):
                x[column[k]] += flow[k] * here
    else:
        for s in range(len(x) - 1, -1, -1):
            total = x[s]
            first, last = diagonal[s] + 1, row_start[s + 1]
            weight = 0.0
            if first < last and column[first] == s + 1:
                weight = flow[first]
                first += 1
            for k in range(first, last):
                total += flow[k] * x[column[k]]
            near = total + weight * near
            x[s] = near


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def _from_first(row_start, column, flow, diagonal, transposed, x):
    """x = (I - L)^-1 x, or (I - U')^-1 x: from the first state to the last."""
    near = 0.0
    if transposed:
        for s in range(len(x)):
            here = x[s] + near
            x[s] = here
            first, last = diagonal[s] + 1, row_start[s + 1]
            near = 0.0
            if first < last and column[first] == s + 1:
                near = flow[first] * here
                first += 1
            for k in range(first, last):
                x[column[k]] += flow[k] * here
    else:
        for s in range(len(x)):
            total = x[s]
            first, last = row_start[s], diagonal[s]
            weight = 0.0
            if last > first and column[last - 1] + 1 == s:
                last -= 1
                weight = flow[last]
            for k in range(first, last):
                total += flow[k] * x[column[k]]
            near = total + weight * near
            x[s] = near


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def _between(row_start, column, flow, diagonal, excess, transposed, z, y, out):
    """``out`` = (I - L)^-1 (E - L - U) (I - U)^-1 z, at the price of one product with E - L - U; excess = E - 2 I.

    With y = (I - U)^-1 z this is y + (I - L)^-1 (z + (E - 2 I) y) (Eisenstat 1981).
    """
    y[:] = z
    _from_last(row_start, column, flow, diagonal, transposed, y)
    for s in range(len(z)):
        out[s] = z[s] + excess[s] * y[s]
    _from_first(row_start, column, flow, diagonal, transposed, out)
    for s in range(len(z)):
        out[s] += y[s]


@njit(cache=True, fastmath={"contract"}, error_model="numpy")
@no_type_check
def split(row_start, column, flow, diagonal):
    """(inverse, scaled, excess): I - K = D (E - L - U), with D^-1, K / D (of which L and U are the triangles), E - 2 I.

    D holds the pivots of an incomplete factorization without fill-in: (I - L) and (I - U), with D between them, agree
    with I - K on the diagonal, but for `RELAXED` of what is left out, which is taken off the diagonal of its row
    (Gustafsson 1978). For an M-matrix the pivots are at least the row sums of the upper triangle: not negative.
    """
    n = len(diagonal)
    inverse, excess, scaled, ahead = np.empty(n), np.empty(n), np.empty(len(flow)), np.zeros(n)
    for s in range(n):
        own = 1.0 - flow[diagonal[s]]
        pivot = own
        for k in range(row_start[s], diagonal[s]):
            t = column[k]
            first, last = diagonal[t] + 1, row_start[t + 1]
            while first < last:  # where in row t is column s?
                middle = (first + last) // 2
                if column[middle] < s:
                    first = middle + 1
                else:
                    last = middle
            back = flow[first] if first < row_start[t + 1] and column[first] == s else 0.0
            pivot -= flow[k] * inverse[t] * (back + RELAXED * (ahead[t] - back))
        for k in range(diagonal[s] + 1, row_start[s + 1]):
            ahead[s] += flow[k]
        inverse[s] = 1.0 / pivot
        excess[s] = own * inverse[s] - 2.0
        for k in range(row_start[s], row_start[s + 1]):
            scaled[k] = flow[k] * inverse[s]
    return inverse, scaled, excess


@njit(cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
@no_type_check
def bicgstab(row_start, column, flow, diagonal, b, reduction, patience, transposed, x):
    """BiCGSTAB (van der Vorst 1992) for (I - K) x = b or its transpose, preconditioned on both sides: see `split`.

    Solves (I - L)^-1 (E - L - U) (I - U)^-1 z = (I - L)^-1 D^-1 b, x = (I - U)^-1 z, until the residual of *this*
    system has shrunk by ``reduction``. Returns the number of iterations; the caller checks the residual of the original
    one. It may break down or diverge.
    """
    n = len(b)
    inverse, scaled, excess = split(row_start, column, flow, diagonal)
    x[:] = 0.0  # z, until the end
    r, p, v, t, y = np.empty(n), np.zeros(n), np.zeros(n), np.empty(n), np.empty(n)
    for s in range(n):
        r[s] = b[s] if transposed else b[s] * inverse[s]
    _from_first(row_start, column, scaled, diagonal, transposed, r)
    shadow = r.copy()
    start = 0.0
    for i in range(n):
        start += r[i] * r[i]
    square, rho, alpha, omega = start, 1.0, 1.0, 1.0
    iteration = 0
    while iteration < patience and square > reduction * reduction * start and square < 1e8 * start:
        iteration += 1
        new_rho = 0.0
        for i in range(n):
            new_rho += shadow[i] * r[i]
        beta = new_rho / rho * (alpha / omega)
        rho = new_rho
        for i in range(n):
            p[i] = r[i] + beta * (p[i] - omega * v[i])
        _between(row_start, column, scaled, diagonal, excess, transposed, p, y, v)
        along = 0.0
        for i in range(n):
            along += shadow[i] * v[i]
        alpha = rho / along
        for i in range(n):
            r[i] -= alpha * v[i]
        _between(row_start, column, scaled, diagonal, excess, transposed, r, y, t)
        ts, tt = 0.0, 0.0
        for i in range(n):
            ts += t[i] * r[i]
            tt += t[i] * t[i]
        omega = ts / tt if tt > 0.0 else 0.0  # nothing is left
        square = 0.0
        for i in range(n):
            x[i] += alpha * p[i] + omega * r[i]
            r[i] -= omega * t[i]
            square += r[i] * r[i]
    _from_last(row_start, column, scaled, diagonal, transposed, x)
    if transposed:
        for s in range(n):
            x[s] *= inverse[s]
    return iteration

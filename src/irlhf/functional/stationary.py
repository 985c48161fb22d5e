"""Soft values of stationary problems by Newton's method (soft policy iteration), and the visits of a policy.

V(s) = log sum_a exp(u(s, a) + discount * sum_s' p(s' | s, a) V(s'))                                              (1)

Ziebart, Bagnell & Dey 2010 (equation 9.1 of Ziebart's thesis), Rust 1987 (equation 4.14, without Euler's constant).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from irlhf.functional import backups, kernels
from irlhf.functional.differentiable import Array, LinearMap, apply, apply_transposed, fixed_point, solve
from irlhf.functional.linear import EPS, DivergesError, Method, PolicyMatrix, choose_method
from irlhf.functional.transitions import Transitions

NEWTON_STEPS = 200
LONGEST = 1e9  # expected steps of an undiscounted trajectory: rounding, times this, is the error of the values
STEPS_ALONE, FAR, SWEEPS = 40, 0.5, 2  # sweeps after so many steps, while the Bellman residual is so many nats
LOOSEST, TIGHTEST = 0.05, 1e-3  # relative residuals of the linear solves far from the fixed point
FLOOR = 16 * EPS  # a Bellman residual of this many units of the largest number is rounding
WORST = 1e-10  # a residual above this, relative to the largest number, is never returned


def soft_values(
    utility: Float[Tensor, "... pairs"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
    warm_start: Float[Tensor, "... states"] | None = None,
    tolerance: float = 1e-10,
    _method: Method | None = None,
) -> Float[Tensor, "... states"]:
    """The fixed point of equation (1), with V = 0 at terminal and at absorbing states.

    Args:
        utility: r / T + log mu of each pair, in nats; -inf where the action is not allowed.
        transitions: the world.
        discount: in [0, 1]. At 1, pairs that may lead to where no end can be reached are excluded.
        absorbing: where trajectories end besides the terminal states; leading axes are contexts, as in ``utility``.
        warm_start: values of a near problem: changes the time, not the result.
        tolerance: bounds the error of V by tolerance * max(1, |V|) (Bellman residual / (1 - discount)), as far as
            rounding allows.

    Returns:
        V in nats; -inf where no trajectory is allowed. Differentiable to any order, in both modes; solved in float64
        and returned in the dtype of ``utility``.

    Raises:
        DivergesError: discount is 1 and the sum over trajectories is infinite.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must lie in [0, 1]; it is {discount}")
    batch = utility.shape[:-1]
    for other in (absorbing, warm_start):
        if other is not None:
            batch = np.broadcast_shapes(batch, other.shape[:-1])
    method: Method = _method or choose_method(transitions.pattern, discount)

    def problem(u: Array, _: Array | None) -> tuple[Array, PolicyChain]:
        contexts, n_states = u.shape[:-1], transitions.n_states
        ends, start = (
            None if x is None else np.broadcast_to(x.numpy(force=True), (*contexts, n_states)).reshape(-1, n_states)
            for x in (absorbing, warm_start)
        )
        found = [
            solve_one(row, transitions, float(discount), ends if ends is None else ends[i],
                      start if start is None else start[i], tolerance, method)
            for i, row in enumerate(u.reshape(-1, u.shape[-1]))
        ]  # fmt: skip
        values, policies, matrices = (list(part) for part in zip(*found, strict=True))
        policy = np.stack(policies).reshape(u.shape)
        return np.stack(values).reshape(*contexts, n_states), PolicyChain(
            transitions, float(discount), policy, matrices
        )

    return fixed_point(utility.double().expand(*batch, transitions.n_pairs), problem).to(utility.dtype)


def soft_policy(
    utility: Float[Tensor, "... pairs"],
    values: Float[Tensor, "... states"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... pairs"]:
    """log pi(a | s) = u(s, a) + discount * E[V(s')] - V(s), in nats; -inf where not allowed or already absorbed.

    Differentiable in both arguments (Ziebart 2010, equation 6.2). ``values`` must be those of `soft_values`: what they
    leave over is taken for rounding, and normalized away.
    """
    finite = torch.isfinite(values)
    ahead, at_state = state_maps(transitions, discount)
    safe = torch.where(finite, values, 0.0).double()
    lost = (~finite).double().detach()
    allowed = (utility > -torch.inf) & (apply(at_state, lost) == 0)
    if discount > 0:
        allowed &= apply(ahead, lost) == 0
    if absorbing is not None:
        allowed &= apply(at_state, absorbing.double()) == 0
    advantage = torch.where(allowed, utility, 0.0).double() + apply(ahead, safe) - apply(at_state, safe)
    return normalize(torch.where(allowed, advantage, -torch.inf), at_state).to(utility.dtype)


def normalize(advantage: Tensor, at_state: LinearMap) -> Tensor:
    """Removes what rounding of the values left over, which visits at discount 0.9999 would multiply by 10,000."""
    total = apply_transposed(at_state, advantage.exp())
    return advantage - apply(at_state, torch.where(total > 0, total, 1.0).log())


def occupancy(
    log_policy: Float[Tensor, "... pairs"],
    initial: Float[Tensor, "... states"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... pairs"]:
    """Expected (discounted) number of visits of each pair, sum_t discount^t P(s_t = s, a_t = a).

    The flow equations D(s') = initial(s') + discount * sum_{s, a} D(s) pi(a | s) p(s' | s, a), times pi. Nothing is
    counted in terminal or absorbing states. Differentiable in both arguments.

    Raises:
        DivergesError: discount is 1 and the policy does not end.
    """
    n_pairs = transitions.n_pairs
    batch = np.broadcast_shapes(log_policy.shape[:-1], initial.shape[:-1])
    if absorbing is not None:
        batch = np.broadcast_shapes(batch, absorbing.shape[:-1])
    policy = log_policy.double().exp()
    _, at_state = state_maps(transitions, discount)
    if absorbing is not None:
        policy = torch.where(apply(at_state, absorbing.double()) > 0, 0.0, policy)
    policy = policy.expand(*batch, n_pairs)
    chain = PolicyChain(transitions, float(discount), policy.detach().numpy())
    visits = solve(policy, initial.double().expand(*batch, transitions.n_states), chain, transposed=True)
    return (policy * apply(at_state, visits)).to(log_policy.dtype)


def state_maps(transitions: Transitions, discount: float) -> tuple[LinearMap, LinearMap]:
    """(ahead, at_state): [..., states] -> [..., pairs], discount * E[x(s')] and x(s)."""
    matrix, state = transitions.matrix, transitions.state
    with_pairs = np.flatnonzero(~transitions.terminal)
    first = transitions.first_pair[with_pairs]

    def times(operator, x: Array) -> Array:
        if x.ndim == 1:
            return discount * (operator @ x)
        flat = operator @ x.reshape(-1, x.shape[-1]).T
        return np.ascontiguousarray(discount * flat.T).reshape(*x.shape[:-1], -1)

    def by_state(y: Array) -> Array:
        out = np.zeros((*y.shape[:-1], transitions.n_states))
        if len(first):
            out[..., with_pairs] = np.add.reduceat(y, first, axis=-1)
        return out

    ahead = LinearMap(lambda x: times(matrix, x), lambda y: times(matrix.T, y))
    return ahead, LinearMap(lambda x: np.take(x, state, axis=-1), by_state)


def advantage_map(
    transitions: Transitions,
    discount: float,
    pair: NDArray[np.int64],
    here: NDArray[np.int64],
    step: int,
    size: int,
) -> LinearMap:
    """[..., size] -> [..., steps]: discount * E[x(here + step + s')] - x(here + s) of each step's pair (s, a).

    ``size`` values hold those of several contexts and times one after another: ``here`` says where those begin that a
    step looks at, ``step`` how much further those of the time after are.
    """
    t = transitions
    table = pair, here, step, discount, t.first_outcome, t.next_state, t.probability, t.state

    def over_leading_axes(kernel, x: Array, width: int) -> Array:
        rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
        out = np.zeros((len(rows), width))
        for row, total in zip(rows, out, strict=True):
            kernel(*table, row, total)
        return out.reshape(*x.shape[:-1], width)

    return LinearMap(
        lambda x: over_leading_axes(kernels.advantage_of, x, len(pair)),
        lambda g: over_leading_axes(kernels.advantage_of_transposed, g, size),
    )


class PolicyChain:
    """The chain of a policy [*batch, pairs] (rows that sum to 1, or to 0 where trajectories end)."""

    def __init__(
        self, transitions: Transitions, discount: float, policy: Array, matrices: list[PolicyMatrix] | None = None
    ):
        self.ahead, self.at_state = state_maps(transitions, discount)
        self._policy = policy
        rows = policy.reshape(-1, transitions.n_pairs)
        self.matrices = matrices or [policy_matrix(transitions, discount, row) for row in rows]

    def policy(self) -> Array:
        return self._policy

    def solve(self, b: Array, transposed: bool) -> Array:
        """b [*more, *batch, states], one matrix for each element of the batch."""
        right = b.reshape(-1, len(self.matrices), b.shape[-1])
        x = np.empty(right.shape)
        for i, matrix in enumerate(self.matrices):
            for k in range(len(right)):
                x[k, i] = matrix.solve(np.ascontiguousarray(right[k, i]), transposed=transposed)
        return x.reshape(b.shape)

    def gradient(self, visits: Array, shape: tuple[int, ...]) -> Array:
        return self._policy * self.at_state.forward(visits)


def policy_matrix(
    transitions: Transitions, discount: float, policy: Array, method: Method | None = None
) -> PolicyMatrix:
    """A = I - discount * P_policy of one policy [pairs]."""
    pattern = transitions.pattern
    flow = np.empty(len(pattern.column))
    kernels.mix_outcomes(np.ascontiguousarray(policy), discount, *pattern, flow)
    return PolicyMatrix(pattern, flow, method or choose_method(pattern, discount))


def solve_one(
    utility: Array,
    transitions: Transitions,
    discount: float,
    absorbing: NDArray[np.bool_] | None,
    start: Array | None,
    tolerance: float,
    method: Method,
) -> tuple[Array, Array, PolicyMatrix]:
    """(values, policy, matrix of that policy) of one context."""
    if np.isnan(utility).any() or np.isposinf(utility).any():
        raise ValueError("utilities must be finite, or -inf where an action is not allowed")
    exits = transitions.terminal if absorbing is None else transitions.terminal | absorbing
    utility = np.ascontiguousarray(utility)
    alive, allowed, exit_pair = possible(utility, exits, transitions, discount)
    fixed = exits | ~alive
    utility = np.where(allowed, utility, -np.inf)
    first = _first_values(utility, fixed, exit_pair, transitions, discount, start, method)
    values, policy, matrix = _newton(first, utility, fixed, transitions, discount, tolerance, method)
    values[~alive] = -np.inf
    return values, policy, matrix


def possible(utility, exits, transitions: Transitions, discount: float, *, must_exit: bool = False):
    """(alive [states], allowed [pairs], exit_pair [states]): see `kernels.admissible`; pairs of exits are out.

    Undiscounted, or with ``must_exit``, a state from which no exit can be reached is dead.
    """
    if not must_exit and discount < 1 and np.all(utility > -np.inf):
        alive, allowed, exit_pair = np.ones(len(exits), np.bool_), np.ones(len(utility), np.bool_), None
    else:
        none = np.zeros(len(exits) + 1, np.int64), np.zeros(0, np.int64)
        first_arrival, arrival = transitions.arrivals if must_exit or discount > 0 else none
        alive, allowed, exit_pair = kernels.admissible(
            utility, exits, must_exit or discount == 1, transitions.first_pair, transitions.first_outcome,
            transitions.next_state, first_arrival, arrival,
        )  # fmt: skip
    return alive, allowed & (alive & ~exits)[transitions.state], exit_pair


def _first_values(utility, fixed, exit_pair, transitions, discount, start, method) -> Array:
    if start is not None:
        return np.where(fixed | ~np.isfinite(start), 0.0, start).astype(np.float64)
    if discount < 1:
        return np.zeros(len(fixed))
    # undiscounted: the value of a policy that surely ends, from which Newton's method rises monotonically
    policy = np.zeros(len(utility))
    free = np.flatnonzero(~fixed)
    policy[exit_pair[free]] = 1.0
    gain = np.zeros(len(fixed))
    gain[free] = utility[exit_pair[free]]
    return policy_matrix(transitions, discount, policy, method).solve(gain)


def _newton(values, utility, fixed, transitions: Transitions, discount, tolerance, method):
    """Newton's method on V - TV = 0, which is soft policy iteration: each step solves A(pi_V) dV = TV - V.

    Solved exactly, the steps after the first rise to the fixed point from any start. Solved loosely they are cheaper,
    and near the fixed point as good while the residual left over is no more than the square of what it was. What the
    loose solves of far steps leave over is multiplied by up to 1 / (1 - discount): they get tighter with the discount,
    and step by step, until policy iteration is exact.

    Where a policy has to change along a path, each step may change it in one state. Backups in place, downstream first,
    carry the news all the way; they are slower on the machine, and so wait until they are needed.
    """
    pattern = transitions.pattern
    new, policy, flow = np.empty_like(values), np.zeros_like(utility), np.empty(len(pattern.column))
    matrix = PolicyMatrix(pattern, flow, method)
    loosest = min(LOOSEST, max(1 - discount, TIGHTEST))
    before, step = math.inf, math.inf
    for count in range(NEWTON_STEPS):
        if count >= STEPS_ALONE and before > FAR:
            order = np.argsort(-values)
            for _ in range(SWEEPS):
                backups.sweep(values, order, utility, fixed, discount, *pattern)
        residual, scale = backups.back_up(values, utility, fixed, discount, *pattern, 0, len(values), new, policy, flow)
        if not math.isfinite(residual):
            raise DivergesError("the soft values overflow: the sum over trajectories is infinite")
        goal = max(tolerance * (1 - discount), FLOOR) * scale
        stalled = residual > 0.5 * before and residual <= WORST * 1e-1 * scale
        if residual <= goal or stalled:
            if discount == 1 and not _ends(matrix, fixed):
                raise DivergesError("the sum over trajectories is infinite, or too near to it to be computed")
            if method == "dense" or not step <= 1e-2:
                matrix.factor = None  # that of an earlier policy: too far to start from, or not worth it
            return values, policy, matrix
        quadratic = min(1.0, residual / before) ** 2 if before < math.inf else 1.0
        change = matrix.solve(new - values, rtol=max(min(loosest, quadratic), 0.1 * goal / residual))
        values = values + change
        before, step, loosest = residual, float(np.abs(change).max()), 0.9 * loosest
    raise DivergesError(f"no fixed point within {NEWTON_STEPS} Newton steps: the Bellman residual is {before:.3g} nats")


def _ends(matrix: PolicyMatrix, fixed: NDArray[np.bool_]) -> bool:
    """Whether the expected number of steps, A^-1 1, is at least 1 from every state, and not too many."""
    steps = matrix.solve(np.where(fixed, 0.0, 1.0), rtol=1e-3)[~fixed]
    return bool(np.all((steps > 0.9) & (steps < LONGEST)))

"""Soft values, policies and visits of problems with a fixed number of steps: one recursion, no fixed point.

V_h(s) = log sum_a exp(u_h(s, a) + discount * sum_s' p(s' | s, a) V_{h+1}(s')),     h = horizon - 1 .. 0          (1)

Ziebart, Bagnell & Dey 2010 (algorithm 1 of Ziebart, Maas, Bagnell & Dey 2008 for the deterministic case).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from irlhf.functional import kernels
from irlhf.functional.differentiable import Array, LinearMap, apply, fixed_point, solve
from irlhf.functional.stationary import normalize, state_maps
from irlhf.functional.transitions import Transitions


def finite_horizon_values(
    utility: Float[Tensor, "... pairs"],
    transitions: Transitions,
    discount: float,
    horizon: int,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
    final: Float[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... steps states"]:
    """The values of equation (1), with V = 0 at terminal and absorbing states at every step.

    Args:
        utility: in nats, -inf where not allowed: [pairs], the same at every step; or [*contexts, horizon, pairs];
            or [*contexts, 1, pairs], the same at every step of a context.
        transitions: the world.
        discount: in [0, 1].
        horizon: the number of steps, at least 0.
        absorbing: where trajectories end besides the terminal states.
        final: V at the horizon, 0 unless given; -inf where a trajectory must not end.

    Returns:
        [*contexts, horizon + 1, states] in nats, -inf where no trajectory is allowed. Differentiable to any order, in
        both modes, in utility and final; float64 inside, returned in the dtype of ``utility``.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must lie in [0, 1]; it is {discount}")
    timed = utility.double() if utility.ndim > 1 else utility.double()[None]
    if timed.shape[-2] not in (1, horizon):
        raise ValueError(f"utility has {timed.shape[-2]} steps; give 1 or horizon = {horizon} of them")
    exits = torch.from_numpy(transitions.terminal.copy())
    exits = exits if absorbing is None else exits | absorbing
    last = torch.zeros(exits.shape, dtype=torch.float64) if final is None else torch.where(exits, 0.0, final.double())
    contexts = np.broadcast_shapes(timed.shape[:-2], exits.shape[:-1], last.shape[:-1])

    def problem(u: Array, end: Array | None) -> tuple[Array, TimedChain]:
        shape, n_states = u.shape[:-2], transitions.n_states
        rows = np.ascontiguousarray(u).reshape(-1, *u.shape[-2:])
        fixed = np.broadcast_to(exits.numpy(force=True), (*shape, n_states)).reshape(-1, n_states)
        values = np.empty((len(rows), horizon + 1, n_states))
        values[:, -1] = 0.0 if end is None else end.reshape(-1, n_states)
        policy = np.empty((len(rows), horizon, transitions.n_pairs))
        fixed = np.ascontiguousarray(fixed)
        kernels.back_up_in_time(rows, fixed, float(discount), *transitions.pattern, values, policy)
        chain = TimedChain(transitions, float(discount), policy.reshape(*shape, *policy.shape[1:]))
        return values.reshape(*shape, *values.shape[1:]), chain

    wide = timed.expand(*contexts, *timed.shape[-2:])
    return fixed_point(wide, problem, last.expand(*contexts, transitions.n_states)).to(utility.dtype)


def finite_horizon_policy(
    utility: Float[Tensor, "... pairs"],
    values: Float[Tensor, "... steps states"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... horizon pairs"]:
    """log pi_h(a | s) = u_h + discount * E[V_{h+1}(s')] - V_h(s): [*contexts, horizon, pairs], in nats.

    ``utility`` as in `finite_horizon_values`; -inf where not allowed or already absorbed. Differentiable.
    """
    timed = utility.double() if utility.ndim > 1 else utility.double()[None]
    ahead, at_state = _time_maps(transitions, discount)
    finite = torch.isfinite(values)
    safe = torch.where(finite, values, 0.0).double()
    lost = (~finite).double().detach()
    allowed = (timed > -torch.inf) & (apply(at_state, lost) == 0)
    if discount > 0:
        allowed = allowed & (apply(ahead, lost) == 0)
    if absorbing is not None:
        allowed = allowed & ~absorbing[..., None, torch.from_numpy(transitions.state)]
    advantage = torch.where(allowed, timed, 0.0) + apply(ahead, safe) - apply(at_state, safe)
    return normalize(torch.where(allowed, advantage, -torch.inf), at_state).to(utility.dtype)


def finite_horizon_occupancy(
    log_policy: Float[Tensor, "... horizon pairs"],
    initial: Float[Tensor, "... states"],
    transitions: Transitions,
    discount: float,
    *,
    absorbing: Bool[Tensor, "... states"] | None = None,
) -> Float[Tensor, "... horizon pairs"]:
    """discount^h P(s_h = s, a_h = a) of each pair and step, from ``initial`` at step 0. Differentiable in both."""
    policy = log_policy.double().exp()
    if absorbing is not None:
        policy = torch.where(absorbing[..., None, torch.from_numpy(transitions.state)], 0.0, policy)
    contexts = np.broadcast_shapes(policy.shape[:-2], initial.shape[:-1])
    policy = policy.expand(*contexts, *policy.shape[-2:])
    chain = TimedChain(transitions, float(discount), policy.detach().numpy())
    later = torch.zeros(*contexts, policy.shape[-2], transitions.n_states, dtype=torch.float64)
    start = torch.cat([initial.double().expand(*contexts, -1)[..., None, :], later], -2)
    visits = solve(policy, start, chain, transposed=True)
    return (policy * apply(chain.at_state, visits)).to(log_policy.dtype)


def _time_maps(transitions: Transitions, discount: float) -> tuple[LinearMap, LinearMap]:
    """(ahead, at_state): [..., horizon + 1, states] -> [..., horizon, pairs]; ahead looks one step later."""
    ahead, at_state = state_maps(transitions, discount)

    def padded(x: Array, step: int) -> Array:
        out = np.zeros((*x.shape[:-2], x.shape[-2] + 1, x.shape[-1]))
        out[..., step : step + x.shape[-2], :] = x
        return out

    return (
        LinearMap(lambda x: ahead.forward(x[..., 1:, :]), lambda y: padded(ahead.backward(y), 1)),
        LinearMap(lambda x: at_state.forward(x[..., :-1, :]), lambda y: padded(at_state.backward(y), 0)),
    )


class TimedChain:
    """The chain of a given time-varying policy [*contexts, horizon, pairs]; values are [*, horizon + 1, states]."""

    def __init__(self, transitions: Transitions, discount: float, policy: Array):
        self.transitions, self.discount, self._policy = transitions, discount, policy
        self.ahead, self.at_state = _time_maps(transitions, discount)

    def policy(self) -> Array:
        return self._policy

    def solve(self, b: Array, transposed: bool) -> Array:
        horizon, n_pairs = self._policy.shape[-2:]
        policy = np.ascontiguousarray(self._policy).reshape(-1, horizon, n_pairs)
        right = np.ascontiguousarray(b).reshape(-1, len(policy), *b.shape[-2:])
        x = np.empty(right.shape)
        for k in range(len(right)):
            kernels.carry_in_time(policy, right[k], self.discount, *self.transitions.pattern, transposed, x[k])
        return x.reshape(b.shape)

    def gradient(self, visits: Array, shape: tuple[int, ...]) -> Array:
        horizon, n_pairs = self._policy.shape[-2:]
        policy, steps = self._policy.reshape(-1, horizon, n_pairs), shape[-2]
        total = np.zeros((len(policy), steps, n_pairs))
        kernels.visits_in_time(policy, visits.reshape(len(policy), horizon + 1, -1), self.transitions.state, total)
        return total.reshape(shape)

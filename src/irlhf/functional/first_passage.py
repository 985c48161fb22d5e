"""Undiscounted soft values of many destinations on one network, from one factorization.

With M_ss' the sum of exp(log_weight) over the outcomes from s to s', the partition functions of the paths that end at
their first visit of d solve z = M z with z_d = 1 (Fosgerau, Frejinger & Karlstrom 2013, equation 11, one linear system
a destination). With G = (I - M)^-1, one factorization serves all of them:

    z_d(s) = G(s, d) / G(d, d)                      (first-passage identity; Kemeny & Snell 1960, theorem 3.5.7)

which holds wherever I - M is not singular, also where the sums over paths *through* d diverge.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from irlhf.functional import kernels
from irlhf.functional.differentiable import Array, fixed_point
from irlhf.functional.linear import DivergesError, Factor, Method, PolicyMatrix, choose_method, factorize
from irlhf.functional.stationary import policy_matrix, solve_one, state_maps
from irlhf.functional.transitions import Transitions

SMALLEST = 1e-280  # a z below this may have lost digits to underflow
RESIDUAL = 1e-11  # Bellman residual, relative to max(1, |V|), above which a destination is solved again in log space
BLOCK = 32  # right-hand sides at a time


def first_passage_values(
    log_weight: Float[Tensor, "outcomes"],
    transitions: Transitions,
    destinations: Int[Tensor, "destinations"],
) -> Float[Tensor, "destinations states"]:
    """V_d(s) = log of the sum over all paths from s to the first visit of d of exp(sum of log_weight).

    Args:
        log_weight: in nats, of each outcome (of each pair, if the world is deterministic): u in a deterministic world;
            u + log p for the anticipative kind of a stochastic one (Ziebart et al. 2008). -inf: not allowed.
        transitions: the world. Its terminal states other than d lead nowhere.
        destinations: states.

    Returns:
        [destinations, states] in nats; -inf where d cannot be reached. Differentiable to any order, in both modes;
        float64 inside, returned in the dtype of ``log_weight``. Where I - M is (nearly) singular or z leaves the
        range of floating point, the destination is solved in log space instead: slower, not less exact.

    Raises:
        DivergesError: the sum over the paths to a destination is infinite.
    """
    world = transitions.by_outcome()
    if log_weight.shape[-1] != world.n_pairs:
        raise ValueError(f"log_weight needs one entry for each of {world.n_pairs} outcomes; it has {log_weight.shape}")

    def problem(u: Array, _: Array | None) -> tuple[Array, _PassageChain]:
        goals = destinations.numpy(force=True).astype(np.int64)
        networks = u.reshape(-1, world.n_pairs)
        values = np.empty((len(networks), len(goals), world.n_states))
        served = [solve_network(world, row, goals, v) for row, v in zip(networks, values, strict=True)]
        values = values.reshape(*u.shape[:-2], len(goals), world.n_states)
        return values, _PassageChain(world, goals, u, values, served)

    return fixed_point(log_weight.double()[..., None, :], problem).to(log_weight.dtype)


class _Network:
    """I - D^-1 M D, factorized, for D = exp(potential), and the z of the destinations that it serves."""

    def __init__(self, world: Transitions, log_weight: Array, potential: Array):
        pattern = world.pattern
        with np.errstate(over="ignore"):  # the next line says so
            weight = np.exp(log_weight + potential[world.next_state] - potential[world.state])
        if not np.all(np.isfinite(weight)):
            raise DivergesError("weights overflow")
        flow = np.empty(len(pattern.column))
        kernels.mix_outcomes(weight, 1.0, *pattern, flow)
        method: Method = "dense" if choose_method(pattern, 1.0) == "dense" else "sparse"
        self.world, self.weight, self.potential = world, weight, potential
        self.matrix = PolicyMatrix(pattern, flow, method)
        self.factor: Factor = factorize(self.matrix)

    def serve(self, destinations: NDArray[np.int64], log_weight: Array) -> NDArray[np.bool_]:
        """Solves for z [states, destinations], z_d(d) = 1, keeps those that are right and says which they are.

        Right is: a fixed point, entry by entry, and positive exactly where a path leads to d (a positive fixed point
        means that the sum over paths is finite). Entries too small to be trusted count as wrong.
        """
        z = np.empty((len(self.potential), len(destinations)))
        for start in range(0, len(destinations), BLOCK):
            block = destinations[start : start + BLOCK]
            column = np.arange(len(block))
            unit = np.zeros((len(self.potential), len(block)), order="F")
            unit[block, column] = 1.0
            green = self.factor.solve(unit, False)
            z[:, start : start + BLOCK] = green / green[block, column]
        lowest = z.min(0)
        good = np.isfinite(z.max(0)) & (lowest > -SMALLEST)
        first_arrival, arrival = self.world.arrivals
        for i in np.flatnonzero(good & (lowest < SMALLEST)):
            reach = kernels.can_reach(destinations[i], log_weight, first_arrival, arrival, self.world.state)
            z[~reach, i] = 0.0
            good[i] = not np.any(z[reach, i] < SMALLEST)
        z = z if good.all() else np.ascontiguousarray(z[:, good])
        pattern, kept = self.world.pattern, destinations[good]
        right = kernels.passage_residual(pattern.row_start, pattern.column, self.matrix.flow, z, kept) <= RESIDUAL
        good[good] = right
        self.z = z if right.all() else np.ascontiguousarray(z[:, right])
        self.destinations = destinations[good]
        return good

    def values(self) -> Array:
        """[destinations, states] V in nats."""
        with np.errstate(divide="ignore"):
            v = np.log(self.z.T)
        v += self.potential
        v -= self.potential[self.destinations][:, None]
        return v

    def solve(self, b: Array, transposed: bool) -> tuple[Array, NDArray[np.bool_]]:
        """x [destinations, states] with A x = b or A' x = b, A = I - P_d, and whether it is right.

        P_d = Z^-1 M_d Z, where M_d is M with row d removed. If (I - M') y = b / z - (sum b) e_d, then z y is A'^-1 b
        except at d, where everything arrives. And if (I - M) y = z b with b(d) = 0, then y / z + (b(d) - y(d)) is
        A^-1 b (both by A 1 = e_d). States that cannot reach d keep their b.
        """
        x = np.empty(b.shape)
        good = np.empty(len(b), np.bool_)
        for start in range(0, len(b), BLOCK):
            part = slice(start, start + BLOCK)
            d, z = self.destinations[part], self.z[:, part]
            column = np.arange(len(d))
            reach = z > 0
            safe = np.where(reach, z, 1.0)
            right = np.where(reach, b[part].T, 0.0)
            if transposed:
                arriving = right.sum(0)
                scaled = right / safe
                scaled[d, column] -= arriving
                y = self.factor.solve(scaled, True)
                y[d, column] = 0.0
                flow = np.stack([y[:, i] - self.matrix.times(y[:, i].copy(), True) for i in column], 1)
                x[part] = np.where(reach, z * y, b[part].T).T
                x[start + column, d] = arriving
                rest = np.where(reach, right + z * flow, 0.0) - np.where(reach, x[part].T, 0.0)
            else:
                last = right[d, column]
                right[d, column] = 0.0
                y = self.factor.solve(z * right, False) / safe
                y += last - y[d, column]
                x[part] = np.where(reach, y, b[part].T).T
                zy = np.where(reach, z * y, 0.0)
                flow = np.stack([zy[:, i] - self.matrix.times(zy[:, i].copy()) for i in column], 1) / safe
                rest = np.where(reach, right + flow - y, 0.0)
                rest[d, column] = 0.0
            size = np.maximum(np.abs(x[part]).max(1), np.abs(b[part]).max(1))
            good[part] = np.abs(rest).max(0) <= 1e-12 * size
        return x, good


Served = list[tuple[NDArray[np.int64], _Network]]


class _PassageChain:
    """The chain of the policies of all destinations, [*, destinations, pairs]."""

    def __init__(self, world: Transitions, destinations, utility: Array, values: Array, served: list[Served]):
        self.world, self.destinations, self.utility, self.v = world, destinations, utility, values
        self.solvers = served
        self.singles: dict[tuple[int, int], PolicyMatrix] = {}
        self.ahead, self.at_state = state_maps(world, 1.0)

    @cached_property
    def _policy(self) -> Array:
        log_policy = np.where(np.isfinite(self.v), self.v, np.inf)[..., self.world.state]  # no way: policy 0
        np.subtract(self.utility + self.v[..., self.world.next_state], log_policy, out=log_policy)
        log_policy[..., self.world.state == self.destinations[:, None]] = -np.inf
        return np.exp(log_policy, out=log_policy)

    def policy(self) -> Array:
        return self._policy

    def solve(self, b: Array, transposed: bool) -> Array:
        count, n_states = len(self.destinations), self.world.n_states
        right = b.reshape(-1, len(self.solvers), count, n_states)
        x = np.empty(right.shape)
        for k in range(len(right)):
            for i, solvers in enumerate(self.solvers):
                left = np.ones(count, np.bool_)
                for members, network in solvers:
                    x[k, i, members], good = network.solve(right[k, i, members], transposed)
                    left[members[good]] = False
                for j in np.flatnonzero(left):
                    x[k, i, j] = self._single(i, int(j)).solve(
                        np.ascontiguousarray(right[k, i, j]), transposed=transposed
                    )
        return x.reshape(b.shape)

    def _single(self, i: int, j: int) -> PolicyMatrix:
        """The matrix of one destination alone: where the shared factorization is not exact enough."""
        if (i, j) not in self.singles:
            policy = self._policy.reshape(len(self.solvers), len(self.destinations), -1)[i, j]
            self.singles[i, j] = policy_matrix(self.world, 1.0, policy)
        return self.singles[i, j]

    def gradient(self, visits: Array, shape: tuple[int, ...]) -> Array:
        world, count = self.world, len(self.destinations)
        visits = visits.reshape(len(self.solvers), count, -1)
        total = np.zeros((len(self.solvers), world.n_pairs))
        for i, solvers in enumerate(self.solvers):
            left = np.ones(count, np.bool_)
            for members, network in solvers:
                left[members] = False
                y = np.where(network.z > 0, visits[i, members].T, 0.0) / np.where(network.z > 0, network.z, 1.0)
                y[network.destinations, np.arange(len(members))] = 0.0
                kernels.passage_gradient(network.weight, world.state, world.next_state, y, network.z, total[i])
            for j in np.flatnonzero(left):
                policy = self._policy.reshape(len(self.solvers), count, -1)[i, j]
                total[i] += policy * visits[i, j, world.state]
        return total.reshape(shape)


def solve_network(world: Transitions, log_weight: Array, destinations: NDArray[np.int64], values: Array) -> Served:
    """Fills ``values``; returns [(which destinations, the network that serves them)].

    First without a potential. A destination that fails is solved in log space, and its values are the potential for
    those that are left: the z of destinations that are near each other stay near 1 in it.
    """
    log_weight = np.ascontiguousarray(log_weight)
    if np.isnan(log_weight).any() or np.isposinf(log_weight).any():
        raise ValueError("log weights must be finite, or -inf where an outcome is not allowed")
    served: Served = []
    pending = np.arange(len(destinations))
    potential = np.zeros(world.n_states)
    patience = 3
    while len(pending):
        if patience > 0:
            good = np.zeros(len(pending), np.bool_)
            try:
                network = _Network(world, log_weight, potential)
                good = network.serve(destinations[pending], log_weight)
            except DivergesError:
                pass  # I - M is singular; each destination alone may still be feasible
            else:
                values[pending[good]] = network.values()
                served.append((pending[good], network))
            patience -= not good.any()
            pending = pending[~good]
        if len(pending):
            j, pending = pending[0], pending[1:]
            values[j] = _in_log_space(world, log_weight, int(destinations[j]))
            finite = np.isfinite(values[j])
            potential = np.where(finite, values[j], values[j][finite].min())
    return served


def _in_log_space(world: Transitions, log_weight: Array, destination: int) -> Array:
    absorbing = np.zeros(world.n_states, np.bool_)
    absorbing[destination] = True
    elsewhere = world.terminal & ~absorbing
    open_ways = np.where(elsewhere[world.next_state], -np.inf, log_weight)
    method = choose_method(world.pattern, 1.0)
    values, _, _ = solve_one(open_ways, world, 1.0, absorbing, None, 1e-10, method)
    values[elsewhere] = -np.inf
    return values

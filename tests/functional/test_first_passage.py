from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from irlhf.functional.first_passage import first_passage_values
from irlhf.functional.linear import DivergesError
from tests.functional.worlds import chain, from_lists, random_world

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in forward mode


def two_way_line(n: int):
    """A line of states with a link to each neighbor; pairs in order of state, left before right."""
    links = [(s, t) for s in range(n) for t in (s - 1, s + 1) if 0 <= t < n]
    return from_lists(n, [(s, {t: 1.0}) for s, t in links])


def reference(world, log_weight, d):
    """(log z [states], spectral radius of the part that matters) from dense matrices and a power of the pattern."""
    m = np.zeros((world.n_states, world.n_states))
    np.add.at(m, (world.state[world.pair_of_outcome], world.next_state), np.exp(log_weight))
    m[d] = 0
    ways = np.linalg.matrix_power(np.eye(world.n_states) + (m > 0), world.n_states)[:, d] > 0
    inside = np.ix_(ways, ways)
    z = np.zeros(world.n_states)
    z[ways] = np.linalg.solve(np.eye(int(ways.sum())) - m[inside], (np.arange(world.n_states) == d)[ways].astype(float))
    radius = np.abs(np.linalg.eigvals(m[inside])).max()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(z), radius


def count_paths(world, log_weight, start, d, longest):
    """Every path of up to ``longest`` links from start to its first visit of d, one by one."""
    total, stack = -np.inf, [(start, 0.0, 0)]
    while stack:
        state, weight, length = stack.pop()
        if state == d:
            total = np.logaddexp(total, weight)
        elif length < longest:
            for p in range(world.first_pair[state], world.first_pair[state + 1]):
                stack.append((int(world.next_state[p]), weight + log_weight[p], length + 1))
    return total


def test_sum_over_all_paths_one_by_one():
    world = random_world(2, 5, 1, deterministic=True)
    u = np.random.default_rng(0).standard_normal(world.n_pairs) - 6
    values = first_passage_values(torch.tensor(u), world, torch.arange(5))
    for d in range(5):
        for s in range(5):
            expected = count_paths(world, u, s, d, longest=9)  # longer ones weigh less than e^-40
            np.testing.assert_allclose(values[d, s], expected, rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-4, 1), deterministic=st.booleans())
def test_finite_exactly_where_the_sum_converges(seed, shift, deterministic):
    world = random_world(seed, 6, 1, deterministic)
    u = np.random.default_rng(seed).standard_normal(world.n_outcomes) + shift
    for d in range(6):
        expected, radius = reference(world, u, d)
        if abs(radius - 1) < 0.01:
            continue
        if radius < 1:
            values = first_passage_values(torch.tensor(u), world, torch.tensor([d]))[0]
            np.testing.assert_allclose(values, expected, rtol=1e-8, atol=1e-9)
        else:
            with pytest.raises(DivergesError):
                first_passage_values(torch.tensor(u), world, torch.tensor([d]))


@pytest.mark.parametrize("cost", [1.0, 100.0, 1e4])
def test_long_chain_does_not_underflow(cost):
    world = chain(300)
    u = torch.full((world.n_pairs,), -cost, dtype=torch.float64, requires_grad=True)
    values = first_passage_values(u, world, torch.tensor([299, 150]))
    steps = torch.arange(300.0, dtype=torch.float64)
    torch.testing.assert_close(values[0], cost * (steps - 299), rtol=1e-12, atol=0)
    torch.testing.assert_close(values[1, :151], cost * (steps[:151] - 150), rtol=1e-12, atol=0)
    assert torch.isneginf(values[1, 151:]).all()
    (gradient,) = torch.autograd.grad(values[1, 10], u)  # the only path: one visit of each link from 10 to 149
    expected = torch.zeros_like(u)
    expected[10:150] = 1
    torch.testing.assert_close(gradient, expected)


def test_far_destinations_share_potentials_and_agree_with_one_at_a_time():
    world = two_way_line(200)
    u = torch.tensor(np.random.default_rng(0).uniform(-15, -5, world.n_pairs), requires_grad=True)
    destinations = torch.tensor([0, 60, 120, 199])
    together = first_passage_values(u, world, destinations)
    weight = torch.rand(together.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((together * weight).sum(), u)
    singly = torch.zeros_like(gradient)
    for i, d in enumerate(destinations):
        alone = first_passage_values(u, world, d[None])[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-10, atol=1e-9)
        singly += torch.autograd.grad((alone * weight[i]).sum(), u)[0]
    torch.testing.assert_close(gradient, singly, rtol=1e-8, atol=1e-8)


def test_destinations_that_are_feasible_although_the_whole_network_is_not():
    # 0 <-> 1 with weights whose cycle gains: no sum over the network, but each first passage has one path only
    world = from_lists(2, [(0, {1: 1.0}), (1, {0: 1.0})])
    u = torch.tensor([1.0, 2.0], dtype=torch.float64)
    values = first_passage_values(u, world, torch.tensor([0, 1]))
    torch.testing.assert_close(values, torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=torch.float64))


def test_infeasible_is_an_error():
    world = from_lists(2, [(0, {0: 1.0}), (0, {1: 1.0})])
    with pytest.raises(DivergesError):
        first_passage_values(torch.tensor([0.0, -1.0], dtype=torch.float64), world, torch.tensor([1]))
    with pytest.raises(DivergesError):
        first_passage_values(torch.tensor([0.3, -1.0], dtype=torch.float64), world, torch.tensor([1]))
    near = first_passage_values(torch.tensor([-1e-6, -1.0], dtype=torch.float64), world, torch.tensor([1]))
    np.testing.assert_allclose(near[0, 0], -1 - np.log(-np.expm1(-1e-6)), rtol=1e-9)


@pytest.mark.parametrize("deterministic", [True, False])
def test_derivatives_of_every_order_and_mode(deterministic):
    world = random_world(5, 4, 1, deterministic)
    u = torch.tensor(np.random.default_rng(1).standard_normal(world.n_outcomes) - 4, requires_grad=True)
    finite = torch.isfinite(first_passage_values(u, world, torch.arange(4)))
    assert not finite.all()  # unreachable ones are among them, and make no NaN

    def values(v):
        return torch.where(finite, first_passage_values(v, world, torch.arange(4)), 0.0)

    assert gradcheck(values, u, check_forward_ad=True, nondet_tol=1e-10)
    assert gradgradcheck(values, u, check_fwd_over_rev=True, nondet_tol=1e-10)
    first_order = torch.autograd.grad(values(u).sum(), u)[0]
    with_graph = torch.autograd.grad(values(u).sum(), u, create_graph=True)[0]
    torch.testing.assert_close(first_order, with_graph.detach(), rtol=1e-10, atol=1e-12)

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from irlhf.functional.linear import DivergesError
from irlhf.functional.stationary import occupancy, soft_policy, soft_values
from tests.functional.worlds import chain, from_lists, grid, random_world

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in forward mode
METHODS = ["dense", "sparse", "krylov"]


def brute_force(utility, world, discount, absorbing=None, sweeps=100_000):
    """Value iteration in numpy, one state at a time, until nothing changes."""
    ends = world.terminal if absorbing is None else world.terminal | absorbing
    values = np.zeros(world.n_states)
    for _ in range(sweeps):
        q = utility + discount * (world.matrix @ values)
        new = np.zeros(world.n_states)
        for s in np.flatnonzero(~ends):
            new[s] = np.logaddexp.reduce(q[world.first_pair[s] : world.first_pair[s + 1]])
        if np.abs(new - values).max() < 1e-13 * max(1, np.abs(new).max()):
            return new
        values = new
    raise AssertionError("value iteration has not converged: this problem cannot be a reference")


def draw(world, seed=0, shift=0.0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(world.n_pairs) + shift)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99])
def test_fixed_point_is_the_limit_of_value_iteration(method, discount):
    for seed in range(5):
        world = random_world(seed)
        utility = draw(world, seed)
        values = soft_values(utility, world, discount, _method=method)
        np.testing.assert_allclose(values, brute_force(utility.numpy(), world, discount), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.9999, 1.0])
def test_derivatives_of_every_order_and_mode(discount):
    world = random_world(3)
    utility = draw(world, 1, shift=-2.0).requires_grad_()

    def values(u):
        return soft_values(u, world, discount)[:4]

    assert gradcheck(values, utility, check_forward_ad=True, nondet_tol=1e-10)
    assert gradgradcheck(values, utility, check_fwd_over_rev=True, nondet_tol=1e-10)


def test_random_network_without_discount_agrees_with_the_inverse():
    world = random_world(7, deterministic=True)
    utility = draw(world, 2, shift=-3.0)
    weights = np.zeros((world.n_states, world.n_states))
    np.add.at(weights, (world.state, world.next_state), np.exp(utility.numpy()))
    z = np.linalg.solve(np.eye(world.n_states) - weights, world.terminal.astype(float))
    with np.errstate(divide="ignore"):
        expected = np.log(z)
    np.testing.assert_allclose(soft_values(utility, world, 1.0), expected, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("discount", "scale"), [(0.9999, 1.0), (0.99, 1e4), (0.9, 1e6)])
def test_methods_agree_where_it_is_hard(method, discount, scale):
    world = grid(6)
    utility = scale * draw(world, 3)
    values = soft_values(utility, world, discount, _method=method)
    q = utility + discount * torch.tensor(world.matrix @ values.numpy())
    largest = q.view(36, 5).logsumexp(1)
    bound = max(1e-10 * (1 - discount), 64 * 2.3e-16) * float(values.abs().max())
    torch.testing.assert_close(largest, values, rtol=0, atol=bound)
    other = soft_values(utility, world, discount, _method="dense")
    torch.testing.assert_close(values, other, rtol=0, atol=2 * bound / (1 - discount))


@pytest.mark.parametrize("method", METHODS)
def test_warm_start_changes_nothing(method):
    world = grid(8)
    utility = draw(world, 0)
    cold = soft_values(utility, world, 0.99, _method=method)
    for start in (cold, cold + 1000.0, -100 * torch.rand(64, dtype=torch.float64), torch.full((64,), -torch.inf)):
        warm = soft_values(utility, world, 0.99, warm_start=start.double(), _method=method)
        torch.testing.assert_close(warm, cold, rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("discount", [0.9, 0.999, 1.0])
def test_contexts_with_their_own_ends(method, discount):
    world = grid(5)
    utility = -1.7 - 2 * torch.rand(3, world.n_pairs, dtype=torch.float64)  # sums to less than 1 in every state
    absorbing = torch.zeros(3, 25, dtype=torch.bool)
    absorbing[[0, 1, 2], [24, 0, 12]] = True
    together = soft_values(utility, world, discount, absorbing=absorbing, _method=method)
    for i in range(3):
        expected = brute_force(utility[i].numpy(), world, discount, absorbing[i].numpy())
        np.testing.assert_allclose(together[i], expected, rtol=1e-7, atol=1e-8)


def test_what_is_not_allowed_or_leads_nowhere():
    # 0: go to 1 for sure, or gamble on 2; 1: end; 2: a trap with one action, onto itself; 3: every action forbidden
    world = from_lists(5, [(0, {1: 1.0}), (0, {1: 0.5, 2: 0.5}), (1, {4: 1.0}), (2, {2: 1.0}), (3, {4: 1.0})])
    utility = torch.tensor([-1.0, 5.0, -2.0, -0.1, -torch.inf], dtype=torch.float64, requires_grad=True)
    values = soft_values(utility, world, 1.0)
    torch.testing.assert_close(values.detach(), torch.tensor([-3.0, -2.0, -math.inf, -math.inf, 0.0]).double())
    (gradient,) = torch.autograd.grad(values[:2].sum(), utility, retain_graph=True)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0]).double())
    (gradient,) = torch.autograd.grad(
        torch.where(torch.isfinite(values), values, 0.0).sum(), utility, retain_graph=True
    )
    assert torch.isfinite(gradient).all()
    policy = soft_policy(utility, values, world, 1.0)
    torch.testing.assert_close(policy.detach(), torch.tensor([0.0, -math.inf, 0.0, -math.inf, -math.inf]).double())

    discounted = soft_values(utility, world, 0.5)  # the trap is a place like any other, state 3 is not
    assert discounted[2].item() == pytest.approx(-0.2)
    assert torch.isfinite(discounted[:3]).all() and torch.isneginf(discounted[3])
    dead = from_lists(3, [(0, {1: 0.5, 2: 0.5}), (1, {2: 1.0})])  # 1 is forbidden to leave: so is the way into it
    values = soft_values(torch.tensor([0.0, -torch.inf]).double(), dead, 0.5)
    assert torch.isneginf(values[:2]).all()


def test_undiscounted_divergence_is_an_error():
    world = from_lists(2, [(0, {0: 1.0}), (0, {1: 1.0})])
    for stay in (0.0, 1e-9, 0.5, 100.0, 1e5):
        with pytest.raises(DivergesError):
            soft_values(torch.tensor([stay, -1.0]).double(), world, 1.0)
    near = soft_values(torch.tensor([-1e-6, -1.0]).double(), world, 1.0)
    assert near[0].item() == pytest.approx(-1 - math.log(-math.expm1(-1e-6)), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_long_chain_is_exact(method):
    world = chain(1000)
    values = soft_values(torch.full((999,), -100.0).double(), world, 1.0, _method=method)
    torch.testing.assert_close(values, 100.0 * torch.arange(-999.0, 1.0).double(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_news_from_far_away_on_a_ring(method):
    n = 1000
    steps = [(s, {(s + step) % n: 1.0}) for s in range(n) for step in (1, -1)]
    world = from_lists(n, steps)
    utility = draw(world)
    values = soft_values(utility, world, 0.999999, _method=method)
    largest = (utility + 0.999999 * torch.tensor(world.matrix @ values.numpy())).view(n, 2).logsumexp(1)
    torch.testing.assert_close(largest, values, rtol=64 * 2.3e-16, atol=0)


def test_precision_and_types():
    world = random_world(0)
    utility = draw(world)
    single = soft_values(utility.float(), world, 0.999)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), soft_values(utility.float().double(), world, 0.999), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="finite"):
        soft_values(torch.full((world.n_pairs,), torch.nan), world, 0.9)
    with pytest.raises(ValueError, match="discount"):
        soft_values(utility, world, 1.5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), discount=st.sampled_from([0.0, 0.3, 0.95, 0.9999]), scale=st.floats(0, 100))
def test_visits_are_the_gradient_and_flow_is_conserved(seed, discount, scale):
    world = random_world(seed)
    utility = (scale * draw(world, seed)).requires_grad_()
    start = torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(world.n_states)))
    values = soft_values(utility, world, discount)
    visits = occupancy(soft_policy(utility, values, world, discount), start, world, discount)
    (gradient,) = torch.autograd.grad((start * values).sum(), utility)
    torch.testing.assert_close(gradient, visits.detach(), rtol=1e-6, atol=1e-9)
    arriving = start.numpy() + discount * (world.matrix.T @ visits.detach().numpy())
    leaving = np.bincount(world.state, visits.detach().numpy(), world.n_states)
    np.testing.assert_allclose(leaving[~world.terminal], arriving[~world.terminal], rtol=1e-7, atol=1e-10)


def test_many_tangents_agree_with_the_adjoint():
    world = random_world(1)
    utility = draw(world)

    def values(u):
        return soft_values(u, world, 0.95)

    adjoint = torch.autograd.functional.jacobian(values, utility)
    torch.testing.assert_close(torch.func.jacfwd(values)(utility), adjoint, rtol=1e-9, atol=1e-11)
    hessian = torch.func.hessian(lambda u: values(u)[0])(utility)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(lambda u: values(u)[0], utility))


def test_first_order_shortcut_is_the_differentiable_backward():
    world = grid(4)
    utility = draw(world).requires_grad_()
    values = soft_values(utility, world, 0.95, tolerance=1e-14)  # they differ by what the values leave over
    weight = torch.rand(16, dtype=torch.float64)
    (short,) = torch.autograd.grad((weight * values).sum(), utility, retain_graph=True)
    (long,) = torch.autograd.grad((weight * values).sum(), utility, create_graph=True)
    torch.testing.assert_close(short, long.detach(), rtol=1e-11, atol=1e-13)

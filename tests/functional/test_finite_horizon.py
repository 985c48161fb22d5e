from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from irlhf.functional.finite_horizon import finite_horizon_occupancy, finite_horizon_policy, finite_horizon_values
from irlhf.functional.stationary import soft_values
from tests.functional.worlds import from_lists, random_world

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in forward mode


def utilities(world, *shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal((*shape, world.n_pairs)))


def by_definition(u, world, discount, final, ends):
    """The recursion, a state at a time."""
    values = [np.where(ends, 0.0, final)]
    for step in reversed(range(len(u))):
        now = np.zeros(world.n_states)
        for s in np.flatnonzero(~ends):
            q = []
            for p in range(world.first_pair[s], world.first_pair[s + 1]):
                o = slice(world.first_outcome[p], world.first_outcome[p + 1])
                ahead = world.probability[o] @ values[0][world.next_state[o]] if discount else 0.0
                q.append(u[step, p] + discount * ahead)
            now[s] = np.logaddexp.reduce(q)
        values.insert(0, now)
    return np.array(values)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
def test_recursion_by_definition(discount):
    for seed in range(5):
        world = random_world(seed)
        u = utilities(world, 4, seed=seed)
        final = np.random.default_rng(seed).standard_normal(world.n_states)
        values = finite_horizon_values(u, world, discount, 4, final=torch.tensor(final))
        expected = by_definition(u.numpy(), world, discount, final, world.terminal)
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


def test_sum_over_all_paths_of_a_deterministic_world():
    world = random_world(4, deterministic=True)
    u = utilities(world, 5)
    values = finite_horizon_values(u, world, 1.0, 5)
    for start in range(world.n_states):
        weights, stack = [], [(start, 0, 0.0)]
        while stack:
            s, h, weight = stack.pop()
            if h == 5 or world.terminal[s]:
                weights.append(weight)
                continue
            for p in range(world.first_pair[s], world.first_pair[s + 1]):
                stack.append((int(world.next_state[p]), h + 1, weight + float(u[h, p])))
        np.testing.assert_allclose(values[0, start], np.logaddexp.reduce(weights), rtol=1e-12)


def test_policy_and_visits_are_those_of_the_process():
    world = random_world(1)
    u = utilities(world, 6).requires_grad_()
    start = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(world.n_states)))
    values = finite_horizon_values(u, world, 0.9, 6)
    log_policy = finite_horizon_policy(u, values, world, 0.9)
    by_state = torch.zeros(6, world.n_states).double().index_add(1, torch.tensor(world.state), log_policy.exp())
    torch.testing.assert_close(by_state[:, ~torch.tensor(world.terminal)], torch.ones(6, world.n_states - 1).double())
    visits = finite_horizon_occupancy(log_policy, start, world, 0.9)
    # the gradient of the expected log partition function is the discounted visit count
    (gradient,) = torch.autograd.grad((start * values[0]).sum(), u)
    torch.testing.assert_close(gradient, visits.detach(), rtol=1e-10, atol=1e-14)


def test_derivatives_of_every_order_and_mode():
    world = random_world(2, n_states=3)
    u = utilities(world, 2).requires_grad_()
    flat = utilities(world).requires_grad_()
    final = torch.randn(world.n_states, dtype=torch.float64, requires_grad=True)

    def timed(v, f):
        return finite_horizon_values(v, world, 0.9, 2, final=f)

    def same(v):
        return finite_horizon_values(v, world, 1.0, 3)

    assert gradcheck(timed, (u, final), check_forward_ad=True)
    assert gradgradcheck(timed, (u, final), check_fwd_over_rev=True)
    assert gradcheck(same, flat, check_forward_ad=True)
    assert gradgradcheck(same, flat, check_fwd_over_rev=True)

    def visits(v):
        log_policy = finite_horizon_policy(v, finite_horizon_values(v, world, 0.9, 2), world, 0.9)
        return finite_horizon_occupancy(log_policy, torch.ones(world.n_states).double(), world, 0.9)

    assert gradcheck(visits, u, check_forward_ad=True)


def test_contexts_masks_and_what_must_not_happen():
    world = random_world(3)
    u = utilities(world, 2, 1)
    u[1, 0, 0] = -torch.inf
    absorbing = torch.zeros(2, world.n_states, dtype=torch.bool)
    absorbing[1, 2] = True
    final = torch.where(torch.arange(world.n_states) == world.n_states - 1, 0.0, -torch.inf).double()
    u.requires_grad_()
    together = finite_horizon_values(u, world, 1.0, 7, absorbing=absorbing, final=final)
    assert torch.isneginf(together).any()
    for i in range(2):
        alone = finite_horizon_values(u[i], world, 1.0, 7, absorbing=absorbing[i], final=final)
        torch.testing.assert_close(together[i], alone, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(torch.where(torch.isfinite(together), together, 0.0).sum(), u)
    assert torch.isfinite(gradient).all()
    assert gradient[1, 0, 0] == 0
    policy = finite_horizon_policy(u, together, world, 1.0, absorbing=absorbing)
    assert not torch.isnan(policy).any()


def test_long_horizon_approaches_the_stationary_values():
    world = random_world(6)
    u = utilities(world)
    long = finite_horizon_values(u, world, 0.8, 200)[0]
    torch.testing.assert_close(long, soft_values(u, world, 0.8), rtol=1e-10, atol=1e-10)


def test_huge_rewards_do_not_overflow():
    world = from_lists(2, [(0, {0: 1.0}), (0, {1: 1.0})])
    values = finite_horizon_values(torch.tensor([1e4, -1e4]).double(), world, 1.0, 100)
    assert values[0, 0] == pytest.approx(1e6)

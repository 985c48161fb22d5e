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
    return values


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

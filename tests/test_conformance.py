"""What every reward, policy and world must do, whichever it is."""

import math

import numpy as np
import pytest
import torch

from irlhf.protocols import Policy, Reward, SolvableWorld
from irlhf.rewards import Implicit
from irlhf.worlds.tabular import Features, Linear, Neural, SoftmaxPolicy, Tabular, sample_paths
from tests.worlds.problems import diamond, random_world, replacement


def worlds():
    return {
        "discounted": (random_world(0, discount=0.9)[0], [None]),
        "horizon": (random_world(1, horizon=5, discount=0.7)[0], [None]),
        "destinations": (diamond()[0], [5, 4]),
        "replacement": (replacement(8)[0], [None]),
    }


def rewards(world):
    t = world.transitions
    rng = np.random.default_rng(0)

    def columns(on, rows):
        return Features(torch.from_numpy(-rng.random((rows, 2))), ("a", "b"), on)

    on_states, on_pairs = columns("states", t.n_states), columns("pairs", t.n_pairs)
    return {
        "linear on states": Linear(on_states, [0.3, 0.8]),
        "linear on pairs": Linear(on_pairs, [0.3, 0.8]),
        "linear on outcomes": Linear(columns("outcomes", t.n_outcomes), [0.3, 0.8]),
        "tabular on states": Tabular(world, on="states"),
        "tabular on pairs": Tabular(world, on="pairs"),
        "tabular on outcomes": Tabular(world, on="outcomes"),
        "neural": Neural(on_pairs, hidden=(4,)),
        "implicit": Implicit(SoftmaxPolicy(world), world, temperature=0.5),
    }


CASES = [(w, r) for w, (world, _) in worlds().items() for r in rewards(world)]


def some_paths(world, contexts):
    t = world.transitions
    each = np.bincount(t.state, minlength=t.n_states)
    uniform = -np.log(each[t.state])
    if world.horizon:
        uniform = np.broadcast_to(uniform, (world.horizon, t.n_pairs))
    where = [contexts[i % len(contexts)] for i in range(6)]
    goals = where if world.destinations else None
    return where, sample_paths(world, uniform, [0] * 6, destinations=goals, max_steps=5, seed=0)


@pytest.mark.parametrize(("world_name", "reward_name"), CASES)
def test_a_reward(world_name, reward_name):
    world, contexts = worlds()[world_name]
    reward = rewards(world)[reward_name]
    assert isinstance(reward, Reward)
    where, paths = some_paths(world, contexts)
    batch = world.collate(where, paths)
    per_step, per_item = reward.step(batch), reward(batch)
    assert per_step.shape == batch.item.shape and per_item.shape == (6,)
    assert per_step.dtype == per_item.dtype == torch.float64
    by_hand = [
        sum(float(batch.step_weight[k]) * float(per_step.detach()[k]) for k in (batch.item == i).nonzero()[:, 0])
        for i in range(6)
    ]
    np.testing.assert_allclose(per_item.detach().numpy(), by_hand, atol=1e-12)
    # One path alone, and the batch in another order, are worth the same.
    alone = reward(world.collate(where[3:4], list(paths)[3:4]))
    torch.testing.assert_close(alone, per_item[3:4], rtol=0, atol=1e-12)
    shuffled = reward(world.collate(where[::-1], list(paths)[::-1]))
    torch.testing.assert_close(shuffled.flip(0), per_item, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(per_item.sum(), list(reward.parameters()), allow_unused=True)
    assert any(g is not None and torch.isfinite(g).all() for g in gradients)
    assert getattr(reward, "on", "pairs") in ("states", "pairs", "outcomes")


@pytest.mark.parametrize(("world_name", "reward_name"), CASES)
def test_a_solution(world_name, reward_name):
    """Policies sum to one, satisfy the Bellman equation, and their log-probability is that of collated paths."""
    world, contexts = worlds()[world_name]
    assert isinstance(world, SolvableWorld)
    reward = rewards(world)[reward_name]
    where, paths = some_paths(world, contexts)
    batch = world.collate(where, paths)
    solution = world.solve(reward, batch.contexts, temperature=0.8)
    log_pi = solution.log_policy.detach()
    t = world.transitions
    mass = torch.zeros(*log_pi.shape[:-1], t.n_states, dtype=torch.float64)
    mass.index_add_(-1, torch.from_numpy(t.state), log_pi.exp())
    live = torch.from_numpy(~t.terminal).expand(mass.shape).clone()
    if world.destinations:
        live[torch.arange(len(batch.contexts)), torch.tensor(world.state_numbers(batch.contexts))] = False
        live &= torch.isfinite(solution.values.detach())
    assert torch.allclose(mass[live], torch.ones(()).double(), atol=1e-10)
    rows = [batch.contexts.index(x) if len(log_pi) > 1 else 0 for x in where]
    by_hand = []
    for i in range(6):
        steps = (batch.item == i).nonzero()[:, 0].tolist()
        index = [(rows[i], *([int(batch.time[k])] if solution.timed else []), int(batch.pair[k])) for k in steps]
        by_hand.append(math.fsum(float(log_pi[place]) for place in index))
    np.testing.assert_allclose(solution.log_prob(batch).detach().numpy(), by_hand, atol=1e-10)


@pytest.mark.parametrize("world_name", list(worlds()))
def test_a_policy(world_name):
    world, contexts = worlds()[world_name]
    policy = SoftmaxPolicy(world, timed=False)
    assert isinstance(policy, Policy)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    where, paths = some_paths(world, contexts)
    batch = world.collate(where, paths)
    assert policy.log_prob(batch).shape == batch.pair.shape
    mass = torch.zeros(world.transitions.n_states).double()
    mass.index_add_(0, torch.from_numpy(world.transitions.state), policy.log_policy().detach().exp())
    assert torch.allclose(mass[torch.from_numpy(~world.transitions.terminal)], torch.ones(()).double())

"""Distances between rewards: the laws they must obey, and definitions written out as loops."""

import itertools

import numpy as np
import pytest
import torch

from irlhf import distance_of_returns
from irlhf.errors import ConfigError
from irlhf.functional.distance import epic_canonical, epic_distance, pearson_distance, starc_distance, value_canonical
from irlhf.worlds.tabular import Features, GreedyPolicy, Linear, Shaped, Start, distances, optimum, policy_regret
from tests.worlds.problems import diamond, random_world


def random_reward(seed, n=4, k=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, k, n)))


def test_the_canonical_form_of_epic_as_in_its_definition():
    reward, g = random_reward(0), 0.9
    rng = np.random.default_rng(1)
    of_state, of_action = (torch.from_numpy(rng.dirichlet(np.ones(n))) for n in (4, 3))
    found = epic_canonical(reward, g, of_state, of_action.expand(4, 3))
    for s, a, after in itertools.product(range(4), range(3), range(4)):
        value = reward[s, a, after]
        for x, u, y in itertools.product(range(4), range(3), range(4)):
            p = of_state[x] * of_action[u] * of_state[y]
            value = value + p * (g * reward[after, u, y] - reward[s, u, y] - g * reward[x, u, y])
        assert found[s, a, after].item() == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_the_laws_of_epic(discount):
    reward, potential = random_reward(2), torch.from_numpy(np.random.default_rng(3).normal(size=4))
    shaped = 2.5 * (reward + discount * potential[None, None] - potential[:, None, None]) + 0.7
    assert epic_distance(reward, shaped, discount).item() < 1e-12
    assert epic_distance(reward, -shaped, discount).item() == pytest.approx(1.0, abs=1e-12)
    others = [random_reward(k) for k in range(4, 8)]
    d = [[float(epic_distance(a, b, discount)) for b in others] for a in others]
    for i, j, k in itertools.product(range(4), repeat=3):
        assert d[i][j] == pytest.approx(d[j][i]) and 0 <= d[i][j] <= 1
        assert d[i][k] <= d[i][j] + d[j][k] + 1e-12


def test_pearson_distance_by_numpy_and_of_constants():
    rng = np.random.default_rng(8)
    a, b, w = (rng.normal(size=20) for _ in range(3))
    found = pearson_distance(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert found == pytest.approx(np.sqrt((1 - np.corrcoef(a, b)[0, 1]) / 2), abs=1e-12)
    weight = np.abs(w)
    cov = np.cov(a, b, aweights=weight)
    found = pearson_distance(*(torch.from_numpy(x) for x in (a, b, weight))).item()
    assert found == pytest.approx(np.sqrt((1 - cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])) / 2), abs=1e-12)
    one = torch.ones(20).double() * 3.3
    assert pearson_distance(one, torch.from_numpy(a)).item() == pytest.approx(np.sqrt(0.5))
    assert pearson_distance(one, 2 * one).item() == 0.0


def test_value_canonical_is_the_advantage_by_iteration():
    world, columns = random_world(1, n_states=4, discount=0.8)
    t, reward = world.transitions, columns.values[:, 0]
    policy = world.base_policy().log_prob(world.table("pairs")).exp()
    values = np.zeros(4)
    for _ in range(400):
        values = np.bincount(
            t.state, (policy * (reward + 0.8 * torch.from_numpy(t.matrix @ values))).numpy(), minlength=4
        )
    expected = reward.numpy() + 0.8 * (t.matrix @ values) - values[t.state]
    np.testing.assert_allclose(value_canonical(reward, t, 0.8, policy).numpy(), expected, atol=1e-12)
    with_negation = starc_distance(torch.from_numpy(expected), torch.from_numpy(-3 * expected))
    assert with_negation.item() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("options", [{"discount": 0.9}, {"discount": 0.5}])
def test_the_laws_in_a_world(options):
    world, columns = random_world(2, n_states=5, **options)
    reward = Linear(columns, [0.9, -0.5, 0.3])
    potential = np.random.default_rng(4).normal(size=5)
    scaled = Linear(columns, [2.7, -1.5, 0.9])
    same = distances(world, reward, Shaped(scaled, world, potential))
    assert same[["STARC", "EPIC"]].max() < 1e-7
    assert same[["Spearman", "Kendall"]].min() > 1 - 1e-9
    opposite = distances(world, reward, Shaped(Linear(columns, [-2.7, 1.5, -0.9]), world, potential))
    np.testing.assert_allclose(opposite.to_numpy(), [1, 1, -1, -1], atol=1e-9)
    other = distances(world, reward, Linear(columns, [0.9, 0.5, 0.3]))
    assert (other[["STARC", "EPIC"]] > 0.1).all() and (other[["STARC", "EPIC"]] < 0.9).all()


def test_epic_in_a_world_is_epic_of_the_full_table():
    world, columns = random_world(3, n_states=4, n_actions=2, discount=0.9)
    a, b = (Linear(columns, theta) for theta in ([0.9, -0.5, 0.3], [0.1, -0.5, 0.8]))
    tables = [(columns.values @ r.theta.detach()).reshape(4, 2, 1).expand(4, 2, 4) for r in (a, b)]
    assert distances(world, a, b)["EPIC"] == pytest.approx(float(epic_distance(*tables, 0.9)), abs=1e-12)


def test_a_reward_of_transitions_has_no_epic_and_says_so():
    world, _ = random_world(3, n_states=4, n_actions=2, discount=0.9)
    n = world.transitions.n_outcomes
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 1)))
    reward = Linear(Features(values, ("x",), "outcomes"), [1.0])
    found = distances(world, reward, Shaped(reward, world, [0.1, 0.5, -1.0, 2.0]))
    assert np.isnan(found["EPIC"]) and found["STARC"] < 1e-7
    with pytest.raises(ConfigError, match="one number for each"):
        Shaped(reward, world, [0.1])


def test_a_shaped_reward_asks_for_the_same_policies_and_values_that_differ_by_the_potential():
    world, columns = random_world(5, n_states=4, discount=0.9)
    reward = Linear(columns, [0.9, -0.5, 0.3])
    potential = np.array([0.3, -1.0, 2.0, 0.5])
    plain, shaped = world.solve(reward), world.solve(Shaped(reward, world, potential))
    torch.testing.assert_close(plain.log_policy, shaped.log_policy, atol=1e-10, rtol=0)
    torch.testing.assert_close(plain.values - torch.from_numpy(potential), shaped.values, atol=1e-10, rtol=0)


def test_policy_regret_by_hand():
    network, tolls = diamond()
    tolls.requires_grad_(False)
    judge = Linear(tolls.features, [-1.0, 0.0])
    starts = [Start(0, 5), Start(1, 5)]
    itself = policy_regret(network, judge, judge, starts)
    assert itself["regret"] == pytest.approx(0.0, abs=1e-12) and itself["share"] == pytest.approx(0.0, abs=1e-12)
    worst = policy_regret(network, Linear(tolls.features, [1.0, 0.0]), judge, starts)
    lengths = {s: [] for s in (0, 1)}
    from irlhf.worlds.tabular import enumerate_paths

    for s in lengths:
        paths = list(enumerate_paths(network, s, max_steps=10, destination=5))
        lengths[s] = judge(network.collate([5] * len(paths), paths)).detach().tolist()
    assert worst["best"] == pytest.approx(np.mean([max(v) for v in lengths.values()]))
    assert worst["attained"] == pytest.approx(np.mean([min(v) for v in lengths.values()]))
    assert worst["share"] > 1
    soft = policy_regret(network, judge, judge, starts, temperature=0.5)
    assert soft["attained"] < itself["attained"]


def test_equally_good_actions_share():
    world, columns = random_world(6, n_states=3, n_actions=2, discount=0.5)
    nothing = Linear(columns, [0.0, 0.0, 0.0])
    policy = GreedyPolicy(optimum(world, nothing))
    np.testing.assert_allclose(policy.log_prob(world.table("pairs")).exp().numpy(), 0.5)


class OfItems(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = torch.as_tensor(values).double()

    def forward(self, batch):
        return self.values


def test_distances_of_returns_within_contexts():
    world, _ = diamond()
    from irlhf.worlds.tabular import enumerate_paths

    to_5, to_4 = (list(enumerate_paths(world, 0, max_steps=10, destination=d)) for d in (5, 4))
    batch = world.collate([5] * len(to_5) + [4] * len(to_4), to_5 + to_4)
    rng = np.random.default_rng(0)
    r = rng.normal(size=batch.n_items)
    moved = 3 * r + np.where(batch.context.numpy() == 0, 5.0, -2.0)
    same = distance_of_returns(OfItems(r), OfItems(moved), batch)
    np.testing.assert_allclose(same[["EPIC", "Spearman", "Kendall", "agree"]], [0, 1, 1, 1], atol=1e-7)
    assert same["pairs"] == len(to_5) * (len(to_5) - 1) / 2 + len(to_4) * (len(to_4) - 1) / 2
    opposite = distance_of_returns(OfItems(r), OfItems(-moved), batch)
    np.testing.assert_allclose(opposite[["EPIC", "Spearman", "Kendall", "agree"]], [1, -1, -1, 0], atol=1e-7)
    with pytest.raises(ConfigError, match="two trajectories"):
        distance_of_returns(OfItems([1.0]), OfItems([1.0]), world.collate([5], to_5[:1]))


def test_sampled_epic_in_an_environment_ignores_shaping_and_scale():
    gym = pytest.importorskip("irlhf.worlds.gym")
    world = gym.GymWorld("CartPole-v1")
    batch = world.collate([None] * 5, world.record(world.base_policy(), 5))
    plain = gym.NeuralReward(world, on="transition", seed=1)

    class Changed(torch.nn.Module):
        def step(self, b):
            potential = lambda s: torch.tanh(s).sum(1) * 2.0  # noqa: E731
            return 2.5 * plain.step(b) + 0.9 * potential(b.next_obs) - potential(b.obs) + 1.0

    class Opposite(torch.nn.Module):
        def step(self, b):
            return -plain.step(b)

    assert gym.epic(plain, Changed(), batch, discount=0.9) < 1e-3
    assert gym.epic(plain, Opposite(), batch, discount=0.9) == pytest.approx(1.0, abs=1e-6)
    assert 0.1 < gym.epic(plain, gym.NeuralReward(world, on="transition", seed=2), batch, discount=0.9) < 0.9

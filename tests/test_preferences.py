"""Models of preference: partial return and regret, ties, mistakes, a liking for what was shown first."""

import itertools
import math

import numpy as np
import pytest
import torch

from irlhf import TIE, Choice, Feedback, Rating, Source, Term, davidson, demonstrations, exact, fit_reward, listed
from irlhf.errors import ConfigError, InfeasibleError
from irlhf.functional.optimal import optimal_values
from irlhf.hypothesis import vuong
from irlhf.worlds.tabular import Features, Linear, Path, features, from_arrays, optimum, regret
from tests.worlds.problems import diamond, random_world

THETA = [0.9, -0.5, 0.3]


def by_brute_force(world, of_pair, steps=4000):
    """V* by value iteration on dense loops."""
    t = world.transitions
    values = np.zeros(t.n_states)
    for _ in range(steps):
        new = np.zeros(t.n_states)
        for s in range(t.n_states):
            pairs = range(t.first_pair[s], t.first_pair[s + 1])
            best = [of_pair[p] + world.discount * (t.matrix[[p]] @ values)[0] for p in pairs]
            new[s] = max(best, default=0.0)
        values = new
    return values


def segments(world, n, length, seed):
    """Random walks: (states, actions) as paths that know where they end."""
    rng, t = np.random.default_rng(seed), world.transitions
    found = []
    for _ in range(n):
        s, states, actions = int(rng.integers(t.n_states)), [], []
        for _ in range(length):
            pair = int(rng.integers(t.first_pair[s], t.first_pair[s + 1]))
            states.append(s)
            actions.append(world.actions[world.action_of_pair[pair]])
            s = int(t.next_state[rng.integers(t.first_outcome[pair], t.first_outcome[pair + 1])])
        found.append(Path([*states, s], actions))
    return found


def test_optimal_values_are_those_of_value_iteration_and_the_limit_of_soft_ones():
    world, columns = random_world(2, n_states=5, discount=0.9)
    reward = Linear(columns, THETA)
    of_pair = (columns.values @ torch.tensor(THETA).double()).numpy()
    solution = optimum(world, reward)
    values = solution.values[0].detach().numpy()
    np.testing.assert_allclose(values, by_brute_force(world, of_pair), atol=1e-12)
    advantage = solution.log_policy[0].detach().numpy()
    best = np.maximum.reduceat(advantage, world.transitions.first_pair[:-1])
    np.testing.assert_allclose(best, 0, atol=1e-12)
    assert (advantage <= 1e-12).all()
    paths = segments(world, 6, 3, 0)
    batch = world.collate([None] * 6, paths)
    reward.requires_grad_(False)
    hard = regret()(world, reward, batch, {})
    gaps = [float((regret(t)(world, reward, batch, {}) - hard).abs().max()) for t in (1.0, 0.1, 0.01, 0.001)]
    assert all(a > b for a, b in itertools.pairwise(gaps)) and gaps[-1] < 1e-2


def test_optimal_values_with_a_horizon_and_to_destinations():
    world, columns = random_world(3, n_states=4, n_actions=2, discount=0.8, horizon=3)
    reward = Linear(columns, THETA)
    of_pair = (columns.values @ torch.tensor(THETA).double()).numpy()
    values = optimum(world, reward).values[0].detach().numpy()
    matrix, t = world.transitions.matrix.toarray(), world.transitions
    after = np.zeros(4)
    for time in (2, 1, 0):
        after = np.array(
            [(of_pair + 0.8 * matrix @ after)[t.first_pair[s] : t.first_pair[s + 1]].max() for s in range(4)]
        )
        np.testing.assert_allclose(values[time], after, atol=1e-12)
    network, tolls = diamond()
    tolls.requires_grad_(False)
    shortest = optimum(network, tolls, [5]).values[0].detach()
    every = {  # the longest of the few ways, each by hand
        0: max(float(tolls(network.collate([5], [Path(list(w), list(w[1:]))]))[0])
               for w in [(0, 1, 3, 5), (0, 1, 2, 3, 5), (0, 1, 2, 4, 5), (0, 1, 2, 3, 4, 5), (0, 2, 3, 5), (0, 2, 4, 5),
                         (0, 2, 3, 4, 5), (0, 1, 3, 4, 5), (0, 1, 4, 5)])
    }  # fmt: skip
    assert shortest[0].item() == pytest.approx(every[0], abs=1e-12)
    pays = Linear(tolls.features, [1.0, 0.0])
    assert math.isfinite(float(optimum(network, pays, [5]).values[0, 0].detach()))  # no circles in it


def test_a_circle_that_pays_is_refused():
    p = np.zeros((3, 2, 3))
    p[0, 0, 1] = p[1, 0, 0] = 1.0
    p[0, 1, 2] = p[1, 1, 2] = 1.0
    p[2, :, 2] = 1.0
    table = from_arrays(p, discount=0.5).outcome_table()
    from irlhf.worlds.tabular import from_table

    world = from_table(table[table.state != 2], discount=1.0)
    values = features(world, np.where(world.pair_table()[["action"]] == 0, 1.0, -1.0), names=["around"])
    with pytest.raises(InfeasibleError, match="circles"):
        optimum(world, Linear(values, [1.0]))
    assert optimum(world, Linear(values, [-1.0])).values[0].tolist() == pytest.approx([1.0, 1.0, 0.0])


@pytest.mark.parametrize("temperature", [0, 0.4])
def test_gradients_through_the_values_by_differences(temperature):
    world, columns = random_world(4, n_states=5, discount=0.9)
    batch = world.collate([None] * 5, segments(world, 5, 4, 1))
    model = regret(temperature)

    def value(theta):
        reward = Linear(columns)
        return torch.func.functional_call(_Compared(model, world, reward, batch), {"reward.theta": theta}, ())

    theta = torch.tensor(THETA).double().requires_grad_()
    assert torch.autograd.gradcheck(value, theta, atol=1e-6)
    assert torch.autograd.gradgradcheck(value, theta, atol=1e-5)


class _Compared(torch.nn.Module):
    def __init__(self, model, world, reward, batch):
        super().__init__()
        self.model, self.world, self.reward, self.batch = model, world, reward, batch

    def forward(self):
        return self.model(self.world, self.reward, self.batch, {})


def test_regret_is_blind_to_shaping_which_partial_return_is_not():
    world, columns = random_world(5, n_states=4, n_actions=2, discount=0.9)
    potential = np.array([0.3, -1.0, 2.0, 0.5])
    t = world.transitions
    shaping = 0.9 * (t.matrix @ potential) - potential[t.state]
    names = [*columns.names, "shaping"]
    both = Features(torch.cat([columns.values, torch.from_numpy(shaping)[:, None]], 1), tuple(names), "pairs")
    batch = world.collate([None] * 6, segments(world, 6, 3, 2))
    plain, shaped = Linear(both, [*THETA, 0.0]), Linear(both, [*THETA, 1.0])
    for model in (regret(), regret(0.5)):
        torch.testing.assert_close(model(world, plain, batch, {}), model(world, shaped, batch, {}), atol=1e-9, rtol=0)
    assert (plain(batch) - shaped(batch)).abs().max() > 0.1


def choices_of(world, paths, returns, seed):
    rng, rows = np.random.default_rng(seed), []
    for k in range(0, len(paths), 2):
        p = 1 / (1 + math.exp(-(returns[k + 1] - returns[k])))
        rows.append(Choice(None, (paths[k], paths[k + 1]), int(rng.random() < p)))
    return Feedback.of(rows)


def test_the_model_that_people_follow_wins():
    """Each model explains the answers better that were given by it, and finds their reward within 5 standard errors."""
    world, columns = random_world(6, n_states=6, discount=0.9)
    truth = Linear(columns, [2.0, -1.5, 1.0])
    paths = segments(world, 3000, 3, 3)
    batch = world.collate([None] * len(paths), paths)
    models = {"return": None, "regret": regret(0.2)}
    for answered in models:
        told = truth(batch) if answered == "return" else models["regret"](world, truth, batch, {})
        rows = choices_of(world, paths, told.detach().numpy(), 4)
        fits = {name: fit_reward(Linear(columns), Term(rows, listed(world, model))) for name, model in models.items()}
        other = next(name for name in models if name != answered)
        test = vuong(fits[answered], fits[other])
        assert test.statistic > 4
        z = (fits[answered].params - [2.0, -1.5, 1.0]) / fits[answered].standard_errors()
        assert z.abs().max() < 5, (answered, z)


def test_a_hard_fit_of_regret_reaches_the_limit_of_soft_ones():
    world, columns = random_world(6, n_states=6, discount=0.9)
    truth = Linear(columns, [2.0, -1.5, 1.0])
    paths = segments(world, 1000, 3, 5)
    batch = world.collate([None] * len(paths), paths)
    rows = choices_of(world, paths, regret()(world, truth, batch, {}).detach().numpy(), 6)
    reward = Linear(columns)
    for temperature in (1.0, 0.1, 0.0):
        fit = fit_reward(reward, Term(rows, listed(world, regret(temperature))))
    assert np.abs(fit.params - [2.0, -1.5, 1.0]).max() < 0.5
    assert fit.objective > fit_reward(Linear(columns), Term(rows, listed(world))).objective


def test_noise_is_a_mixture_with_chance_whatever_is_answered():
    world, reward = diamond()
    paths = [Path([0, 1, 3, 5], [1, 3, 5]), Path([0, 2, 4, 5], [2, 4, 5]), Path([0, 1, 4, 5], [1, 4, 5])]
    rows = Feedback.of([
        Choice(5, (paths[0], paths[1]), 0),
        Choice(5, (paths[1], paths[0]), TIE),
        Choice(5, tuple(paths), 2),
        Rating(5, paths[0], 1, 3),
    ])  # fmt: skip
    plain = Term(rows, listed(world), Source(ties=davidson(), thresholds=[0.1, 0.4])).log_prob(reward).exp()
    noisy = Term(rows, listed(world), Source(ties=davidson(), thresholds=[0.1, 0.4], noise=0.2)).log_prob(reward).exp()
    answers = torch.tensor([3.0, 3.0, 3.0, 3.0]).double()
    torch.testing.assert_close(noisy, 0.8 * plain + 0.2 / answers, atol=1e-14, rtol=0)
    without_ties = Feedback.of([Choice(5, (paths[0], paths[1]), 0)])
    a = Term(without_ties, listed(world), Source()).log_prob(reward).exp().item()
    b = Term(without_ties, listed(world), Source(noise=0.2)).log_prob(reward).exp().item()
    assert b == pytest.approx(0.8 * a + 0.1, abs=1e-14)


def test_position_adds_to_what_is_shown_first():
    world, reward = diamond()
    paths = [Path([0, 1, 3, 5], [1, 3, 5]), Path([0, 2, 4, 5], [2, 4, 5])]
    rows = Feedback.of([Choice(5, tuple(paths), 0), Choice(5, tuple(paths), 1)])
    plain, biased = (Term(rows, listed(world), Source(position=b)).log_prob(reward).exp() for b in (0.0, 0.6))
    odds = plain[0] / plain[1]
    assert (biased[0] / biased[1] / odds).item() == pytest.approx(math.exp(0.6), rel=1e-12)


def test_noise_and_position_are_found_with_their_errors():
    world, columns = random_world(7, n_states=6, discount=0.9)
    truth = Linear(columns, [6.0, -4.0, 3.0])
    paths = segments(world, 12_000, 3, 7)
    returns = truth(world.collate([None] * len(paths), paths)).detach().numpy()
    rng, rows = np.random.default_rng(8), []
    for k in range(0, len(paths), 2):
        p = 1 / (1 + math.exp(-(returns[k + 1] - returns[k] - 0.7)))  # the first is liked by 0.7 nats
        answer = int(rng.random() < p) if rng.random() > 0.15 else int(rng.integers(2))
        rows.append(Choice(None, (paths[k], paths[k + 1]), answer))
    source = Source(noise=0.05, fit_noise=True, fit_position=True)
    fit = fit_reward(Linear(columns), Term(Feedback.of(rows), listed(world), source))
    assert fit.status.name == "CONVERGED"
    derived = fit.derived()
    assert list(derived.index) == ["default.noise"]
    noise = derived.loc["default.noise"]
    assert abs(noise["estimate"] - 0.15) < 5 * noise["std. error"] < 0.1
    z = (fit.params[["a", "b", "c", "default.position"]] - [6.0, -4.0, 3.0, 0.7]) / fit.standard_errors()
    assert z.abs().max() < 5, z


def test_what_a_source_refuses():
    world, _ = diamond()
    paths = [Path([0, 1, 3, 5], [1, 3, 5]), Path([0, 2, 4, 5], [2, 4, 5]), Path([0, 1, 4, 5], [1, 4, 5])]
    always_first = Feedback.of([Choice(5, (paths[0], paths[1]), 0), Choice(5, (paths[2], paths[1]), 0)])
    with pytest.raises(ConfigError, match="first in every row"):
        Term(always_first, listed(world), Source(fit_position=True))
    from irlhf import rankings

    with pytest.raises(ConfigError, match="in which order"):
        Term(rankings([5], [paths]), listed(world), Source(fit_position=True))
    with pytest.raises(ConfigError, match="source of their own"):
        Term(demonstrations([5], paths[:1]), exact(world), Source(noise=0.1))
    with pytest.raises(ConfigError, match="noise is 1"):
        Source(noise=1.0)
    with pytest.raises(ConfigError, match="temperature of regret"):
        regret(-1.0)
    assert repr(regret()) == "regret()" and "0.5" in repr(regret(0.5))


def test_optimal_values_of_many_rewards_at_once():
    world, _ = random_world(8, n_states=5, discount=0.7)
    rewards = torch.randn(3, world.transitions.n_pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = optimal_values(rewards, world.transitions, 0.7)
    for row, values in zip(rewards, together, strict=True):
        np.testing.assert_allclose(values, by_brute_force(world, row.numpy(), 200), atol=1e-12)

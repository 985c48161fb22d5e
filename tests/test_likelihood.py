"""The one likelihood against enumeration: every spelling of the same feedback must give the same number."""

import math

import numpy as np
import pytest
import torch

from irlhf import (
    Choice,
    Feedback,
    Rating,
    Source,
    Term,
    comparisons,
    demonstrations,
    exact,
    fit_reward,
    listed,
    ratings,
)
from irlhf.errors import ConfigError, InfeasibleError
from irlhf.rewards import Implicit
from irlhf.worlds.tabular import (
    Features,
    Linear,
    Path,
    SoftmaxPolicy,
    Tabular,
    enumerate_paths,
    features,
    from_arrays,
    sample_paths,
)
from tests.worlds.problems import diamond, random_world


def listing(world, reward, start, steps, destination=None):
    """Every path from a start, with its own return, base measure and dynamics: nothing of the solver is used."""
    options = {} if destination is None else {"destination": destination}
    paths = list(enumerate_paths(world, start, max_steps=steps, **options))
    batch = world.collate([destination] * len(paths), paths)
    with torch.no_grad():
        return paths, batch, reward(batch), world.log_base(batch), world.log_dynamics(batch)


def test_a_demonstration_with_every_trajectory_listed_is_the_exact_one():
    world, reward = diamond()
    paths, *_ = listing(world, reward, 0, 10, 5)
    assert len(paths) > 6
    for temperature in (1.0, 0.5):
        source = Source(temperature)
        listed_rows = Feedback.of(Choice(5, tuple(paths), k) for k in range(len(paths)))
        by_list = Term(listed_rows, listed(world), source).log_prob(reward)
        for kind in ("causal", "weighted", "anticipative"):
            by_solver = Term(demonstrations([5] * len(paths), paths), exact(world, kind=kind), source).log_prob(reward)
            torch.testing.assert_close(by_solver, by_list, rtol=0, atol=1e-12)
        assert by_list.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_pair_as_a_set_of_two_is_the_logistic_loss_with_offset_and_temperature():
    world, reward = diamond()
    paths, _, returns, *_ = listing(world, reward, 0, 10, 5)
    rows = Feedback.of([Choice(5, (paths[0], paths[3]), 1, offset=(0.7, -0.2))])
    value = Term(rows, listed(world), Source(2.5)).log_prob(reward)
    difference = (returns[3] - returns[0]) / 2.5 - 0.2 - 0.7
    assert value.item() == pytest.approx(-math.log1p(math.exp(-difference)), abs=1e-14)


@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
def test_three_kinds_by_enumeration_in_a_stochastic_world_with_a_horizon(discount):
    rng = np.random.default_rng(0)
    world, columns = random_world(4, n_states=3, n_actions=2, discount=discount, horizon=4)
    base = torch.from_numpy(rng.normal(size=world.transitions.n_pairs))
    world.log_base_of_pair = base
    reward = Linear(columns, [0.9, -0.5, 0.3])
    paths, _batch, returns, log_mu, log_p = listing(world, reward, 1, 4)
    demonstration = demonstrations([None] * len(paths), paths)
    temperature = 0.7
    source = Source(temperature)

    anticipative = Term(demonstration, exact(world, kind="anticipative"), source).log_prob(reward)
    weight = returns / temperature + log_mu + log_p
    torch.testing.assert_close(anticipative, weight - weight.logsumexp(0), rtol=0, atol=1e-11)

    # Causal, by a recursion over the tree of histories that knows nothing of sparse tables.
    theta = reward.theta.detach().numpy()
    per_pair = columns.values.numpy() @ theta / temperature + base.numpy()
    p = world.transitions.matrix.toarray()

    def value(s, t):
        return 0.0 if t == 4 else float(np.logaddexp.reduce(q_values(s, t)))

    def q_values(s, t):
        pairs = range(world.transitions.first_pair[s], world.transitions.first_pair[s + 1])
        return [per_pair[k] + discount * sum(p[k, n] * value(n, t + 1) for n in range(3)) for k in pairs]

    expected, weighted = [], []
    for path in paths:
        steps = [
            q_values(s, t)[a] - value(s, t) for t, (s, a) in enumerate(zip(path.states, path.actions, strict=False))
        ]
        expected.append(sum(steps))
        weighted.append(sum(discount**t * x for t, x in enumerate(steps)))
    causal = Term(demonstration, exact(world), source).log_prob(reward)
    torch.testing.assert_close(causal, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-11)
    other = Term(demonstration, exact(world, kind="weighted"), source).log_prob(reward)
    torch.testing.assert_close(other, torch.tensor(weighted, dtype=torch.float64), rtol=0, atol=1e-11)
    # With nature's draws the causal likelihoods of all (history, outcome) pairs sum to one.
    assert (causal + log_p).exp().sum().item() == pytest.approx(1.0, abs=1e-11)
    if discount > 0:
        assert not torch.allclose(causal, anticipative - log_p, atol=1e-3)


def test_the_soft_value_is_below_log_z_in_a_stochastic_world():
    world, columns = random_world(4, n_states=3, n_actions=2, discount=1.0, horizon=4)
    reward = Linear(columns, [0.9, -0.5, 0.3])
    causal = world.solve(reward).log_z([None], [1])
    anticipative = world.solve(reward, kind="anticipative").log_z([None], [1])
    assert causal < anticipative - 1e-3


def test_the_discounted_weighted_likelihood_is_feature_matching_path_by_path():
    p = np.zeros((4, 2, 4))
    for s in range(4):
        p[s, 0, (s + 1) % 4] = p[s, 1, (s + 2) % 4] = 1
    world = from_arrays(p, discount=0.9)
    reward = Tabular(world, on="states")
    with torch.no_grad():
        reward.theta.copy_(torch.tensor([0.5, -1.0, 0.2, 0.9]))
    path = Path((0, 1, 3, 0, 2), (0, 1, 0, 1))
    values = world.solve(reward).values[0].detach()
    expected = sum(0.9**t * float(reward.theta.detach()[s]) for t, s in enumerate(path.states[:4]))
    expected += float(-values[0] + 0.9**4 * values[2])
    got = Term(demonstrations(None, [path]), exact(world, kind="weighted")).log_prob(reward)
    assert got.item() == pytest.approx(expected, abs=1e-10)


def test_the_discounted_anticipative_kind_without_a_horizon_is_the_limit_of_long_horizons():
    world, columns = random_world(2, n_states=3, n_actions=2, discount=0.5)
    uniform = np.full(world.transitions.n_pairs, math.log(0.5))
    endless = from_arrays(dense(world), discount=0.5, log_base=uniform)
    long = from_arrays(dense(world), discount=0.5, horizon=60, log_base=uniform)
    reward = Linear(columns, [0.9, -0.5, 0.3])
    paths = sample_paths(endless, uniform, [0] * 5, max_steps=4, seed=0)
    a, b = (Term(demonstrations(None, paths), exact(w, kind="anticipative")).log_prob(reward) for w in (endless, long))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match="sums to one"):
        from_arrays(dense(world), discount=0.5).solve(reward, kind="anticipative")


def dense(world):
    t = world.transitions
    p = np.zeros((t.n_states, len(world.actions), t.n_states))
    p[t.state[t.pair_of_outcome], world.action_of_pair[t.pair_of_outcome], t.next_state] = t.probability
    return p


def test_the_implicit_column_is_cloning_and_dpo():
    world, _columns = random_world(5, n_states=4, n_actions=2, discount=1.0, horizon=3)
    generator = torch.Generator().manual_seed(3)
    world.log_base_of_pair = torch.randn(world.transitions.n_pairs, generator=generator).double()
    policy = SoftmaxPolicy(world)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(world.transitions.n_pairs, generator=generator))
    temperature = 0.6
    reward = Implicit(policy, world, temperature=temperature)
    paths = list(sample_paths(world, policy.log_policy().detach(), [0, 1, 2, 0], max_steps=3, seed=1))
    batch = world.collate([None] * 4, paths)
    log_pi = batch.sum(policy.log_prob(batch), discounted=False)
    cloned = Term(demonstrations(None, paths), exact(world), Source(temperature)).log_prob(reward)
    torch.testing.assert_close(cloned, log_pi, rtol=0, atol=1e-12)

    log_ratio = log_pi - world.log_base(batch)
    pair = comparisons([None], [paths[0]], [paths[3]], [0])
    beta = temperature / 0.25  # beta = T / T_s
    dpo = torch.nn.functional.logsigmoid(beta * (log_ratio[0] - log_ratio[3]))
    ours = Term(pair, listed(world), Source(0.25)).log_prob(reward)
    torch.testing.assert_close(ours[0], dpo, rtol=0, atol=1e-12)


def test_an_implicit_reward_away_from_its_temperature_is_solved_like_any_other():
    world, _columns = random_world(5, n_states=4, n_actions=2, discount=1.0, horizon=3)
    policy = SoftmaxPolicy(world, timed=False)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(world.transitions.n_pairs, generator=torch.Generator().manual_seed(3)))
    reward = Implicit(policy, world)
    explicit = Tabular(world, on="pairs")
    with torch.no_grad():
        explicit.theta.copy_(policy.log_policy())
    paths = sample_paths(world, policy.log_policy().detach(), [0, 1, 2], max_steps=3, seed=1)
    rows = demonstrations(None, paths)
    for temperature in (0.5, 2.0):
        a, b = (Term(rows, exact(world), Source(temperature)).log_prob(r) for r in (reward, explicit))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_rewards_on_states_pairs_and_outcomes_agree_where_they_say_the_same():
    world, _columns = random_world(7, discount=0.9)
    of_state = torch.randn(6, 1, generator=torch.Generator().manual_seed(0)).double()
    t = world.transitions
    on_pairs = Features(of_state[torch.from_numpy(t.state)], ("x",), "pairs")
    on_outcomes = Features(of_state[torch.from_numpy(t.state[t.pair_of_outcome])], ("x",), "outcomes")
    paths = sample_paths(world, np.full(t.n_pairs, math.log(1 / 3)), [0] * 9, max_steps=5, seed=0)
    rows = demonstrations(None, paths)
    both = comparisons([None] * 4, paths[:4], paths[4:8], [0, 1, 1, 0])
    results = []
    for f in (Features(of_state, ("x",), "states"), on_pairs, on_outcomes):
        reward = Linear(f, [1.3])
        results.append(
            torch.cat([Term(rows, exact(world)).log_prob(reward), Term(both, listed(world)).log_prob(reward)])
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-12)


def test_ratings_have_one_global_constant_and_comparisons_none():
    world, columns = random_world(1, discount=0.9)
    paths = list(sample_paths(world, np.full(18, math.log(1 / 3)), [0] * 4, max_steps=3, seed=0))
    rows = Feedback.of(Rating(None, y, k, levels=3) for y, k in zip(paths, [0, 2, 1, 1], strict=True))
    source = Source(thresholds=[0.4, -0.3])
    reward = Linear(columns, [0.9, -0.5, 0.3])
    value = Term(rows, listed(world), source).log_prob(reward)
    returns = reward(world.collate([None] * 4, paths)).detach().numpy()
    c = np.array([0.0, 0.4, -0.3])
    expected = [
        k * r - c[k] - np.logaddexp.reduce(np.arange(3) * r - c) for r, k in zip(returns, [0, 2, 1, 1], strict=True)
    ]
    np.testing.assert_allclose(value.detach().numpy(), expected, atol=1e-12)
    with pytest.raises(ConfigError, match="levels"):
        Term(rows, listed(world), Source(thresholds=[0.4]))


def test_a_diverging_partition_function_is_an_infeasible_point_and_the_fit_stays_clear_of_it():
    p = np.zeros((3, 2, 3))
    p[0, 0, 1] = p[0, 1, 2] = p[1, 0, 0] = p[1, 1, 2] = 1
    world = from_arrays(p, terminal=[2])
    columns = features(world, np.ones((4, 1)), names=["step"])
    with pytest.raises(InfeasibleError):
        world.solve(Linear(columns, [0.5]))
    paths = [Path((0, 1, 0, 1, 0, 1, 2), (0, 0, 0, 0, 0, 1))] * 3 + [Path((0, 2), (1,))]
    fit = fit_reward(Linear(columns, [-1.0]), Term(demonstrations(None, paths), exact(world)))
    # Each step goes on with probability z, so z = steps taken on / all steps, and log pi = step: exp(step) = z.
    z = 15 / 19
    assert fit.params["step"] == pytest.approx(math.log(z), abs=1e-8)
    started_outside = fit_reward(Linear(columns, [0.5]), Term(demonstrations(None, paths), exact(world)))
    assert started_outside.params["step"] == pytest.approx(math.log(z), abs=1e-8)
    with pytest.raises(InfeasibleError):
        fit_reward(Linear(columns), Term(demonstrations(None, paths), exact(world)), start={"step": 0.5})


def test_ratings_of_two_levels_are_logistic_regression():
    world, columns = random_world(1, discount=0.9)
    paths = list(sample_paths(world, np.full(18, math.log(1 / 3)), [0] * 40, max_steps=3, seed=0))
    level = np.random.default_rng(0).integers(0, 2, 40)
    term = Term(ratings([None] * 40, paths, level), listed(world))
    fit = fit_reward(Linear(columns), term)
    x = np.stack([Linear(columns, row)(world.collate([None] * 40, paths)).detach().numpy() for row in np.eye(3)], 1)
    x = np.column_stack([x, -np.ones(40)])
    theta = np.zeros(4)
    for _ in range(50):  # iteratively reweighted least squares, as in any textbook
        mean = 1 / (1 + np.exp(-x @ theta))
        theta += np.linalg.solve(x.T @ (x * (mean * (1 - mean))[:, None]), x.T @ (level - mean))
    np.testing.assert_allclose(fit.params, theta, rtol=1e-7)
    covariance = np.linalg.inv(x.T @ (x * (mean * (1 - mean))[:, None]))
    np.testing.assert_allclose(fit.standard_errors(), np.sqrt(np.diag(covariance)), rtol=1e-7)

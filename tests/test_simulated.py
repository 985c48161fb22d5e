"""Sampled and variational likelihoods, each against its own exact kind by enumeration."""

import numpy as np
import pytest
import torch

from irlhf import (
    Base,
    Choice,
    Feedback,
    FromPolicy,
    Key,
    Mixture,
    Pool,
    Source,
    Term,
    comparisons,
    demonstrations,
    exact,
    fit_reward,
    listed,
    sampled,
    variational,
)
from irlhf.errors import ConfigError
from irlhf.functional.choice import set_logsumexp
from irlhf.worlds.tabular import (
    Features,
    Linear,
    Path,
    SoftmaxPolicy,
    SoftPolicy,
    Start,
    features,
    from_arrays,
    sample_paths,
)
from tests.worlds.problems import diamond, random_world

TRUE = [1.0, -0.7, 0.5]


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def strings(tokens=3, length=3, seed=0):
    """All sequences of tokens, with a reward of pairs of neighbors: deterministic, undiscounted."""
    p = np.zeros((tokens + 1, tokens, tokens + 1))
    for a in range(tokens):
        p[:, a, a + 1] = 1.0
    world = from_arrays(p, horizon=length)
    columns = np.random.default_rng(seed).standard_normal((world.transitions.n_pairs, 3))
    return world, features(world, columns, names=["a", "b", "c"])


def paths_of(world, draws):
    """Draws as labels."""
    states, actions = world.states.to_numpy(), world.actions.to_numpy()[world.action_of_pair]
    t, batch = world.transitions, draws.batch
    found = []
    for i in range(batch.n_items):
        own = (batch.item == i).nonzero()[:, 0].numpy()
        end = states[t.next_state[batch.outcome.numpy()[own[-1]]]]
        found.append(Path((*states[batch.state.numpy()[own]], end), tuple(actions[batch.pair.numpy()[own]])))
    return found


def proposals(world, columns):
    def soft(scale):
        return SoftPolicy(world.solve(Linear(columns, [scale * x for x in TRUE])))

    return {"base": Base(), "half": FromPolicy(soft(0.5)), "wrong": FromPolicy(soft(-1.0)), "mixture": soft(-1.0)}


@pytest.mark.parametrize("name", ["base", "half", "wrong", "mixture"])
def test_a_demonstration_among_rivals_is_a_listed_choice_with_offsets(name):
    world, columns = strings()
    proposal = proposals(world, columns)[name]
    reward = Linear(columns, [0.3, 0.2, -0.4])
    source = Source(0.7)
    demonstrated = paths_of(world, world.draw(world.base_policy(), [0, 1], 2, key=Key(5)))
    term = Term(demonstrations(None, demonstrated), sampled(world, proposal, n=3), source)
    rivals = [[] for _ in demonstrated]
    policy = proposal if name == "mixture" else getattr(proposal, "policy", world.base_policy())

    def log_q(path):
        batch = world.collate([None], [path])
        q = policy.log_prob(batch).sum().exp()
        if name == "mixture":
            q = (q + world.base_policy().log_prob(batch).sum().exp()) / 2
        return float(q.log())

    for part in term.prepared.draws:
        for row, path in zip(part.request.tolist(), paths_of(world, part), strict=True):
            rivals[row].append(path)
    rows = []
    for path, others in zip(demonstrated, rivals, strict=True):
        assert len(others) == 3 and all(other.states[0] == path.states[0] for other in others)
        offset = tuple(-log_q(y) for y in (path, *others))  # log mu = 0 here
        rows.append(Choice(None, (path, *others), 0, offset=offset))
    by_list = Term(Feedback.of(rows), listed(world), source).log_prob(reward)
    torch.testing.assert_close(term.log_prob(reward), by_list, rtol=0, atol=1e-12)


def population_score(world, columns, theta, proposal, *, with_offset=True):
    """The expected score of a demonstration (from TRUE) against one rival, summed over all pairs of trajectories."""
    every = world.every([0])
    batch = every.batch
    of = torch.stack([Linear(columns, row)(batch) for row in np.eye(3)], 1).detach()
    log_p = (of @ f64(TRUE) + world.log_base(batch)).log_softmax(0)
    offset = proposal.offset(world, batch)
    q = (world.log_base(batch) - offset).exp()
    assert float(q.sum()) == pytest.approx(1.0, abs=1e-12)
    u = of @ f64(theta) + (offset if with_offset else 0.0)
    lost = torch.sigmoid(u[None, :] - u[:, None])  # the probability that the rival wins
    weight = log_p.exp()[:, None] * q[None, :] * lost
    return torch.einsum("ij,ijk->k", weight, of[:, None] - of[None, :])


@pytest.mark.parametrize("name", ["base", "half", "wrong", "mixture"])
def test_in_the_population_the_true_reward_is_the_root_for_every_proposal(name):
    from irlhf.proposals import as_proposal

    world, columns = strings()
    proposal = as_proposal(proposals(world, columns)[name])
    assert population_score(world, columns, TRUE, proposal).abs().max() < 1e-12
    if name == "half":  # without the offset half of the reward looks right, and the whole of it wrong
        half = [x / 2 for x in TRUE]
        assert population_score(world, columns, half, proposal, with_offset=False).abs().max() < 1e-12
        assert population_score(world, columns, TRUE, proposal, with_offset=False).abs().max() > 0.05


@pytest.mark.parametrize(("name", "limit"), [("base", 5), ("half", 5), ("mixture", 5)])
def test_a_sampled_fit_lies_within_its_standard_errors_of_the_truth(name, limit):
    world, columns = strings()
    policy = world.solve(Linear(columns, TRUE)).log_policy.detach()
    rows = demonstrations(None, sample_paths(world, policy, [0] * 1500, max_steps=9, seed=0))
    fit = fit_reward(Linear(columns), Term(rows, sampled(world, proposals(world, columns)[name], n=8)))
    best = fit_reward(Linear(columns), Term(rows, exact(world)))
    z = (fit.params - np.array(TRUE)) / fit.standard_errors()
    assert z.abs().max() < limit
    # Sampling costs precision, never the sign of it.
    assert (fit.standard_errors() > best.standard_errors()).all()
    assert (fit.standard_errors() < 3 * best.standard_errors()).all()


@pytest.mark.parametrize("discount", [1.0, 0.6])
def test_in_a_stochastic_world_sampling_is_the_anticipative_kind(discount):
    world, columns = random_world(4, n_states=3, n_actions=2, horizon=3, discount=discount)
    world.log_base_of_pair = torch.from_numpy(np.random.default_rng(0).normal(size=6))
    every = world.every([1])
    of = torch.stack([Linear(columns, row)(every.batch) for row in np.eye(3)], 1).detach()
    log_mass = of @ f64(TRUE) + world.log_base(every.batch) + world.log_dynamics(every.batch)
    p = log_mass.softmax(0)
    every_path = paths_of(world, every)
    exactly = Term(demonstrations(None, every_path), exact(world, kind="anticipative")).log_prob(Linear(columns, TRUE))
    torch.testing.assert_close(exactly.exp(), p, rtol=0, atol=1e-12)
    # The population root of ranking against one rival, nature's draws on both sides.
    q = every.batch.sum(world.base_policy().log_prob(every.batch), discounted=False) + world.log_dynamics(every.batch)
    offset = Base().offset(world, every.batch)
    u = of @ f64(TRUE) + offset
    weight = p[:, None] * q.exp()[None, :] * torch.sigmoid(u[None, :] - u[:, None])
    score = torch.einsum("ij,ijk->k", weight, of[:, None] - of[None, :])
    assert score.abs().max() < 1e-12
    drawn = torch.multinomial(p, 4000, True, generator=torch.Generator().manual_seed(0))
    rows = demonstrations(None, [every_path[int(i)] for i in drawn])
    fit = fit_reward(Linear(columns), Term(rows, sampled(world, n=8, kind="anticipative")))
    assert ((fit.params - np.array(TRUE)) / fit.standard_errors()).abs().max() < 5
    causal = fit_reward(Linear(columns), Term(rows, exact(world)))
    assert ((causal.params - np.array(TRUE)) / causal.standard_errors()).abs().max() > 5  # another model


def test_a_pool_needs_no_density_and_gives_a_reward_relative_to_it():
    world, columns = strings()
    tilt = Linear(columns, [0.4, 0.4, 0.4])  # what everybody likes: in the pool as in the demonstrations
    joint = Linear(columns, [x + 0.4 for x in TRUE])
    crowd = sample_paths(world, world.solve(tilt).log_policy.detach(), [0] * 6000, max_steps=9, seed=0)
    rows = demonstrations(
        None, sample_paths(world, world.solve(joint).log_policy.detach(), [0] * 3000, max_steps=9, seed=1)
    )
    term = Term(rows, sampled(world, Pool(crowd), n=8))
    assert float(term.prepared.offset.abs().max()) == 0.0
    fit = fit_reward(Linear(columns), term)
    assert ((fit.params - np.array(TRUE)) / fit.standard_errors()).abs().max() < 5
    with pytest.raises(ConfigError, match="no trajectory from"):
        Term(rows, sampled(world, Pool([Path((1, 1, 1), (0, 0, 0))])))


def test_rivals_are_fixed_by_their_key_and_renewed_by_another():
    world, columns = strings()
    rows = demonstrations(None, sample_paths(world, np.full((3, 12), -np.log(3)), [0] * 20, max_steps=9, seed=0))
    reward = Linear(columns, TRUE)
    one, same, other = (Term(rows, sampled(world, n=4, key=Key(k))).log_prob(reward) for k in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    term = Term(rows, sampled(world, n=4))
    again = term.redrawn(Base(), Key(7))
    assert not torch.equal(term.log_prob(reward), again.log_prob(reward))
    assert torch.equal(term.on(rows).log_prob(reward), term.log_prob(reward))


def test_rivals_that_came_to_no_end_have_no_weight():
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[0, 1, 1] = 1.0
    world = from_arrays(p, terminal=[1])
    reward = Linear(Features(torch.tensor([[-1.0], [-1.0]]).double(), ("step",), "pairs"), [3.0])
    row = demonstrations(None, [Path((0, 1), (1,))])

    class Hurried:  # walks are cut after two steps
        def draw(self, world, origins, n, key):
            return [world.draw(world.base_policy(), origins, n, key=key, max_steps=2)]

        def offset(self, world, batch):
            return Base().offset(world, batch)

    term = Term(row, sampled(world, Hurried(), n=400))
    (draws,) = term.prepared.draws
    assert 0 < int((~draws.whole).sum()) < 400
    u = torch.cat([torch.tensor([-3.0 + np.log(2)]).double(), *(_utility(draws)[None, draws.whole])])
    assert float(term.log_prob(reward).detach()) == pytest.approx(float(u[0] - u.logsumexp(0)), abs=1e-12)


def _utility(draws):
    steps = torch.bincount(draws.batch.item).double()
    return -3.0 * steps + steps * np.log(2)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"discount": 0.9}, "has discount 0.9"),
        ({"horizon": 3}, "is stochastic"),
        ({"discount": 0.5, "horizon": 3}, "and"),
    ],
)
def test_where_the_kinds_differ_sampling_has_to_say_which_it_means(options, why):
    world, _ = random_world(0, **options)
    with pytest.raises(ConfigError, match=why):
        sampled(world)
    assert sampled(world, kind="anticipative").n == 8
    with pytest.raises(ConfigError, match="not the causal"):
        sampled(world, kind="causal")


def test_what_sampling_cannot_use_is_refused_by_name():
    world, columns = strings()
    whole, early = Path((0, 1, 1, 1), (0, 0, 0)), Path((0, 1), (0,))
    with pytest.raises(ConfigError, match="'late' is not whole"):
        Term(demonstrations(None, [whole, early], ids=["ok", "late"]), sampled(world))
    with pytest.raises(ConfigError, match="use listed"):
        Term(comparisons([None], [whole], [whole], [0]), sampled(world))
    never = SoftmaxPolicy(world)
    with torch.no_grad():
        never.logits[:, 0] = -torch.inf
    with pytest.raises(ConfigError, match="cannot draw demonstration '0'"):
        Term(demonstrations(None, [whole]), sampled(world, FromPolicy(never)))
    assert torch.isfinite(Term(demonstrations(None, [whole]), sampled(world, never)).prepared.offset).all()
    with pytest.raises(ConfigError, match="at least 1"):
        sampled(world, n=0)
    with pytest.raises(ConfigError, match="a proposal is"):
        sampled(world, Linear(columns))
    with pytest.raises(ConfigError, match="not Pool"):
        Mixture(Base(), Pool([whole]))


def test_the_density_of_a_mixture_is_its_own_whatever_its_shares():
    world, columns = strings()
    policy = SoftPolicy(world.solve(Linear(columns, TRUE)))
    every = world.every([0]).batch
    mixture = Mixture(Base(), FromPolicy(policy), shares=[3, 1])
    parts = [FromPolicy(p).offset(world, every) for p in (world.base_policy(), policy)]
    expected = -torch.log(0.75 * (-parts[0]).exp() + 0.25 * (-parts[1]).exp())
    torch.testing.assert_close(mixture.offset(world, every), expected, rtol=0, atol=1e-12)
    draws = mixture.draw(world, [Start(0)] * 400, 5, Key(0))
    counts = [len(d.request) for d in draws]
    assert sum(counts) == 2000 and abs(counts[0] - 1500) < 5 * (2000 * 0.75 * 0.25) ** 0.5
    assert sorted(torch.cat([d.request for d in draws]).tolist()) == [k for k in range(400) for _ in range(5)]


# ------------------------------------------------------------------------------------------------------- variational


@pytest.mark.parametrize("options", [{"horizon": 3, "discount": 0.7}, {"horizon": 4}, {"discount": 0.6}])
def test_the_variational_value_bounds_the_weighted_likelihood_and_meets_it_at_the_soft_policy(options):
    world, columns = random_world(4, n_states=3, n_actions=2, **options)
    world.log_base_of_pair = torch.from_numpy(np.random.default_rng(0).normal(size=6))
    reward, temperature = Linear(columns, TRUE), 0.8
    solution = world.solve(reward, temperature=temperature)
    start = 1
    paths = sample_paths(world, solution.log_policy.detach(), [start] * 300, max_steps=40, seed=0)
    rows, source = demonstrations(None, paths), Source(temperature)
    v = float(solution.log_z([None], [start]).detach())
    own = world.collate([None] * 300, paths)
    attained = own.sum(reward.step(own) / temperature + world.log_base_step(own)).detach()
    for policy, tight in ((SoftPolicy(solution), True), (world.base_policy(), False)):
        n = 4000
        term = Term(rows, variational(world, policy, n=n), source)
        bound = float((attained - term.log_prob(reward).detach()).mean())
        (draws,) = term.prepared.draws
        each = draws.batch.sum(
            reward.step(draws.batch) / temperature + world.log_base_step(draws.batch) - draws.log_q
        ).detach()
        assert bound == pytest.approx(float(each.mean()), abs=1e-10)
        error = float(each.std()) / n**0.5
        left = 1e-3 if "horizon" not in options else 0.0  # the tail of an endless walk that is cut
        if tight:
            assert abs(bound - v) < 5 * error + left
        else:
            assert bound < v - 20 * error


def test_the_gradient_of_the_variational_value_is_demonstrations_minus_policy():
    world, columns = strings()
    policy = proposals(world, columns)["half"].policy
    rows = demonstrations(None, sample_paths(world, np.full((3, 12), -np.log(3)), [0] * 30, max_steps=9, seed=0))
    reward = Linear(columns, TRUE)
    term = Term(rows, variational(world, policy, n=50))
    (gradient,) = torch.autograd.grad(term.log_prob(reward).mean(), reward.theta)
    demonstrated = torch.stack([Linear(columns, e)(term.prepared.batch).mean() for e in np.eye(3)])
    drawn = torch.stack([Linear(columns, e)(term.prepared.draws[0].batch).mean() for e in np.eye(3)])
    torch.testing.assert_close(gradient, (demonstrated - drawn).detach(), rtol=0, atol=1e-12)


def test_a_saddle_point_is_not_climbed_alone_and_has_no_standard_errors():
    world, columns = strings()
    rows = demonstrations(None, sample_paths(world, np.full((3, 12), -np.log(3)), [0] * 9, max_steps=9, seed=0))
    with pytest.raises(ConfigError, match="fit_jointly"):
        fit_reward(Linear(columns), Term(rows, variational(world, world.base_policy())))
    with pytest.raises(ConfigError, match="needs a policy"):
        Term(rows, variational(world)).log_prob(Linear(columns))
    endless, _ = random_world(0, discount=0.9)
    with pytest.raises(ConfigError, match="stops before its end"):
        Term(demonstrations(None, [Path((0, 0), (0, 0))]), variational(endless))


def test_networks_are_sampled_from_origin_to_destination():
    world, reward = diamond()
    contexts = [5, 5, 4]
    solution = world.solve(reward, [5, 4])
    paths = sample_paths(
        world, solution.log_policy.detach()[[0, 0, 1]], [0, 1, 0], destinations=contexts, max_steps=9, seed=0
    )
    term = Term(demonstrations(contexts, paths), sampled(world, SoftPolicy(solution), n=6))
    assert term.prepared.origins == [Start(0, 5), Start(1, 5), Start(0, 4)]
    # At the policy of the same reward every weight of that half is the same: log Z - log of the mixture's share.
    every = world.every([Start(0, 5)])
    w = reward(every.batch) + Mixture(Base(), FromPolicy(SoftPolicy(solution))).offset(world, every.batch)
    q = (world.log_base(every.batch) + reward(every.batch) - w).exp()
    total = set_logsumexp(w + q.log(), every.request, 1).detach()
    torch.testing.assert_close(total, solution.log_z([5], [0]).detach(), rtol=0, atol=1e-12)

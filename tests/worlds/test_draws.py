"""Drawing from a policy, and policies themselves, against the list of all trajectories."""

import numpy as np
import pytest
import torch

from irlhf.errors import ConfigError
from irlhf.functional.choice import set_logsumexp
from irlhf.randomness import Key
from irlhf.worlds.tabular import Linear, Path, SoftmaxPolicy, SoftPolicy, Start, from_arrays
from tests.worlds.problems import diamond, random_world

HORIZON = 3


def stochastic(**options):
    world, columns = random_world(3, n_states=3, n_actions=2, horizon=HORIZON, **options)
    return world, Linear(columns, [0.9, -0.5, 0.3])


def random_policy(world, **options):
    policy = SoftmaxPolicy(world, **options)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def test_every_trajectory_is_listed_once_and_all_probabilities_sum_to_one():
    world, _ = stochastic()
    every = world.every([0, 2])
    assert every.log_q is None and bool(every.whole.all())
    for policy in (random_policy(world), random_policy(world, timed=False), world.base_policy()):
        log_p = every.batch.sum(policy.log_prob(every.batch), discounted=False) + world.log_dynamics(every.batch)
        total = set_logsumexp(log_p.detach(), every.request, 2).exp()
        torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("timed", [True, False])
def test_draws_have_the_frequencies_and_the_log_probabilities_of_the_policy(timed):
    world, _ = stochastic(discount=0.7)
    policy = random_policy(world, timed=timed)
    n = 20_000
    draws = world.draw(policy, [1], n, key=Key(0))
    assert bool(draws.whole.all()) and draws.request.shape == (n,)
    torch.testing.assert_close(draws.log_q, policy.log_prob(draws.batch).detach(), rtol=0, atol=1e-12)
    every = world.every([1])
    log_p = every.batch.sum(policy.log_prob(every.batch), discounted=False) + world.log_dynamics(every.batch)
    p = log_p.detach().exp().numpy()

    def names(batch):
        return [tuple(row) for row in batch.outcome.reshape(-1, HORIZON).tolist()]

    counts = dict.fromkeys(names(every.batch), 0)
    for name in names(draws.batch):
        counts[name] += 1
    observed = np.array(list(counts.values())) / n
    assert (np.abs(observed - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12).all()
    assert draws.batch.step_weight[:HORIZON].tolist() == pytest.approx([1.0, 0.7, 0.49])


def test_draws_are_laid_out_as_collate_would():
    world, reward = diamond()
    starts = [Start(0, 5), Start(1, 4), Start(0, 3)]
    policy = SoftPolicy(world.solve(reward, [5, 4, 3]))
    draws = world.draw(policy, starts, 4, key=Key(1))
    assert draws.request.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and bool(draws.whole.all())
    assert world.origins(draws.batch) == [s for s in starts for _ in range(4)]
    states = world.states.to_numpy()
    paths, goals = [], []
    for i in range(12):
        own = (draws.batch.item == i).nonzero()[:, 0]
        labels = states[draws.batch.state[own].numpy()].tolist()
        labels.append(states[world.transitions.next_state[int(draws.batch.outcome[own[-1]])]])
        paths.append(Path(tuple(labels), tuple(labels[1:])))
        goals.append(starts[i // 4].destination)
    again = world.collate(goals, paths)
    assert again.contexts == draws.batch.contexts
    for name in ("context", "item", "step_weight", "state", "pair", "outcome", "time"):
        torch.testing.assert_close(getattr(draws.batch, name), getattr(again, name), rtol=0, atol=0)
    assert bool(world.whole(again).all())


def test_a_walk_depends_on_its_key_and_its_number_alone():
    world, _ = stochastic()
    policy = random_policy(world)
    one = world.draw(policy, [0, 1, 2], 5, key=Key(0).at("rivals"))
    same = world.draw(policy, [0, 1, 2], 5, key=Key(0).at("rivals"))
    other = world.draw(policy, [0, 1, 2], 5, key=Key(0).at("other"))
    assert torch.equal(one.batch.outcome, same.batch.outcome)
    assert not torch.equal(one.batch.outcome, other.batch.outcome)
    # The first walkers do not notice how long the others walk.
    fewer = world.draw(policy, [0], 5, key=Key(0).at("rivals"))
    assert torch.equal(fewer.batch.outcome, one.batch.outcome[: 5 * HORIZON])


def test_walks_that_find_no_end_are_cut_and_say_so():
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[0, 1, 1] = 1.0
    world = from_arrays(p[:, :, :], terminal=[1])
    draws = world.draw(world.base_policy(), [0], 4000, key=Key(0), max_steps=3)
    # Each step goes on with probability 1/2: one of eight is still on its way after three.
    share = 1 - draws.whole.double().mean().item()
    assert abs(share - 1 / 8) < 5 * (1 / 8 * 7 / 8 / 4000) ** 0.5
    assert bool((draws.whole == world.whole(draws.batch)).all())
    discounted, _ = random_world(0, discount=0.9)
    cut = discounted.draw(discounted.base_policy(), [0], 3, key=Key(0))
    assert not cut.whole.any() and len(cut.batch.item) == 3 * 88  # 0.9 to the 88 is 1e-4
    assert not discounted.whole(cut.batch).any()
    with pytest.raises(ConfigError, match="horizon"):
        world.every([0])


def test_a_trajectory_with_a_gap_or_without_an_end_is_not_whole():
    world, _ = stochastic()
    labels = [
        Path((0, 0, 0), (0, 0, 0)),
        Path((0, 0), (0, 0)),
        Path((0, 0), (0, 0), times=(1, 2)),
        Path((0,), (0,), times=(2,)),
    ]
    assert world.whole(world.collate([None] * 4, labels)).tolist() == [True, False, False, False]


def test_a_policy_of_contexts_has_numbers_of_its_own_for_each_and_refuses_others():
    world, _ = diamond()
    contexts = [5, 4]
    policy = random_policy(world, contexts=contexts)
    assert policy.logits.shape == (2, world.transitions.n_pairs)
    draws = world.draw(policy, [Start(0, 5), Start(0, 4)], 200, key=Key(0))
    torch.testing.assert_close(draws.log_q, policy.log_prob(draws.batch).detach(), rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="no numbers for the context 3"):
        world.draw(policy, [Start(0, 3)], 1, key=Key(0))
    with pytest.raises(ConfigError, match="Start"):
        world.draw(policy, [0], 1, key=Key(0))


def test_the_policy_of_a_solution_is_the_solution():
    world, reward = stochastic(discount=0.8)
    solution = world.solve(reward)
    every = world.every([0])
    log_pi = SoftPolicy(solution).log_prob(every.batch)
    torch.testing.assert_close(log_pi, solution.step_log_prob(every.batch).detach(), rtol=0, atol=1e-14)
    with pytest.raises(ConfigError, match="nature"):
        SoftPolicy(world.solve(reward, kind="anticipative"))


def test_an_implicit_reward_that_varies_with_time_or_context_is_solved_as_it_is_listed():
    from irlhf import Choice, Feedback, Source, Term, demonstrations, exact, listed
    from irlhf.rewards import Implicit

    deterministic = from_arrays(np.eye(3)[np.array([[0, 1], [1, 2], [2, 0]])], horizon=HORIZON)
    policy = random_policy(deterministic)
    reward = Implicit(policy, deterministic)
    paths = [Path(tuple(s), tuple(a)) for s, a in _paths_of(deterministic)]
    rows = Feedback.of(Choice(None, tuple(paths), k) for k in range(len(paths)))
    for temperature in (1.0, 0.4):
        by_list = Term(rows, listed(deterministic), Source(temperature)).log_prob(reward)
        for kind in ("causal", "anticipative"):
            by_solver = Term(demonstrations(None, paths), exact(deterministic, kind), Source(temperature))
            torch.testing.assert_close(by_solver.log_prob(reward), by_list, rtol=0, atol=1e-12)
    town, _ = diamond()
    of_goals = Implicit(random_policy(town, contexts=[5, 3]), town)
    for goal in (5, 3):
        paths = [Path(tuple(s), tuple(a)) for s, a in _paths_of(town, Start(0, goal))]
        rows = Feedback.of(Choice(goal, tuple(paths), k) for k in range(len(paths)))
        by_list = Term(rows, listed(town), Source(0.4)).log_prob(of_goals)
        by_solver = Term(demonstrations([goal] * len(paths), paths), exact(town), Source(0.4)).log_prob(of_goals)
        torch.testing.assert_close(by_solver, by_list, rtol=0, atol=1e-12)


def _paths_of(world, start=0):
    batch = world.every([start]).batch
    states, actions = world.states.to_numpy(), world.actions.to_numpy()[world.action_of_pair]
    for i in range(batch.n_items):
        own = (batch.item == i).nonzero()[:, 0]
        end = states[world.transitions.next_state[int(batch.outcome[own[-1]])]]
        yield [*states[batch.state[own].numpy()], end], actions[batch.pair[own].numpy()].tolist()

"""What feedback cannot tell, by construction: shaping, constants, collinear features, the scale of a temperature."""

import numpy as np
import pytest
import torch

from irlhf import Source, Term, comparisons, demonstrations, exact, fit_reward, listed, ratings
from irlhf.errors import ConfigError
from irlhf.identification import blind_spots, identify
from irlhf.worlds.tabular import Features, Linear, Tabular, sample_paths
from tests.test_preferences import segments
from tests.worlds.problems import random_world


def with_column(columns, values, name, on="pairs"):
    return Features(torch.cat([columns.values, torch.as_tensor(values)[:, None]], 1), (*columns.names, name), on)


def shaping(world, potential):
    t = world.transitions
    return world.discount * (t.matrix @ potential) - potential[t.state]


def did(world, columns, theta, n=80, seed=0):
    start = [int(k) for k in np.arange(n) % world.transitions.n_states]
    log_policy = world.solve(Linear(columns, theta)).log_policy[0].detach()
    return demonstrations([None] * n, sample_paths(world, log_policy, start, max_steps=20, seed=seed))


def said(world, n=60, length=3, seed=1):
    paths = segments(world, 2 * n, length, seed)
    answers = np.random.default_rng(seed).integers(2, size=n).tolist()
    return comparisons([None] * n, paths[:n], paths[n:], answers)


def test_shaping_is_named_and_the_source_that_sees_it():
    world, columns = random_world(1, n_states=4, n_actions=2, discount=0.9)
    both = with_column(columns, shaping(world, np.array([0.3, -1.0, 2.0, 0.5])), "moves")
    people, pairs = did(world, both, [1.0, -0.5, 0.3, 0.0]), said(world)
    alone = identify(Linear(both), Term(people, exact(world)))
    assert len(alone.joint) == 1 and set(alone.joint[0].direction) == {"moves"}
    assert "shaping in expectation" in alone.joint[0].meaning and not alone.identified
    # Segments that end where they may see it: partial returns move with the potential.
    joint = identify(Linear(both), [Term(people, exact(world)), Term(pairs, listed(world))])
    assert joint.identified and joint.by_source["demonstrations"][0].seen_by == ["comparisons"]
    assert "seen by comparisons" in str(joint) and "All 4 parameters" in str(joint)


def test_shaping_outcome_by_outcome_has_the_stronger_name():
    world, _ = random_world(1, n_states=4, n_actions=2, discount=0.9)
    t, potential = world.transitions, np.array([0.3, -1.0, 2.0, 0.5])
    rng = np.random.default_rng(0)
    per_outcome = 0.9 * potential[t.next_state] - potential[t.state[t.pair_of_outcome]]
    values = torch.from_numpy(np.stack([rng.normal(size=t.n_outcomes), per_outcome], 1))
    columns = Features(values, ("x", "moves"), "outcomes")
    found = identify(Linear(columns), Term(did(world, columns, [1.0, 0.0]), exact(world)))
    assert [b.direction for b in found.joint] == [{"moves": 1.0}]
    assert found.joint[0].meaning.startswith("is potential shaping")


def test_a_constant_and_collinear_features():
    world, columns = random_world(2, n_states=4, n_actions=2, discount=0.9)
    with_one = with_column(columns, np.ones(8), "constant")
    twice = with_column(with_one, 2 * columns.values[:, 0].numpy(), "again")
    found = identify(Linear(twice), Term(did(world, twice, [1.0, -0.5, 0.3, 0.0, 0.0]), exact(world)))
    meanings = sorted(b.meaning for b in found.joint)
    assert meanings == ["adds the same to every step", "changes no reward: these features are collinear"]
    levels = np.random.default_rng(0).integers(2, size=30).tolist()
    of_ratings = ratings([None] * 30, segments(world, 30, 3, 4), levels, levels=2)
    also = identify(Linear(with_one), Term(of_ratings, listed(world)))  # all segments have three steps
    assert [set(b.direction) for b in also.joint] == [{"constant", "ratings.thresholds"}]


def test_before_and_after_the_fit_agree_and_the_fit_says_what_it_is():
    world, columns = random_world(1, n_states=4, n_actions=2, discount=0.9)
    both = with_column(columns, shaping(world, np.array([0.3, -1.0, 2.0, 0.5])), "moves")
    term = Term(did(world, both, [1.0, -0.5, 0.3, 0.0]), exact(world))
    before = identify(Linear(both), term)
    fit = fit_reward(Linear(both), term)
    after = blind_spots(fit)
    assert [b.direction.keys() for b in before.joint] == [b.direction.keys() for b in after.joint]
    assert fit.status.name == "UNIDENTIFIED" and "shaping in expectation" in fit.summary()
    assert np.isinf(fit.standard_errors()["moves"]) and np.isfinite(fit.standard_errors()[["a", "b", "c"]]).all()


def test_a_reward_of_every_state_cannot_be_told_by_demonstrations_alone():
    """Kim et al. 2021: with as many states as rewards, one dimension is lost for every potential."""
    world, columns = random_world(3, n_states=4, n_actions=2, discount=0.9)
    people = did(world, columns, [1.0, -0.5, 0.3])
    of_pairs = identify(Tabular(world, on="pairs"), Term(people, exact(world)))
    assert len(of_pairs.joint) == 4  # potentials of four states, the constant among them
    assert of_pairs.parameters == 8 and "4 of 8 directions" in str(of_pairs)


def test_the_scale_against_a_temperature():
    world, columns = random_world(2, n_states=4, n_actions=2, discount=0.9)
    pairs = said(world)
    only_there = with_column(columns, np.eye(8)[0], "first")
    term = Term(did(world, columns, [1.0, -0.5, 0.3]), exact(world))
    noisy = Term(pairs, listed(world), Source(fit_temperature=True))
    fit = fit_reward(Linear(columns), [term, noisy])
    assert blind_spots(fit).identified
    alone = identify(Linear(only_there), [noisy], fixed={"a": 0.0, "b": 0.0, "c": 0.0}, at={"first": 1.0})
    assert [b.meaning for b in alone.joint] == ["is the scale of the reward against temperatures"]
    assert set(alone.joint[0].direction) == {"first", "comparisons.log_temperature"}


def test_what_cannot_be_asked():
    world, _ = random_world(2, n_states=4, n_actions=2, discount=0.9)
    with pytest.raises(ConfigError, match="no parameter"):
        identify(Tabular(world), Term(said(world), listed(world)), fixed={"x": 1.0})

"""Taxi routes: what the files hold, the numbers that exact fits reach on them, and pairs that need their offsets."""

import re

import numpy as np
import pytest
import torch

from irlhf import Term, fit_reward, listed
from irlhf.demos import rivals, shanghai, taxi
from irlhf.errors import ConfigError
from irlhf.gather import demonstrations
from irlhf.randomness import Key
from irlhf.worlds.tabular import Features, Linear
from irlhf.worlds.tabular.maps import network_map


@pytest.fixture(scope="module")
def city():
    try:
        return shanghai.load()
    except ConfigError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def hundred(city):
    return taxi.learn(city, "eight", city.train[100])


def test_the_network_and_the_folds_are_those_of_the_files(city):
    t = city.world.transitions
    assert (t.n_states, t.n_pairs, city.world.deterministic) == (714, 1737, True)
    assert {size: len(routes) for size, routes in city.train.items()} == {100: 100, 1000: 1000, 10_000: 10_000}
    assert len(city.test) == 4893
    for routes in (*city.train.values(), city.test):
        for x, path in zip(taxi.destinations(routes), routes.trajectories, strict=True):
            assert path.states[-1] == x
            assert len(set(path.states)) == len(path.states) >= 15
    assert torch.allclose(city.many.values.mean(0), torch.zeros(1).double(), atol=1e-9)


def test_links_are_where_they_are_and_turns_are_what_they_are_called(city):
    table = city.world.outcome_table()
    # A link starts where the one before it ends, and is about as long as the file says: nodes are joined by a line.
    before, after = (table[c].to_numpy(int) for c in ("state", "next_state"))
    assert np.array_equal(city.segments[before, 1], city.segments[after, 0])
    line = np.linalg.norm(city.segments[:, 1] - city.segments[:, 0], axis=1) / 100
    assert (line <= 1.01 * city.length).all()
    assert np.median(line / city.length) == pytest.approx(1, abs=0.01)
    eight = dict(zip(city.eight.names, city.eight.values.T.numpy(), strict=True))
    for name in ("left", "right"):
        assert eight[name][table["action"] == name].all()
        assert not eight[name][table["action"] == "ahead"].any()
    assert eight["u-turn"][table["action"] == "back"].mean() > 0.98


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("taxi")


@pytest.fixture(scope="module")
def numbers(city, folder):
    return taxi.main(quick=True, report=folder / "report.html")


def test_the_linear_reward_predicts_new_routes_as_measured(numbers, city):
    assert numbers["eight.100.test"] == pytest.approx(-4.2891, abs=0.01)
    assert numbers["eight.1000.test"] == pytest.approx(-4.2845, abs=0.01)
    for name in city.eight.names:
        assert abs(numbers[f"100.{name}"] - numbers[f"1000.{name}"]) < 4 * numbers[f"100.{name}.se"]


def test_more_is_found_than_eight_features_say(numbers):
    assert numbers["neural.1000.test"] > numbers["eight.1000.test"] + 0.1  # after 20 steps
    assert numbers["turns.1000.test"] > numbers["neural.1000.test"]
    assert numbers["turns.100.test"] < numbers["eight.100.test"]
    assert numbers["eight.new"] < numbers["eight.1000.test"]
    assert numbers["eight.best"] > numbers["shortest"] + 0.05


def test_pairs_without_their_offset_learn_the_reward_minus_that_of_the_proposal(numbers, city):
    for name in city.eight.names:
        right, wrong = (numbers[f"{source}.{name}"] for source in ("pairs", "bare"))
        assert wrong == pytest.approx(right - numbers[f"proposal.{name}"], abs=1e-4)
    assert numbers["bare.length/100 m"] > 0  # a driver who likes to go far
    assert np.isnan(numbers["bare.test"])


def test_rivals_cost_precision_and_those_of_the_fit_itself_give_it_back(numbers):
    """Against the exact fit to the same routes: a poor proposal is far off, the policy of the fit is not."""
    few, many, own = (numbers[f"rivals.{name}.error"] for name in ("1", "32", rivals.AGAIN))
    assert few > many > 1.5 > own > 1.0
    assert numbers[f"rivals.{rivals.AGAIN}.apart"] < 2.0 < numbers["rivals.8.apart"]
    assert abs(numbers[f"rivals.{rivals.AGAIN}.test"] - numbers["rivals.exact.test"]) < 0.01
    assert numbers["rivals.log_z.trusted"] < numbers["rivals.log_z"]


def test_the_page_has_the_maps_and_says_where_the_data_are_from(numbers, folder):
    page = (folder / "report.html").read_text()
    assert "What 100 m of each link cost" in page and "routes through the link" in page
    assert "Zhao and Liang (2022)" in page and "not part of irlhf" in page


def test_expected_use_is_what_many_sampled_routes_do(city, hundred):
    routes = city.train[1000]
    expected = taxi.expected_use(city, hundred.reward, routes)
    repeated = np.mean([sampled_use(city, hundred.reward, routes, seed) for seed in range(4)], axis=0)
    busy = expected > 20
    assert busy.sum() > 100
    assert (np.abs(repeated - expected)[busy] < 5 * np.sqrt(3 * expected[busy] / 4)).all()  # uses of a turn overlap


def sampled_use(city, reward, routes, seed):
    paths = taxi.drawn(city, reward, routes, Key(seed).numpy())
    return taxi.observed_use(city, demonstrations(taxi.destinations(routes), paths))


def test_pairs_recover_a_reward_with_their_offsets_and_miss_it_by_that_of_the_proposal_without(city):
    """On routes drawn from a reward, where the model is true."""
    rng = Key(5).numpy()
    names = city.eight.names
    true = Linear(city.eight, [-0.3, -0.4, -0.9, -0.9, -1.7, 0.0, 0.3, 0.2])
    q = Linear(taxi.only(city.eight, taxi.COMMON), [-0.9, -1.9])
    real = city.train[1000] + city.train[1000]
    goals = taxi.destinations(real)
    routes = demonstrations(goals, taxi.drawn(city, true, real, rng))
    with_offset, without = (
        fit_reward(Linear(city.eight), Term(told, listed(city.world))) for told in taxi.pairs(city, q, routes, rng)
    )
    error = with_offset.standard_errors().to_numpy()
    theta = true.theta.detach().numpy()
    assert (np.abs(with_offset.params.to_numpy() - theta) < 4 * error).all()
    of_q = np.array([dict(zip(taxi.COMMON, q.theta.tolist(), strict=True)).get(name, 0.0) for name in names])
    assert without.params.to_numpy() == pytest.approx(with_offset.params.to_numpy() - of_q, abs=1e-4)


def test_the_best_route_is_found_by_any_reward(city):
    """Routes of one least cost are all best; made dearer where it matters, they are not."""
    t = city.world.transitions
    length = city.length[t.next_state]
    share = taxi.best_taken(city, -length, city.test)
    assert 0.2 < share < 0.5
    assert taxi.best_taken(city, -3 * length, city.test) == share
    assert taxi.best_taken(city, -np.ones(t.n_pairs), city.test) != share


def test_without_the_data_one_sentence_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv(shanghai.VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=re.escape(f"set {shanghai.VARIABLE}")) as error:
        taxi.main(quick=True)
    assert "\n" not in str(error.value)
    monkeypatch.setenv(shanghai.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=r"has no edge\.txt"):
        taxi.main(quick=True)


def test_a_map_has_a_line_for_each_segment_in_each_panel():
    segments = np.array([[[0, 0], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 1]]], float)
    values = np.array([1.0, 2.0, np.nan])
    drawn = network_map(segments, {"one": values, "two": values}, title="t", what="w", bar=(0.5, "half"))
    assert drawn.title == "t" and "half" in drawn.svg
    with pytest.raises(ConfigError, match="one number for each"):
        network_map(segments, {"one": values[:2]}, title="t", what="w")


def test_some_columns_of_features():
    table = Features(torch.arange(6).double().reshape(2, 3), ("a", "b", "c"), "pairs")
    assert taxi.only(table, ("c", "a")).values.tolist() == [[2, 0], [5, 3]]

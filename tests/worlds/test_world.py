"""Building a tabular world, laying out paths, walking through it."""

import gymnasium
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from irlhf.errors import ConfigError
from irlhf.worlds.tabular import (
    Linear,
    Path,
    Paths,
    edge_table,
    enumerate_paths,
    features,
    from_arrays,
    from_gymnasium,
    from_networkx,
    from_table,
    sample_paths,
)
from tests.worlds.problems import diamond, random_world, replacement


def table(*rows):
    return pd.DataFrame(rows, columns=["state", "action", "next_state", "probability"])


def test_a_world_from_a_table_sorts_adds_up_and_keeps_labels():
    world = from_table(
        table(("b", 1, "c", 0.5), ("a", 0, "b", 1.0), ("b", 1, "a", 0.25), ("b", 1, "a", 0.25), ("b", 0, "c", 1.0)),
        discount=0.9,
    )
    assert world.states.tolist() == ["a", "b", "c"]
    assert world.pair_table().to_numpy().tolist() == [["a", 0], ["b", 0], ["b", 1]]
    assert world.outcome_table().probability.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert world.transitions.terminal.tolist() == [False, False, True]
    assert not world.deterministic


def test_dense_and_sparse_arrays_give_the_same_world():
    world, _ = random_world(0, discount=0.9)
    t = world.transitions
    dense = np.zeros((6, 3, 6))
    dense[t.state[t.pair_of_outcome], world.action_of_pair[t.pair_of_outcome], t.next_state] = t.probability
    sparse = from_arrays([sp.csr_array(dense[:, a]) for a in range(3)], discount=0.9)
    for name in ("state", "first_outcome", "next_state", "probability"):
        np.testing.assert_array_equal(getattr(sparse.transitions, name), getattr(t, name))


def test_networkx_edges_are_actions():
    graph = nx.Graph()
    graph.add_edge("home", "work", length=2.0)
    graph.add_edge("work", "shop", length=1.0)
    world = from_networkx(graph)
    assert world.deterministic and world.destinations
    columns = features(world, edge_table(graph, ["length"]))
    assert columns.names == ("length",) and columns.values[:, 0].tolist() == [2.0, 2.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="no attribute 'toll'"):
        edge_table(graph, ["toll"])


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_gymnasium_toy_text_ends_where_the_environment_says_terminated(name):
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error:
        pytest.skip(f"this Gymnasium has no {name}")
    world = from_gymnasium(env, discount=0.99)
    dynamics = env.unwrapped.P
    rng = np.random.default_rng(0)
    for s in rng.choice(len(dynamics), 40):
        if world.transitions.terminal[s]:
            continue
        for a, outcomes in dynamics[int(s)].items():
            pair = int(world.pair_numbers(np.array([s]), world.actions.get_indexer([a]))[0])
            row = world.transitions.matrix[[pair]].toarray()[0]
            expected = np.zeros(world.transitions.n_states)
            for p, following, _, terminated in outcomes:
                again = ("terminated", following)
                k = world.states.get_loc(again) if terminated and again in world.states else following
                assert world.transitions.terminal[k] == terminated
                expected[k] += p
            np.testing.assert_allclose(row, expected)


def test_a_loop_that_terminates_is_an_end():
    dynamics = {0: {0: [(1.0, 1, 0.0, False)], 1: [(1.0, 0, 1.0, True)]}, 1: {0: [(1.0, 0, 0.0, False)]}}
    world = from_gymnasium(dynamics, discount=1.0)
    stop = world.pair_numbers(np.array([0]), world.actions.get_indexer([1]))[0]
    assert world.states[world.transitions.next_state[stop]] == ("terminated", 0)
    assert world.transitions.terminal.tolist() == [False, False, True]


def test_collate_finds_numbers_and_discounts():
    world, _ = random_world(0, discount=0.5)
    outcomes = world.outcome_table()
    row = outcomes.iloc[4]
    batch = world.collate([None, None], [Path((row.state, row.next_state), (row.action,)), Path((0, 0), (1,))])
    assert batch.outcome.tolist()[0] == 4
    assert batch.sum(torch.ones(2, dtype=torch.float64)).tolist() == [1.0, 1.0]
    long = world.collate([None], [Path((0, 0, 0), (0, 0, 0))])
    assert long.step_weight.tolist() == [1.0, 0.5, 0.25]
    assert long.outcome.tolist()[-1] == -1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (Path((9, 0), (0,)), "no such state"),
        (Path((0, 0), (7,)), "not possible in this state"),
        (Path((0, 9), (0,)), "no state like"),
        (Path((0, 1), (0,)), "probability 0"),
    ],
)
def test_a_path_the_world_does_not_allow_is_refused_with_its_place(path, reason):
    p = np.zeros((3, 1, 3))
    p[0, 0, [0, 2]] = 0.5
    p[1, 0, 1] = p[2, 0, 2] = 1
    world = from_arrays(p, discount=0.5)
    with pytest.raises(ConfigError, match=rf"trajectory 1, step 0 .*{reason}"):
        world.collate([None, None], [Path((0, 2), (0,)), path])


def test_a_path_must_stop_at_its_destination_and_within_the_horizon():
    world, _ = diamond()
    with pytest.raises(ConfigError, match="goes on after its destination"):
        world.collate([3], [Path((0, 1, 3, 5), (1, 3, 5))])
    with pytest.raises(ConfigError, match="'Rome' is not a state"):
        world.collate(["Rome"], [Path((0, 1), (1,))])
    short, _ = random_world(0, horizon=2)
    with pytest.raises(ConfigError, match="longer than the horizon"):
        short.collate([None], [Path((0, 0, 0, 0), (0, 0, 0))])


def test_settings_that_contradict_are_refused():
    p = np.full((2, 1, 2), 0.5)
    with pytest.raises(ConfigError, match="never ends"):
        from_arrays(p)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        from_arrays(p, discount=1.5)
    with pytest.raises(ConfigError, match="at least 1 step"):
        from_arrays(p, horizon=0)


def test_features_that_miss_a_pair_name_it():
    world, _columns = replacement(5)
    frame = world.pair_table().assign(cost=1.0)
    with pytest.raises(ConfigError, match=r"state 2, action 1"):
        features(world, frame.drop(index=5))
    extra = pd.concat([frame, pd.DataFrame([{"state": 77, "action": 0, "cost": 9.0}])])
    torch.testing.assert_close(features(world, extra).values, features(world, frame).values)
    with pytest.raises(ConfigError, match="same state and action"):
        features(world, pd.concat([frame, frame.iloc[:1]]))


def test_sampled_paths_have_the_frequencies_of_the_policy():
    world, columns = random_world(0, n_states=3, n_actions=2, discount=0.9)
    solution = world.solve(Linear(columns, [0.9, -0.5, 0.3]))
    n = 4000
    paths = sample_paths(world, solution.log_policy.detach(), [1] * n, max_steps=2, seed=0)
    listed = list(enumerate_paths(world, 1, max_steps=2))
    batch = world.collate([None] * len(listed), listed)
    probability = (solution.log_prob(batch) + world.log_dynamics(batch)).exp().detach().numpy()
    assert probability.sum() == pytest.approx(1)
    counts = dict.fromkeys(listed, 0)
    for path in paths:
        counts[path] += 1
    observed = np.array([counts[path] for path in listed]) / n
    error = np.sqrt(probability * (1 - probability) / n)
    assert (np.abs(observed - probability) <= 5 * error + 1e-12).all()


def test_sampled_paths_stop_at_the_end_and_follow_a_policy_in_time():
    world, reward = diamond()
    solution = world.solve(reward, [5, 3])
    paths = sample_paths(world, solution.log_policy.detach(), [0, 0], destinations=[5, 3], max_steps=20, seed=1)
    assert [p.states[-1] for p in paths] == [5, 3]
    timed, columns = random_world(0, horizon=3)
    policy = timed.solve(Linear(columns, [0.9, -0.5, 0.3])).log_policy
    assert policy.shape == (1, 3, timed.transitions.n_pairs)
    assert all(len(p.actions) == 3 for p in sample_paths(timed, policy.detach(), [0] * 4, max_steps=9, seed=1))


def test_where_no_end_can_be_reached_nothing_is_chosen_and_nothing_is_nan():
    table_of_trap = table(("a", "goal", "goal", 1.0), ("a", "trap", "trap", 1.0), ("trap", "trap", "trap", 1.0))
    world = from_table(table_of_trap, destinations=True)
    columns = features(world, world.pair_table().assign(step=-1.0))
    log_policy = world.solve(Linear(columns, [1.0]), ["goal"]).log_policy.detach()
    assert not torch.isnan(log_policy).any()
    paths = sample_paths(world, log_policy, ["a"] * 5, destinations=["goal"] * 5, max_steps=9)
    assert all(path.states == ("a", "goal") for path in paths)
    with pytest.raises(ConfigError, match="not a number"):
        sample_paths(world, np.full(3, np.nan), ["a"], max_steps=9)


def test_paths_are_a_sequence_of_paths():
    single = [Path((0, 1, 2), ("x", "y")), Path((3,), ("z",)), Path((), ())]
    columns = Paths.of(single)
    assert list(columns) == single and len(columns) == 3 and columns[-2] == single[1]
    assert Paths.of(columns) is columns
    with pytest.raises(ValueError, match="1 states and 3 actions"):
        Paths.of([Path((0,), (1, 2, 3))])

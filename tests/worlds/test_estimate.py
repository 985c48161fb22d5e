"""Transitions from a panel: frequencies by hand, and pooled increments as in Rust (1987)."""

import json

import numpy as np
import pandas as pd
import pytest

from irlhf.errors import DataError
from irlhf.feedback import Feedback
from irlhf.gather import comparisons, demonstrations
from irlhf.worlds.tabular.config import Settings, from_config
from irlhf.worlds.tabular.estimate import estimate_transitions
from irlhf.worlds.tabular.load import load, observed_paths
from irlhf.worlds.tabular.panel import write_panel
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths, objects

SMALL = Paths.of(
    [
        Path(("s", "s", "t", "s"), ("go", "go", "back")),
        Path(("s", "t"), ("go", "stay")),  # nobody knows where "stay" led
    ]
)


def rows(table):
    return [tuple(row) for row in table.itertuples(index=False)]


def test_frequencies_by_hand():
    estimate = estimate_transitions(SMALL)
    # go in s: once to s, twice to t; back in t: once to s.
    assert rows(estimate.table) == [("s", "go", "s", 1 / 3, 1), ("s", "go", "t", 2 / 3, 2), ("t", "back", "s", 1.0, 1)]
    assert estimate.log_likelihood == pytest.approx(np.log(1 / 3) + 2 * np.log(2 / 3), abs=1e-15)
    assert (estimate.n_parameters, estimate.n_observed) == (1, 4)
    assert estimate.unseen == (("s", "back"), ("s", "stay"), ("t", "go"), ("t", "stay"))


def test_listed_states_and_actions_set_the_order_and_what_is_unseen():
    estimate = estimate_transitions(SMALL, states=["t", "s", "u"], actions=["go", "back", "stay"])
    assert rows(estimate.table)[0] == ("t", "back", "s", 1.0, 1)
    assert ("u", "go") in estimate.unseen and len(estimate.unseen) == 9 - 2
    with pytest.raises(DataError, match="field 'state': 't' is not among the 1 that are listed"):
        estimate_transitions(SMALL, states=["s"])
    with pytest.raises(DataError, match="field 'action': 'back' is not among the 2 that are listed"):
        estimate_transitions(SMALL, actions=["go", "stay"])


def test_probabilities_sum_to_one_and_the_likelihood_is_that_of_the_table():
    rng = np.random.default_rng(1)
    state, action = objects(rng.integers(0, 5, 500).tolist()), objects(rng.integers(0, 3, 500).tolist())
    following = objects(rng.integers(0, 5, 500).tolist())
    following[::7] = UNKNOWN
    estimate = estimate_transitions(Paths(state, action, following, np.arange(0, 501, 50)))
    table = estimate.table
    assert table.groupby(["state", "action"]).probability.sum().sub(1).abs().max() < 1e-12
    p = {(s, a, f): q for s, a, f, q, _ in rows(table)}
    steps = [k for k in zip(state, action, following, strict=True) if k[2] is not UNKNOWN]
    assert estimate.log_likelihood == pytest.approx(sum(np.log(p[k]) for k in steps), rel=1e-12)
    assert estimate.n_observed == len(steps) == table["count"].sum()
    assert estimate.n_parameters == len(table) - len(table[["state", "action"]].drop_duplicates())


def buses(n_buses, n_months, last, p, rate=0.05, seed=0):
    """Odometers in bins: keep (0) or replace (1), then drive 0, 1, 2 bins; beyond the last bin they stay there."""
    rng = np.random.default_rng(seed)
    paths, increments = [], []
    for _ in range(n_buses):
        states, actions = [0], []
        for _ in range(n_months):
            actions.append(int(rng.random() < rate))
            d = int(rng.choice(len(p), p=p))
            base = 0 if actions[-1] else states[-1]
            increments.append((base, d))
            states.append(min(base + d, last))
        paths.append(Path(tuple(states), tuple(actions)))
    return Paths.of(paths), increments


def test_increments_are_the_multinomial_frequencies():
    paths, increments = buses(50, 60, 89, [0.35, 0.6, 0.05])
    estimate = estimate_transitions(paths, pooling="increments", reset={1: 0}, states=range(90), actions=[0, 1])
    count = np.bincount([d for _, d in increments])
    assert paths.next_state.max() < 88 and estimate.n_set_aside == 0
    assert list(estimate.increments) == [0, 1, 2]
    np.testing.assert_allclose(list(estimate.increments.values()), count / count.sum(), rtol=1e-15)
    assert estimate.log_likelihood == pytest.approx(count @ np.log(count / count.sum()), rel=1e-13)
    assert (estimate.n_parameters, estimate.n_observed) == (2, len(increments))

    table = estimate.table.set_index(["state", "action", "next_state"]).sort_index()
    p = count / count.sum()
    assert len(estimate.table.drop_duplicates(["state", "action"])) == 180  # all pairs, seen or not
    for s, a, base in ((0, 0, 0), (40, 0, 40), (40, 1, 0), (89, 1, 0)):
        np.testing.assert_allclose(table.loc[(s, a)].probability, p)
        assert table.loc[(s, a)].index.tolist() == [base, base + 1, base + 2]
    np.testing.assert_allclose(table.loc[(88, 0)].probability, [p[0], p[1] + p[2]])  # beyond the last it stays there
    np.testing.assert_allclose(table.loc[(89, 0)].probability, [1.0])
    assert (89, 1) in estimate.unseen and (0, 0) not in estimate.unseen
    assert table["count"].sum() == len(increments)


def test_increments_that_an_end_may_have_cut_are_set_aside():
    paths, increments = buses(500, 40, 4, [0.35, 0.6, 0.05], rate=0.3)
    estimate = estimate_transitions(paths, pooling="increments", reset={1: 0}, states=range(5), actions=[0, 1])
    uncut = np.bincount([d for base, d in increments if base + 2 <= 4])
    assert estimate.n_set_aside == len(increments) - uncut.sum() > 100
    np.testing.assert_allclose(list(estimate.increments.values()), uncut / uncut.sum(), rtol=1e-15)
    # What is set aside still has a probability, and the likelihood covers it.
    p = {(s, a, f): q for s, a, f, q, _ in rows(estimate.table)}
    steps = list(zip(paths.state, paths.action, paths.next_state, strict=True))
    assert estimate.log_likelihood == pytest.approx(sum(np.log(p[k]) for k in steps), rel=1e-12)
    # Counting only those that stayed inside would favor small increments.
    naive = np.mean([d == 0 for base, d in increments if base + d < 4])
    error = np.sqrt(0.35 * 0.65 / uncut.sum())
    assert abs(estimate.increments[0] - 0.35) < 4 * error < naive - 0.35


def test_increments_down_and_states_in_any_order():
    paths = Paths.of([Path((5, 4, 4, 3, 5, 4), ("a",) * 5)])
    estimate = estimate_transitions(paths, pooling="increments", states=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert estimate.increments == {-1: 3 / 5, 0: 1 / 5, 2: 1 / 5}
    table = estimate.table.set_index(["state", "next_state"]).probability
    assert table.loc[0].to_dict() == pytest.approx({0: 4 / 5, 2: 1 / 5})
    assert table.loc[9].to_dict() == pytest.approx({8: 3 / 5, 9: 2 / 5})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"states": ["a", *range(9)]}, "found 'a'; pooling by increments needs states that are whole numbers"),
        ({"states": [True, *range(2, 9), 0]}, "found True"),
        ({"states": [0, 1, 2, 3, 4, 6]}, "the 6 states are not all the integers from 0 to 6"),
        ({"states": [0, 1, 1, 2, 3, 4]}, "1 is listed twice; list each once"),
        ({"states": range(9), "reset": {"b": 0}}, "reset names 'b', but the actions are"),
        ({"states": range(9), "reset": {"a": 99}}, "reset puts 'a' to 99, which is not a state"),
        ({"states": range(1, 4)}, "'state': 0 is not among the 3"),
    ],
)
def test_what_increments_need(options, reason):
    paths = Paths.of([Path((0, 1, 4), ("a", "a"))])
    with pytest.raises(DataError, match=reason):
        estimate_transitions(paths, pooling="increments", **options)


def test_increments_seen_only_where_they_may_be_cut():
    for paths in ([Path((0, 1), ("a",)), Path((3, 1), ("a",))], [Path((0, 4), ("a",)), Path((4, 0), ("a",))]):
        with pytest.raises(DataError, match=r"increments from -. to . were observed, some only so near the first or"):
            estimate_transitions(Paths.of(paths), pooling="increments", states=range(5))


def test_a_panel_that_says_nothing_about_transitions():
    with pytest.raises(DataError, match="no step says where it led; give transitions, or next states"):
        estimate_transitions(Paths.of([Path((1,), (2,))]))
    with pytest.raises(ValueError, match="needs states="):
        estimate_transitions(SMALL, pooling="increments")
    with pytest.raises(ValueError, match="reset belongs to pooling 'increments'"):
        estimate_transitions(SMALL, reset={"go": 0})


# ----------------------------------------------------------------------------------------- how often each path counts


@pytest.mark.parametrize("pooling", ["frequencies", "increments"])
def test_a_path_of_weight_three_is_three_paths(pooling):
    paths, _ = buses(30, 20, 9, [0.35, 0.6, 0.05], rate=0.3)
    times = np.random.default_rng(1).integers(0, 4, len(paths))
    options = {"pooling": pooling, "states": range(10), "actions": [0, 1]}
    options |= {"reset": {1: 0}} if pooling == "increments" else {}
    weighted = estimate_transitions(paths, weights=times.astype(float), **options)
    repeated = estimate_transitions(paths.take(np.repeat(np.arange(len(paths)), times)), **options)
    np.testing.assert_allclose(weighted.table.to_numpy(float), repeated.table.to_numpy(float), rtol=1e-12)
    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-12)
    for name in ("n_parameters", "unseen", "n_unseen"):
        assert getattr(weighted, name) == getattr(repeated, name)
    assert weighted.n_observed == 20 * np.count_nonzero(times)
    half = estimate_transitions(paths, weights=times / 2, **options)
    np.testing.assert_allclose(half.table.probability, weighted.table.probability, rtol=1e-12)
    assert half.log_likelihood == pytest.approx(weighted.log_likelihood / 2, rel=1e-12)


def test_weights_that_make_no_sense():
    for weights in ([1.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="weights must be 2 finite numbers"):
            estimate_transitions(SMALL, weights=weights)
    with pytest.raises(DataError, match="every step that says where it led has weight 0"):
        estimate_transitions(SMALL, weights=[0.0, 0.0])


YES, NO = Path((0, 1), ("go",)), Path((0, 0), ("go",))


def test_every_demonstration_of_one_path_counts():
    feedback = Feedback.of(list(demonstrations(None, [YES, YES, NO, YES], weights=[1.0, 2.0, 1.0, 1.0])))
    assert len(feedback.trajectories) == 2  # equal paths are kept once
    paths, weights = observed_paths([feedback])
    assert list(paths) == [YES, YES, NO, YES] and weights.tolist() == [1, 2, 1, 1]
    shown = comparisons([None] * 2, [YES, YES], [NO, NO], [0, 0], weights=[3.0, 1.0])
    paths, weights = observed_paths([shown])
    assert list(paths) == [YES, NO] and weights.tolist() == [1, 1]  # what was shown is not how often it happens
    paths, weights = observed_paths([shown, feedback])
    assert len(paths) == 4 and weights.sum() == 5


def probabilities(setup):
    table = setup.world.outcome_table()
    return {(s, a, f): p for s, a, f, p in table.itertuples(index=False, name=None)}


def test_files_with_repeated_paths_and_with_weights(tmp_path):
    features = tmp_path / "features.csv"
    pd.DataFrame({"state": [0, 1], "x": [0.0, 1.0]}).to_csv(features, index=False)
    repeated, weighted, panel = (tmp_path / name for name in ("repeated.jsonl", "weighted.jsonl", "panel.csv"))
    yes, no, back = ({"trajectory": {"states": s, "actions": ["go"]}} for s in ([0, 1], [0, 0], [1, 0]))
    repeated.write_text("".join(json.dumps(row) + "\n" for row in (yes, yes, no, yes, back)))
    weighted.write_text("".join(json.dumps(row) + "\n" for row in (yes | {"weight": 3}, no, back)))
    write_panel(demonstrations(None, [YES, NO, Path((1, 0), ("go",))], weights=[3.0, 1.0, 1.0]), panel)
    expected = {(0, "go", 0): 0.25, (0, "go", 1): 0.75, (1, "go", 0): 1.0}
    value = 3 * np.log(0.75) + np.log(0.25)
    given = tmp_path / "transitions.csv"
    pd.DataFrame(
        [(*k, p) for k, p in expected.items()], columns=["state", "action", "next_state", "probability"]
    ).to_csv(given, index=False)
    for data in ({"choices": [repeated]}, {"choices": [weighted]}, {"panel": panel}):
        setup = from_config(Settings(**data, features=features, discount=0.9))
        assert probabilities(setup) == pytest.approx(expected, abs=1e-15)
        assert setup.about["transitions"]["log_likelihood"] == pytest.approx(value, rel=1e-12)
        setup = from_config(Settings(**data, features=features, transitions=given, discount=0.9))
        assert setup.about["transitions"]["log_likelihood"] == pytest.approx(value, rel=1e-12)
    world, _, feedback = load(panel, features, discount=0.9)
    assert world.transitions.probability.tolist() == pytest.approx(list(expected.values()))
    assert feedback.weight.tolist() == [3, 1, 1]

"""``load``: from a panel and features to a world, with what it cannot know said."""

import pandas as pd
import pytest

from irlhf.errors import DataError
from irlhf.worlds.tabular import load

PANEL = pd.DataFrame(
    {"trajectory": [0, 0, 0, 1, 1], "step": [0, 1, 2, 0, 1], "state": [0, 1, 0, 0, 0], "action": [0, 0, 1, 1, 0]}
)
FEATURES = pd.DataFrame({"state": [0, 0, 1], "action": [0, 1, 0], "x": [1.0, 2.0, 3.0]})


def test_what_was_never_seen_is_said():
    with pytest.warns(UserWarning, match=r"1 pairs .* never seen .* \(1, 1\)"):
        world, features, feedback = load(PANEL, FEATURES, discount=0.9)
    assert len(feedback) == 2 and features.names == ("x",)
    assert world.outcome_table().probability.tolist() == [1.0, 1.0, 1.0]


def test_an_action_that_led_nowhere_known_is_refused_with_the_ways_out():
    panel = pd.concat([PANEL, pd.DataFrame({"trajectory": [2], "step": [0], "state": [1], "action": [1]})])
    with pytest.raises(DataError, match=r"action 1 was taken in state 1.*give next_state, or transitions, or pool"):
        load(panel, FEATURES, discount=0.9)


def test_transitions_that_are_given_are_taken():
    table = pd.DataFrame(
        {"state": [0, 0, 1], "action": [0, 1, 0], "next_state": [1, 0, 0], "probability": [1.0, 1.0, 1.0]}
    )
    world, _, _ = load(PANEL, FEATURES, table, discount=0.9)
    assert world.deterministic


def test_pooled_increments_leave_nothing_out():
    features = pd.DataFrame({"state": sorted([*range(9)] * 2), "action": [0, 1] * 9, "x": range(18)})
    panel = pd.DataFrame({"trajectory": 0, "step": range(6), "state": [0, 1, 3, 4, 6, 1], "action": [0, 0, 0, 0, 1, 0]})
    world, _, _ = load(panel, features, discount=0.9, pooling="increments", reset={1: 0})
    assert world.transitions.n_pairs == 18

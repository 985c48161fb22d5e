"""Paths as JSON: they come back as they were, gaps and all, and mean what the same rows mean in a panel."""

import numpy as np
import pandas as pd
import pytest

from irlhf.errors import DataError
from irlhf.gather import comparisons, demonstrations
from irlhf.io import read_jsonl, write_jsonl
from irlhf.worlds.tabular import UNKNOWN, Path, Paths, parse_trajectory, read_panel, trajectory_json


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"states": [0, 1], "actions": ["go"]}, Path((0, 1), ("go",))),
        ({"states": ["a", "b"]}, Path(("a", "b"), ("b",))),
        ({"states": [0, 1], "actions": [5], "times": None, "next_states": None}, Path((0, 1), (5,))),
        # a jump in time: nobody knows where the first step led
        (
            {"states": [0, 1, 2], "actions": [5, 5], "times": [0, 4]},
            Path((0, 1, 2), (5, 5), (UNKNOWN, 2), (0, 4)),
        ),
        ({"states": [0, 1, 2], "actions": [5, 5], "next_states": [9, 2]}, Path((0, 1, 2), (5, 5), (9, 2))),
        ({"states": [0, 1, 2], "actions": [5, 5], "next_states": [1, 2]}, Path((0, 1, 2), (5, 5))),
        ({"states": [0, 1], "actions": [5, 5], "next_states": [None, 2]}, Path((0, 1, 2), (5, 5), (UNKNOWN, 2))),
        ({"states": [0, 1], "actions": [5, 5], "next_states": [1, None]}, Path((0, 1), (5, 5))),
        ({"states": [0, 1], "actions": [5, 5], "times": [3, 4]}, Path((0, 1), (5, 5), None, (3, 4))),
    ],
)
def test_what_is_read(value, path):
    assert parse_trajectory(value) == path
    assert parse_trajectory(trajectory_json(path)) == path


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"times": [0]}, "found times [0]; give one whole number for each of the 2 actions"),
        ({"times": [4, 0]}, "found times [4, 0]"),
        ({"times": [-1, 0]}, "from 0 and increasing"),
        ({"times": [0, True]}, "from 0 and increasing"),
        ({"times": [0, 1.5]}, "from 0 and increasing"),
        ({"times": [0, 10**15]}, "from 0 and increasing"),
        ({"times": "01"}, "from 0 and increasing"),
        ({"next_states": [1]}, "found next_states [1]; give one for each of the 2 actions, null if unknown"),
        ({"next_states": {"0": 1}}, "null if unknown"),
        ({"next_states": [1, 7]}, "the last of next_states is 7, but states end with 2"),
        ({"next_states": [1, None]}, "the last of next_states is null, but states end with 2"),
        ({"next_states": [7, 2], "times": [0, 1]}, "next_states[0] is 7, but at the next time, 1, the state is 1"),
        ({"next_states": [None, 2], "times": [0, 1]}, "next_states[0] is null, but at the next time, 1"),
        ({"next_states": [[], 2]}, "text or a number"),
        ({"next_state": [1, 2]}, "unknown field 'next_state'"),
    ],
)
def test_what_is_refused(tmp_path, more, sentence):
    with pytest.raises(ValueError) as caught:
        parse_trajectory({"states": [0, 1, 2], "actions": [5, 5], **more})
    assert sentence in str(caught.value)


def gappy(rng: np.random.Generator) -> pd.DataFrame:
    """A panel with steps left out at random, next states known at some."""
    rows = []
    for k in range(20):
        times = np.cumsum(rng.choice([1, 1, 1, 2, 7], 6)).tolist()
        states = rng.integers(0, 4, 7).tolist()
        for t, time in enumerate(times):
            follows = t + 1 < len(times) and times[t + 1] == time + 1
            known = rng.random() < 0.5
            led = states[t + 1] if follows else int(rng.integers(0, 4))
            rows.append((f"path {k}", time, states[t], f"act {rng.integers(3)}", led if known else None))
    return pd.DataFrame(rows, columns=["trajectory", "step", "state", "action", "next_state"])


def test_a_panel_with_gaps_is_the_same_as_json_lines(tmp_path):
    panel = read_panel(gappy(np.random.default_rng(0)))
    assert any(path.next_states for path in panel.trajectories) and any(path.times for path in panel.trajectories)
    file = tmp_path / "paths.jsonl"
    write_jsonl(panel, file, trajectory_json=trajectory_json)
    again = read_jsonl(file, parse_trajectory=parse_trajectory)
    assert list(again) == list(panel) and list(again.trajectories) == list(panel.trajectories)
    one, other = Paths.of(panel.trajectories), Paths.of(again.trajectories)
    assert np.array_equal(one.time, other.time) and (one.next_state == other.next_state).all()


def test_comparisons_of_paths_with_gaps_come_back(tmp_path):
    paths = list(read_panel(gappy(np.random.default_rng(1))).trajectories)
    pairs = comparisons([None] * 10, paths[:10], paths[10:], [0, 1] * 5)
    write_jsonl(pairs, tmp_path / "pairs.jsonl.gz", trajectory_json=trajectory_json)
    assert list(read_jsonl(tmp_path / "pairs.jsonl.gz", parse_trajectory=parse_trajectory)) == list(pairs)


@pytest.mark.parametrize(
    "path",
    [
        Path(("7", 1), ("go",)),  # the text "7" would come back as a number
        Path(((0, 1), (0, 2)), ("go",)),
        Path((0, 1, 2), (5, 5), (UNKNOWN, 2), (0, 1)),  # two times in a row, and yet nobody knows
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, path):
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_jsonl(demonstrations(None, [path]), tmp_path / "f.jsonl", trajectory_json=trajectory_json)

"""Paths with gaps: however they are picked, joined or taken out one by one, they stay what was observed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irlhf.errors import ConfigError
from irlhf.feedback import Feedback, concatenate
from irlhf.gather import comparisons, demonstrations
from irlhf.likelihood import Term, exact, listed
from irlhf.worlds.tabular import UNKNOWN, Linear, Path, Paths
from irlhf.worlds.tabular.load import observed_paths
from irlhf.worlds.tabular.panel import read_panel
from tests.worlds.problems import random_world

GAPS = pd.DataFrame(
    [
        ("a", 0, 0, 1, None),
        ("a", 1, 3, 0, 5),  # step 2 is missing, but where step 1 led is known
        ("a", 3, 2, 1, None),
        ("b", 0, 4, 2, None),  # steps 1 to 3 are missing
        ("b", 4, 1, 0, None),
        ("b", 5, 3, 0, 2),
        ("c", 0, 1, 1, 0),
    ],
    columns=["trajectory", "step", "state", "action", "next_state"],
)
COLUMNS = ("state", "action", "next_state", "first_step", "time")


def same(one, other):
    assert isinstance(one, Paths) and isinstance(other, Paths)
    assert all(list(getattr(one, name)) == list(getattr(other, name)) for name in COLUMNS)


def test_a_path_with_a_gap_says_so_and_others_stay_as_they_are():
    paths = read_panel(GAPS).trajectories
    assert paths[0].states == (0, 3, 2) and paths[0].next_states == (3, 5, UNKNOWN)
    assert paths[1].states == (4, 1, 3, 2) and paths[1].next_states == (UNKNOWN, 3, 2)
    assert paths[0].times is None and paths[1].times == (0, 4, 5)  # one step missing is the least, and goes unsaid
    assert paths[2] == Path((1, 0), (1,)) and repr(paths[2]) == "Path(states=(1, 0), actions=(1,))"
    assert paths[0] != Path((0, 3, 2), (1, 0, 1)) and len({*paths, *paths}) == 3
    same(Paths.of(list(paths)), paths)


def test_any_paths_come_back_from_single_ones():
    rng = np.random.default_rng(0)
    for _ in range(200):
        length = rng.integers(0, 5, rng.integers(1, 6))
        first = np.concatenate([[0], np.cumsum(length)])
        n = int(first[-1])
        state, action, following = rng.integers(0, 3, (3, n)).astype(object)
        following[rng.random(n) < 0.3] = UNKNOWN
        time = np.concatenate([np.sort(rng.choice(9, k, replace=False)) for k in length])
        for paths in (Paths(state, action, following, first), Paths(state, action, following, first, time)):
            same(Paths.of(list(paths)), paths)
            chosen = rng.integers(0, len(paths), 4)
            same(paths.take(chosen), Paths.of([paths[k] for k in chosen]))
            same(Paths.concatenate([paths, paths.take(chosen)]), Paths.of([*paths, *(paths[k] for k in chosen)]))


def test_steps_follow_each_other_with_one_missing_at_a_gap():
    assert Paths.of([Path((0, 1, 2), (1, 1, 1)), Path((), ()), Path((4,), (1,))]).time.tolist() == [0, 1, 2, 0]
    gap = Path((0, 1, 2), (1, 1, 1), next_states=(1, UNKNOWN, UNKNOWN))
    assert Paths.of([gap]).time.tolist() == [0, 1, 3] and Paths.of([gap])[0] == gap
    later = gap._replace(times=(0, 1, 7))
    assert Paths.of([gap, later]).time.tolist() == [0, 1, 3, 0, 1, 7] and Paths.of([later])[0] == later


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (Path((0, 1), (1, 1), (1, 2)), "the last one is where the path ended"),
        (Path((0, 1, 2), (1, 1), (2,)), "give one next state for each action"),
        (Path((0, 1, 2), (1, 1), times=(0,)), "1 times and 2 actions"),
        (Path((0, 1, 2), (1, 1), times=(1, 1)), "increase along a path"),
        (Path((0, 1, 2), (1, 1), times=(-1, 1)), "not negative"),
    ],
)
def test_paths_that_contradict_themselves(path, reason):
    with pytest.raises(ValueError, match=reason):
        Paths.of([path])


def ways_to_have(feedback):
    """The same rows, selected, split, joined, or written one by one."""
    yield feedback[np.arange(len(feedback))]
    yield feedback[::-1][::-1]
    yield concatenate([feedback[:1], feedback[1:]])
    yield Feedback.of(list(feedback))
    yield Feedback.of(list(feedback[:2])) + feedback[2:]


def test_feedback_with_gaps_has_one_likelihood_however_it_was_put_together():
    world, columns = random_world(0, discount=0.9)
    world_p = world.outcome_table()
    feedback = read_panel(GAPS)
    # Nature may do anything here that the world allows: the likelihood is of the actions and the dynamics.
    allowed = set(world_p[["state", "action", "next_state"]].itertuples(index=False, name=None))
    paths = feedback.trajectories
    given = [
        f if f is UNKNOWN or (s, a, f) in allowed else UNKNOWN
        for s, a, f in zip(paths.state, paths.action, paths.next_state, strict=True)
    ]
    feedback = demonstrations(
        None, Paths(paths.state, paths.action, np.array(given, object), paths.first_step, paths.time)
    )
    reward = Linear(columns, [0.5, -0.3, 0.2])
    whole = Term(feedback, exact(world))
    dynamics = world.log_dynamics(whole.prepared.batch)
    for again in ways_to_have(feedback):
        batch = exact(world).prepare(again, whole.source).batch
        assert batch.outcome.tolist() == whole.prepared.batch.outcome.tolist()
        assert batch.time.tolist() == whole.prepared.batch.time.tolist()
        assert torch.equal(world.log_dynamics(batch), dynamics)
        assert torch.equal(Term(again, exact(world)).log_prob(reward), whole.log_prob(reward))
    # A part is what the whole says about it.
    for part, rows in ((feedback[1:], [1, 2]), (feedback[[2, 0]], [2, 0]), (feedback[:1], [0])):
        assert torch.equal(Term(part, exact(world)).log_prob(reward), whole.log_prob(reward)[rows])


def test_joined_columns_stay_columns():
    feedback = read_panel(GAPS)
    joined = concatenate([feedback, feedback[1:]])
    same(joined.trajectories, Paths.concatenate([feedback.trajectories] * 2))
    assert list(joined[3:].trajectory) == [4, 5] and joined[3].chosen == feedback[1].chosen
    same(Paths.of((feedback + Feedback.of(list(feedback))).trajectories), joined.trajectories)


def test_shown_paths_keep_their_gaps():
    world, _ = random_world(0, discount=0.9)
    paths = Paths.of([Path((0, 3), (1, 0), (UNKNOWN, UNKNOWN)), Path((4, 1), (2, 0), (UNKNOWN, UNKNOWN))])
    feedback = replace(comparisons([None], ["first"], ["second"], [0]), trajectories=paths)
    batch = Term(feedback, listed(world)).prepared.batch
    assert (batch.outcome == -1).all() and batch.time.tolist() == world.collate([None] * 2, paths).time.tolist()


def test_observed_paths_keep_their_gaps():
    feedback = read_panel(GAPS)
    own = feedback.trajectories
    same(observed_paths([feedback[1:]])[0], own.take([1, 2]))
    same(observed_paths([feedback[:1], feedback[1:]])[0], own)
    same(observed_paths([feedback, Feedback.of(list(feedback))])[0], Paths.concatenate([own, own]))


def test_time_counts_from_the_first_step_of_a_path_with_its_gaps():
    years = GAPS.assign(step=GAPS.step + 1975)
    for panel in (GAPS, years):
        assert read_panel(panel).trajectories.time.tolist() == [0, 1, 3, 0, 4, 5, 0]


def steps_of(feedback, world):
    return Term(feedback, exact(world)).prepared.batch


def test_a_discount_and_a_horizon_see_the_missing_steps():
    frame = GAPS[GAPS.trajectory == "b"].assign(next_state=None)
    feedback = read_panel(frame)
    time = [0, 4, 5]
    endless, columns = random_world(0, discount=0.5)
    frame_of_states = [*zip(frame.state, frame.action, strict=True)]
    reward = Linear(columns, [0.5, -0.3, 0.2])

    def single(world, solution):
        """log pi of each step, alone at its own time."""
        pairs = world.pair_table()
        rows = [int(np.flatnonzero((pairs.state == s) & (pairs.action == a))[0]) for s, a in frame_of_states]
        policy = solution.log_policy[0].detach()
        return torch.stack([policy[t, k] if policy.dim() == 2 else policy[k] for t, k in zip(time, rows, strict=True)])

    batch = steps_of(feedback, endless)
    assert batch.step_weight.tolist() == [0.5**t for t in time]
    pi = single(endless, endless.solve(reward))
    weighted = Term(feedback, exact(endless, kind="weighted")).log_prob(reward)
    torch.testing.assert_close(weighted.detach()[0], pi @ torch.tensor([0.5**t for t in time], dtype=torch.float64))

    short, columns = random_world(0, horizon=6)
    reward = Linear(columns, [0.5, -0.3, 0.2])
    timed = Term(feedback, exact(short)).log_prob(reward).detach()
    torch.testing.assert_close(timed[0], single(short, short.solve(reward)).sum())
    with pytest.raises(ConfigError, match=r"step 5 .*longer than the horizon of 5 steps"):
        steps_of(feedback, random_world(0, horizon=5)[0])

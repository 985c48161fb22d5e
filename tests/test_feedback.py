"""Feedback as columns: what goes in comes out, row by row, and what makes no sense is refused."""

import numpy as np
import pytest

from irlhf.feedback import (
    CHOICE,
    DEMONSTRATION,
    EVERYTHING,
    RATING,
    TIE,
    Choice,
    Feedback,
    Rating,
    concatenate,
)
from irlhf.gather import comparisons, demonstrations, rankings, ratings, unfold

ROWS = [
    Choice("x", EVERYTHING, "abc", id="d", datum="d", source="expert", person="ann", weight=2.0),
    Choice("x", ("a", "b"), 1, (0.5, -0.5), id="c", datum="c"),
    Choice("y", ("a", "b"), TIE, id="t", datum="t", person="bob"),
    Choice("y", ("a", "b", "c"), 2, id="m", datum="m"),
    Rating("x", "a", 2, 3, id="r", datum="r", weight=0.0),
]


def test_rows_come_back_as_they_went_in():
    feedback = Feedback.of(ROWS)
    assert list(feedback) == ROWS
    assert feedback[-1] == ROWS[-1] and feedback[1] == ROWS[1]
    assert repr(feedback) == "Feedback(1 demonstrations, 3 choices, 1 ratings; 4 trajectories, 2 persons)"
    np.testing.assert_array_equal(feedback.sizes, [1, 2, 2, 3, 1])


@pytest.mark.parametrize("key", [slice(1, 4), slice(None, None, -1), [4, 0, 0], np.array([True, False] * 2 + [True])])
def test_any_selection_keeps_rows_whole(key):
    expected = [ROWS[k] for k in np.arange(len(ROWS))[key]]
    assert list(Feedback.of(ROWS)[key]) == expected


def test_nothing_is_feedback_too():
    empty = Feedback.of([])
    assert len(empty) == 0 and list(empty) == [] and repr(empty) == "Feedback(empty; 0 trajectories, 0 persons)"
    assert list(empty + Feedback.of(ROWS)) == ROWS
    assert len(empty.groups("person")) == 0


def test_kinds_and_sources_are_selected():
    feedback = Feedback.of(ROWS)
    assert [row.id for row in feedback.where(kind=CHOICE)] == ["c", "t", "m"]
    assert [row.id for row in feedback.where(kind=DEMONSTRATION, source="expert")] == ["d"]
    assert [row.id for row in feedback.where(kind=RATING, source="expert")] == []


def test_equal_trajectories_are_one_and_equal_numbers_of_other_types_are_not():
    feedback = Feedback.of([Choice(None, (1, True), 0), Choice(None, (1.0, 1), 1), Choice(None, ([1], [1]), 0)])
    assert len(feedback.trajectories) == 5  # 1, True, 1.0, and two lists, which cannot be compared by hash
    assert [[type(y) for y in row.shown] for row in feedback] == [[int, bool], [float, int], [list, list]]


def test_a_ranking_unfolds_into_choices_from_shrinking_sets():
    feedback = rankings(["x"], [["best", "middle", "worst"]], ids=["r"], weights=0.5, persons="ann")
    assert [row.shown for row in feedback] == [("best", "middle", "worst"), ("middle", "worst")]
    assert [row.chosen for row in feedback] == [0, 0]
    assert [row.id for row in feedback] == ["r/0", "r/1"] and {row.datum for row in feedback} == {"r"}
    assert {row.weight for row in feedback} == {0.5} and {row.person for row in feedback} == {"ann"}
    with pytest.raises(ValueError, match="ranking 'r' lists 1 trajectories; a ranking needs at least two"):
        unfold("x", ("only",), id="r")


def test_builders_give_sources_of_their_own():
    parts = [
        demonstrations("x", ["a"]),
        comparisons(["x"], ["a"], ["b"], [TIE]),
        rankings(["x"], [["a", "b", "c"]]),
        ratings(["x"], ["a"], [1]),
    ]
    assert [part.source[0] for part in parts] == ["demonstrations", "comparisons", "rankings", "ratings"]
    joined = concatenate(parts)
    assert len(joined) == 5 and [type(row) for row in joined] == [Choice] * 4 + [Rating]


def test_joining_keeps_an_id_the_name_of_one_row():
    joined = (
        demonstrations(None, ["a", "b"]) + comparisons(["x"], ["a"], ["b"], [0]) + rankings(["x"], [["a", "b", "c"]])
    )
    assert list(joined.id) == ["0", "1", "0~1", "0/0~2", "0/1~2"]
    np.testing.assert_array_equal(joined.groups("datum"), [0, 1, 2, 3, 3])
    assert len({*(joined + joined + joined).id}) == 3 * len(joined)


def test_joining_what_was_taken_apart_changes_nothing():
    feedback = rankings(["x", "y"], [["a", "b", "c"], ["c", "b", "a"]])
    assert list(feedback[:1] + feedback[1:]) == list(feedback)  # also when a ranking is cut in two


def test_groups_and_splits_keep_what_belongs_together():
    feedback = rankings(["x"] * 20, [["a", "b", "c"]] * 20, persons=[f"p{k // 2}" for k in range(20)])
    for by in ("datum", "person", "context", "id", "source"):
        kept, held_out = feedback.split(0.25, by=by)
        assert len(kept) + len(held_out) == len(feedback)
        column = "context" if by == "context" else by
        assert not set(getattr(kept, column)) & set(getattr(held_out, column)) or by in ("context", "source")
    assert len(feedback.split(0.25)[1]) == 2 * 5
    again = feedback.split(0.25, seed=0)[1]
    assert list(again) == list(feedback.split(0.25, seed=0)[1]) != list(feedback.split(0.25, seed=1)[1])
    with pytest.raises(ValueError, match="cannot group by 'colour'"):
        feedback.groups("colour")


def test_rows_without_a_person_are_groups_of_their_own():
    feedback = comparisons(["x"] * 4, ["a"] * 4, ["b"] * 4, [0] * 4, persons=["ann", None, None, "ann"])
    np.testing.assert_array_equal(feedback.groups("person"), [0, 1, 2, 0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Choice("x", ("a", "b"), 2, id="q"), "row 0 \\(id 'q'\\): chosen must be a position in shown"),
        (Choice("x", ("a", "b"), -1, id="q"), "row 'q': chosen is -1; positions count from 0"),
        (Choice("x", ("a", "b"), "a", id="q"), "row 'q': chosen is 'a'; give a position in shown"),
        (Choice("x", ("a", "b"), True, id="q"), "row 'q': chosen is True; give a position"),
        (Choice("x", ("a",), 0, id="q"), "a choice needs at least two trajectories"),
        (Choice("x", (), 0, id="q"), "every row has at least one item"),
        (Choice("x", ("a", "b", "c"), TIE, id="q"), "a tie is between exactly two trajectories"),
        (Choice("x", ("a", "b"), 0, (1.0,), id="q"), "row 'q': 1 offsets for 2 trajectories; give one for each"),
        (Choice("x", ("a", "b"), 0, (0.0, float("nan")), id="q"), "row 0 \\(id 'q'\\): offset must be finite"),
        (Choice("x", EVERYTHING, "a", weight=-1.0, id="q"), "weight must be finite and not negative"),
        (Choice("x", EVERYTHING, "a", weight=float("inf"), id="q"), "weight must be finite and not negative"),
        (Rating("x", "a", 3, 3, id="q"), "level must be in 0..levels-1"),
        (Rating("x", "a", -1, 3, id="q"), "level must be in 0..levels-1"),
        (Rating("x", "a", 0, 1, id="q"), "a rating needs at least two levels"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(row, reason):
    with pytest.raises(ValueError, match=reason):
        Feedback.of([row])


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 contexts for 1 trajectories; give one for each"):
        demonstrations(["x", "y"], ["a"])
    with pytest.raises(ValueError, match="3 values for 1 rows; give one for each row, or a single one"):
        demonstrations("x", ["a"], persons=["p"] * 3)
    with pytest.raises(ValueError, match="zip"):
        comparisons(["x"], ["a", "b"], ["b", "a"], [0, 1])

"""Panels, features and transitions: the same data means the same in every format, and errors name their place."""

import builtins
import gzip
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from irlhf.errors import ConfigError, DataError
from irlhf.gather import comparisons, demonstrations
from irlhf.worlds.tabular.panel import read_features, read_panel, read_transitions, write_panel
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths, objects

PANEL = """\
trajectory,step,state,action,next_state,context,person,weight,source
a,0,3,up,4,home,ann,2.5,expert
a,1,4,up,,home,ann,2.5,expert
a,2,7,down,left door,home,ann,2.5,expert
b,5,3,01,,home,,1,expert
b,9,-2,01,3,home,,1,expert
"""


def file(tmp_path, text, name="panel.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def as_source(kind, path):
    """The table of a CSV file as something else that holds it."""
    if kind == "csv":
        return path
    if kind == "csv.gz":
        other = path.with_suffix(".csv.gz")
        other.write_bytes(gzip.compress(path.read_bytes()))
        return other
    if kind == "polars":
        return pl.read_csv(path, infer_schema_length=None)
    frame = pd.read_csv(path)
    if kind == "parquet":
        frame.to_parquet(path.with_suffix(".parquet"))
        return path.with_suffix(".parquet")
    return frame if kind == "pandas" else frame.astype(object)


KINDS = ["csv", "csv.gz", "parquet", "pandas", "objects", "polars"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_is_the_same_in_every_format(tmp_path, kind):
    text = PANEL.replace(",01,", ",stay,")  # pandas reads 01 as the number 1: the frame no longer has the text
    feedback = read_panel(as_source(kind, file(tmp_path, text)))
    paths = feedback.trajectories
    assert isinstance(paths, Paths)
    gap = Path((3, -2, 3), ("stay", "stay"), next_states=(UNKNOWN, 3), times=(0, 4))
    assert list(paths) == [Path((3, 4, 7, "left door"), ("up", "up", "down")), gap]
    assert list(paths.next_state) == [4, 7, "left door", UNKNOWN, 3]
    assert {type(label) for label in paths.state} == {int}
    assert list(feedback.id) == ["a", "b"] and list(feedback.person) == ["ann", None]
    assert list(feedback.weight) == [2.5, 1.0] and list(feedback.source) == ["expert"] * 2
    assert list(feedback.contexts) == ["home"] and list(feedback.context) == [0, 0]


def test_labels_are_whole_numbers_or_text(tmp_path):
    assert list(read_panel(file(tmp_path, PANEL)).trajectories.action) == ["up", "up", "down", "01", "01"]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_next_states_make_floats_but_the_labels_stay_whole(tmp_path, kind):
    path = file(tmp_path, "trajectory,step,state,action,next_state\n1,0,1,1,\n1,1,2,0,3\n")
    feedback = read_panel(as_source(kind, path))
    assert list(feedback.trajectories) == [Path((1, 2, 3), (1, 0))] and list(feedback.id) == ["1"]
    assert all(type(x) is int for x in feedback.trajectories.next_state)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_in_any_order(tmp_path, kind):
    path = file(tmp_path, "state,step,action,trajectory\n2,1,go,b\n5,7,go,a\n1,0,go,b\n4,6,stop,a\n")
    feedback = read_panel(as_source(kind, path))
    assert list(feedback.id) == ["b", "a"]  # trajectories in the order of their first rows
    assert list(feedback.trajectories) == [Path((1, 2), ("go", "go")), Path((4, 5), ("stop", "go"))]
    assert feedback.person[0] is None and feedback.contexts == [None]
    assert set(feedback.source) == {"demonstrations"}
    assert set(read_panel(path, default_source="drivers").source) == {"drivers"}


def test_in_a_network_the_action_is_the_next_state(tmp_path):
    path = file(tmp_path, "trajectory,step,state,next_state\na,0,1,2\na,1,2,\na,2,3,4\n")
    assert list(read_panel(path).trajectories) == [Path((1, 2, 3, 4), (2, 3, 4))]
    path = file(tmp_path, "trajectory,step,state,next_state\na,0,1,2\na,1,2,\n")
    with pytest.raises(DataError, match="line 3, field 'next_state': is empty, and without actions it says"):
        read_panel(path)
    path = file(tmp_path, "trajectory,step,state\na,0,1\n")
    with pytest.raises(DataError, match="line 1, field 'next_state': the column is missing"):
        read_panel(path)


HEAD = "trajectory,step,state,action,next_state,person\n"


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", None, "the file is empty"),
        ("\n\n", 1, "the line is empty; name the columns"),
        (HEAD, None, "no rows below its header"),
        ("trajectory,step,state,state\n", 1, "two columns have this name"),
        ("trajectory,step,,state\n", 1, "column 3 has no name"),
        ("trajectory,step,action\na,0,1\n", (1, "state"), "the column is missing; the table has 'trajectory'"),
        ("trajectory,step,state,acton\na,0,1,1\n", (1, "next_state"), "the column is missing"),
        (HEAD.replace("person", "persn") + "a,0,1,1,2,p\n", (1, "persn"), "unknown column; did you mean 'person'?"),
        (HEAD + "a,0,1,1,2,p\na,1,2,1,2\n", 3, "the row has 5 cells, the header 6"),
        (HEAD + "a,0,1,1,2,p\na,1,2,1,2,p,7\n", 3, "the row has 7 cells, the header 6"),
        (HEAD + "a,0,1,1,2,p\n\nb,0,2,1,2,p\n", 3, "the line is empty; remove it"),
        (HEAD + 'a,0,1,1,2,"p\nb,0,2,1,2,p\n', 2, "close the quotes"),
        (HEAD + 'a,0,1,1,2,"p"q\n', 2, "the quotes or separators are wrong"),
        (HEAD.replace(",", ";") + "a;0;1;1;2;p\n", 1, "the columns are separated by ';'; save the file with commas"),
        (HEAD.replace(",", "\t") + "a\t0\t1\t1\t2\tp\n", 1, "the columns are separated by '\\t'"),
        (HEAD + "a,0,1,1,2,p\0\n", 2, "NUL character"),
        (HEAD + "a,0,,1,2,p\n", (2, "state"), "the label is empty"),
        (HEAD + "a,0,1, ,2,p\n", (2, "action"), "the label is empty"),
        (HEAD + ",0,1,1,2,p\n", (2, "trajectory"), "the label is empty"),
        (HEAD + "a,,1,1,2,p\n", (2, "step"), "found ''; write a whole number"),
        (HEAD + "a,1.5,1,1,2,p\n", (2, "step"), "found '1.5'; write a whole number"),
        (HEAD + f"a,{10**40},1,1,2,p\n", (2, "step"), "write a whole number"),
        (HEAD + f"a,0,{'1' * 5000},1,2,p\n", (2, "state"), "the label has 5000 characters; 1000 are possible"),
        (HEAD + "a,0,1,1,2,p\nb,0,1,1,2,p\na,0,1,1,2,p\n", (4, "step"), "step 0 of trajectory 'a' is there twice"),
        (HEAD + "a,1,3,1,4,p\na,0,1,1,2,p\n", (3, "next_state"), "found 2, but the next step is in state 3"),
        (HEAD + "a,0,1,1,2,p\na,1,2,1,2,q\n", (3, "person"), "found 'q', but earlier rows of this trajectory have 'p'"),
        (HEAD.replace("person", "weight") + "a,0,1,1,2,-1\n", (2, "weight"), "a weight is not negative"),
        (HEAD.replace("person", "weight") + "a,0,1,1,2,nan\n", (2, "weight"), "write a finite number"),
        (HEAD.replace("person", "weight") + "a,0,1,1,2,1e999\n", (2, "weight"), "write a finite number"),
        (HEAD.replace("person", "weight") + "a,0,1,1,2,\n", (2, "weight"), "write a finite number"),
        (HEAD.replace("person", "context") + "a,0,1,1,2,\n", (2, "context"), "the label is empty"),
        (HEAD.replace("person", "source") + "a,0,1,1,2,\n", (2, "source"), "the label is empty"),
    ],
)
def test_a_bad_row_is_named_with_what_to_do(tmp_path, text, place, reason):
    path = file(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_panel(path)
    first = error.value.problems[0]
    line, field = place if isinstance(place, tuple) else (place, first.field)
    assert (first.file, first.line, first.field) == (str(path), line, field)
    assert reason in first.reason


def test_every_bad_row_is_listed_and_open_quotes_harm_only_their_line(tmp_path):
    rows = ["a,0,1,1,2,p", 'a,1,2,"1,2,p', "a,x,2,1,2,p", "a,2", "a,3,1,1,1,p"]
    with pytest.raises(DataError) as error:
        read_panel(file(tmp_path, HEAD + "\n".join(rows)))
    assert [p.line for p in error.value.problems] == [3, 5]
    with pytest.raises(DataError) as error:
        read_panel(file(tmp_path, HEAD + "a,x,1,1,2,p\na,1,,,2,p\n" + "a,z,1,1,1,p\n" * 40))
    assert len(error.value.problems) == 43 and str(error.value).count("\n") == 20
    assert [p.line for p in error.value.problems] == sorted(p.line for p in error.value.problems if p.line)


def test_rows_of_frames_are_named_by_number():
    frame = pd.DataFrame({"trajectory": [1, 1], "step": [0, 1], "state": [1, None], "action": [0, 0]})
    with pytest.raises(DataError, match="the panel, row 1, field 'state': the label is empty"):
        read_panel(frame)
    with pytest.raises(DataError, match=r"the panel, row 0, field 'state': found \[1\]; write text or a number"):
        read_panel(frame.assign(state=[[1], 2]))
    with pytest.raises(DataError, match="two columns have this name"):
        read_panel(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    for nothing in (3, None, [1, 2], {"state": [1]}):
        with pytest.raises(ConfigError, match="give a path, a pandas frame or a polars frame"):
            read_panel(nothing)


def test_quotes_crlf_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "panel.csv"
    path.write_bytes(b'\xef\xbb\xbf trajectory ,step,state,action\r\n"a, ""b""",0, 1 ,go left\r\n\r\n \r\n')
    feedback = read_panel(path)
    assert list(feedback.id) == ['a, "b"'] and list(feedback.trajectories) == [Path((1,), ("go left",))]
    path.write_bytes(b"trajectory,step,state,action\na,0,1,\xff\n")
    with pytest.raises(DataError, match="line 2: byte 0xff in position 7 is not UTF-8"):
        read_panel(path)


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    path = file(tmp_path, "this is no parquet", "panel.parquet")
    with pytest.raises(DataError, match="not a Parquet file of plain columns"):
        read_panel(path)
    with pytest.raises(DataError, match="there is no such file"):
        read_panel(tmp_path / "none.parquet")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs pyarrow; pip install 'irlhf\[parquet\]'"):
        read_panel(path)
    with pytest.raises(ConfigError, match="needs pyarrow"):
        write_panel(demonstrations("x", Paths.of([Path((1,), (0,))])), path)


def same(one, other):
    assert list(one) == list(other)
    for column in ("state", "action", "next_state", "first_step", "time"):
        first, second = getattr(one.trajectories, column), getattr(other.trajectories, column)
        assert list(first) == list(second) and [type(x) for x in first] == [type(x) for x in second]
    assert list(one.id) == list(other.id) and list(one.source) == list(other.source)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_what_is_read_is_written_and_read_again_unchanged(tmp_path, suffix):
    feedback = read_panel(file(tmp_path, PANEL))
    path = tmp_path / f"again.{suffix}"
    write_panel(feedback, path)
    same(read_panel(path), feedback)
    before = path.read_bytes()
    write_panel(read_panel(path), path)
    assert path.read_bytes() == before


def with_longer_gaps(paths, rng):
    """The same paths with some more steps missing, also where a step led to the state after the gap."""
    more = np.cumsum((rng.random(len(paths.time)) < 0.3) * rng.integers(1, 4, len(paths.time)))
    more = more - np.repeat(more[paths.first_step[:-1]], np.diff(paths.first_step))
    return replace(paths, time=paths.time + more)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_any_paths_are_written_and_read_again(tmp_path, suffix):
    rng = np.random.default_rng(0)
    labels = objects([0, 1, -5, 10**30, "a", "b c", 'q"u,ote', "1.0", "x\u2028y"])
    for _ in range(50):
        n = int(rng.integers(1, 30))
        first = np.unique(np.concatenate([[0], rng.integers(0, n, 3), [n]])).astype(np.int64)
        state, action, following = labels[rng.integers(0, len(labels), (3, n))]
        leads = rng.random(n) < 0.5
        leads[first[1:] - 1] = False
        following[leads] = state[np.flatnonzero(leads) + 1]
        following[(rng.random(n) < 0.3) & ~leads] = UNKNOWN
        k = len(first) - 1
        feedback = demonstrations(
            [labels[rng.integers(3)]] * k,
            with_longer_gaps(Paths(state, action, following, first), rng),
            persons=[None if rng.random() < 0.5 else "ann" for _ in range(k)],
            weights=rng.random(k).tolist(),
            source="x",
        )
        write_panel(feedback, tmp_path / f"p.{suffix}")
        same(read_panel(tmp_path / f"p.{suffix}"), feedback)
        part = feedback[::-1]  # rows whose paths are not in their order
        write_panel(part, tmp_path / f"p.{suffix}")
        assert list(read_panel(tmp_path / f"p.{suffix}")) == list(part)


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        (comparisons(["x"], ["a"], ["b"], [0]), "a panel holds demonstrations only"),
        (demonstrations(None, [Path((1,), (2,))] * 2, ids=["a", "a"]), "two rows have one id"),
        (demonstrations("x", [Path((1,), ())]), "has no steps"),
        (demonstrations("x", [Path((1,), (1,), times=(3,))]), "does not start at time 0"),
        (demonstrations("x", [Path((1, 2), (1, 1), (3, UNKNOWN), (0, 1))]), "did not lead to the state of the next"),
        (demonstrations("x", [Path(("1",), (2,))]), "'1' would be read back as 1"),
        (demonstrations("x", [Path((1,), (" a",))]), "' a' would be read back as 'a'"),
        (demonstrations("x", [Path(((1, 2),), (2,))]), r"\(1, 2\) cannot be written in a cell"),
        (demonstrations("x", [Path((True,), (2,))]), "True would be read back as 'True'"),
        (demonstrations("x", [Path((None,), (2,))]), "cannot be written in a cell: the label is empty"),
        (demonstrations("x", [Path((1,), ("a\nb",))]), "would be read back as"),
        (demonstrations("x", [Path((1,), (1,))], persons=["a\nb"]), "cannot be written in one cell"),
        (demonstrations("x", [Path((1,), (1,))], ids=[""]), "cannot be written in one cell"),
        (demonstrations("x", [Path((1,), ("\ud800",))]), "would be read back as"),
    ],
)
def test_what_a_panel_cannot_hold_is_refused_before_anything_is_written(tmp_path, feedback, reason):
    with pytest.raises(DataError, match=reason):
        write_panel(feedback, tmp_path / "p.csv")
    assert not list(tmp_path.iterdir())


def test_no_loop_runs_over_rows(tmp_path):
    n = 50_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"trajectory": np.arange(n) // 100, "step": np.arange(n) % 100, "state": rng.integers(0, 90, n), "action": 0}
    )
    frame.to_csv(tmp_path / "p.csv", index=False)
    start = time.perf_counter()
    assert len(read_panel(tmp_path / "p.csv").trajectories.state) == n
    assert time.perf_counter() - start < 5  # 0.1 s where types are not checked; a million rows in 2 s


# ------------------------------------------------------------------------------------------ features, transitions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("keys", "on"), [("state", "states"), ("state,action", "pairs"), ("state,action,next_state", "outcomes")]
)
def test_features_know_what_they_are_on(tmp_path, kind, keys, on):
    n = keys.count(",")
    text = f"{keys},cost,len\n1{',go' * n},0.1,3\nend{',go' * n},1e-3,-0.25\n"
    table = read_features(as_source(kind, file(tmp_path, text)))
    assert table.attrs["on"] == on and list(table.columns) == [*keys.split(","), "cost", "len"]
    assert table["state"].tolist() == ([1, "end"])
    assert table["cost"].tolist() == [0.1, 0.001] and table["len"].tolist() == [3.0, -0.25]


@pytest.mark.parametrize(
    ("text", "line", "field", "reason"),
    [
        ("state,x\n1,2\n1,3\n", 3, "state", "an earlier row is for state 1 already; keep one"),
        ("state,action,x\n1,a,2\n1,a,3\n", 3, "state", "an earlier row is for state 1, action 'a' already"),
        ("state,x\n1,nan\n", 2, "x", "found 'nan'; write a finite number"),
        ("state,x\n1,\n", 2, "x", "found ''; write a finite number"),
        ("state,x\n1,1_000\n", 2, "x", "write a finite number"),
        ("state,x\n1,1e400\n", 2, "x", "write a finite number"),
        ("state,action\n1,2\n", 1, None, "there are no features beside state, action"),
        ("x\n1\n", 1, "state", "the column is missing"),
        ("state,next_state,x\n1,2,3\n", 1, "action", "the column is missing"),
    ],
)
def test_bad_features(tmp_path, text, line, field, reason):
    with pytest.raises(DataError) as error:
        read_features(file(tmp_path, text, "features.csv"))
    first = error.value.problems[0]
    assert (first.line, first.field) == (line, field) and reason in first.reason


@pytest.mark.parametrize("kind", KINDS)
def test_transitions(tmp_path, kind):
    text = "next_state,probability,state,action\n1,0.25,0,go\n2,0.75,0,go\nend,1,1,go\n"
    table = read_transitions(as_source(kind, file(tmp_path, text)))
    assert table.values.tolist() == [[0, "go", 1, 0.25], [0, "go", 2, 0.75], [1, "go", "end", 1.0]]


@pytest.mark.parametrize(
    ("rows", "line", "field", "reason"),
    [
        ("0,go,1,0.25\n1,go,1,1\n0,go,2,0.7\n", 2, "probability", "of state 0, action 'go' sum to 0.95; they must"),
        ("0,go,1,0.5\n0,go,1,0.5\n", 3, "state", "an earlier row is for state 0, action 'go', next_state 1 already"),
        ("0,go,1,1.5\n", 2, "probability", "found '1.5'; a probability is from 0 to 1"),
        ("0,go,1,-0.5\n", 2, "probability", "a probability is from 0 to 1"),
        ("0,go,1,one\n", 2, "probability", "write a finite number"),
        ("0,go,,1\n", 2, "next_state", "the label is empty"),
    ],
)
def test_bad_transitions(tmp_path, rows, line, field, reason):
    path = file(tmp_path, "state,action,next_state,probability\n" + rows, "transitions.csv")
    with pytest.raises(DataError) as error:
        read_transitions(path)
    first = error.value.problems[0]
    assert (first.line, first.field) == (line, field) and reason in first.reason
    assert read_transitions(file(tmp_path, "state,action,next_state,probability\n0,a,0,0.9999995\n")) is not None

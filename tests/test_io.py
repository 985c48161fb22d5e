"""Choices as JSON Lines: what is read is what was meant, or an error names the place; what is written is read back."""

import gzip
import json
import resource
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irlhf.errors import DataError
from irlhf.feedback import EVERYTHING, TIE, Choice, Feedback, Rating
from irlhf.gather import demonstrations, rankings
from irlhf.io import label, read_jsonl, write_jsonl


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "f.jsonl"


def problem(file, *rows, **options):
    """The one problem of a file."""
    with pytest.raises(DataError) as error:
        read_jsonl(lines(file, *rows), **options)
    [found] = error.value.problems
    return found


def test_every_shape_is_read(file):
    lines(
        file,
        {"context": "x", "trajectory": "abc"},
        {
            "context": "x",
            "shown": ["a", "b"],
            "chosen": 1,
            "offset": [0, 0.5],
            "person": "ann",
            "weight": 2,
            "id": None,
        },
        {"context": "x", "shown": ["a", "b"], "chosen": "tie", "id": "t", "source": "crowd", "weight": None},
        {"context": "y", "shown": ["a", "b", "c"], "ranks": [2, 3, 1], "id": "r", "person": 7},
        {"context": "y", "trajectory": "a", "level": 1, "levels": 3, "datum": "page"},
        {"context": "y", "trajectory": "b", "level": False},
        {"trajectory": "c", "level": True, "levels": 2},
    )
    feedback = read_jsonl(file)
    expected = [
        Choice("x", EVERYTHING, "abc", id="1", datum="1", source="demonstrations"),
        Choice("x", ("a", "b"), 1, (0.0, 0.5), id="2", datum="2", source="comparisons", person="ann", weight=2.0),
        Choice("x", ("a", "b"), TIE, id="t", datum="t", source="crowd"),
        Choice("y", ("c", "a", "b"), 0, id="r/0", datum="r", source="rankings", person="7"),
        Choice("y", ("a", "b"), 0, id="r/1", datum="r", source="rankings", person="7"),
        Rating("y", "a", 1, 3, id="5", datum="page", source="ratings"),
        Rating("y", "b", 0, 2, id="6", datum="6", source="ratings"),
        Rating(None, "c", 1, 2, id="7", datum="7", source="ratings"),
    ]
    assert list(feedback) == expected
    write_jsonl(feedback, file)
    assert list(read_jsonl(file)) == expected


def test_ties_in_rankings(file):
    pair = {"shown": ["a", "b"], "ranks": [1, 1]}
    assert "ties are not modeled; model ties" in problem(file, pair).reason
    [row] = read_jsonl(lines(file, pair), ties=True)
    assert row.chosen is TIE and row.shown == ("a", "b")
    [first, last] = read_jsonl(lines(file, {"shown": ["a", "b", "c"], "ranks": [2, 1, 2]}), ties=True)
    assert first.shown == ("b", "a", "c") and first.chosen == 0
    assert last.shown == ("a", "c") and last.chosen is TIE and last.datum == first.datum == "1"
    for ranks in ([1, 1, 1], [1, 1, 2], [1, 1, 2, 2], [2, 1, 2, 2]):
        row = {"shown": list("abcd")[: len(ranks)], "ranks": ranks}
        assert "ties are modeled for pairs" in problem(file, row, ties=True).reason


GOOD = {"context": "x", "shown": ["a", "b"], "chosen": 0}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**GOOD, "choosen": 1}, "choosen", "unknown field; did you mean 'chosen'?"),
        ({**GOOD, "Person": "a"}, "Person", "unknown field; did you mean 'person'?"),
        ({**GOOD, "zzz": 1}, "zzz", "unknown field; the known ones are chosen, context, datum"),
        ({**GOOD, "level": 1}, "level", "a choice has no such field"),
        ({**GOOD, "ranks": [1, 2]}, "chosen", "a ranking has no such field"),
        ({"shown": ["a", "b"]}, "shown", "nothing says what was preferred; add 'chosen'"),
        ({"context": "x"}, None, "there is no feedback in it"),
        ({"chosen": 0}, "shown", "the field is missing in a choice"),
        ({"level": True}, "trajectory", "the field is missing in a rating"),
        ({**GOOD, "chosen": 2}, "chosen", "2 is not a position in shown: write 0 to 1"),
        ({**GOOD, "chosen": -1}, "chosen", "-1 is not a position"),
        ({**GOOD, "chosen": True}, "chosen", "True is not a position"),
        ({**GOOD, "chosen": 1.0}, "chosen", "1.0 is not a position"),
        ({**GOOD, "chosen": "b"}, "chosen", "'b' is not a position in shown"),
        ({**GOOD, "chosen": None}, "chosen", "None is not a position"),
        ({**GOOD, "shown": ["a", "b", "c"], "chosen": "tie"}, "chosen", "a tie is between two trajectories, but 3"),
        ({**GOOD, "shown": ["a"]}, "shown", "at least two trajectories"),
        ({**GOOD, "shown": "ab"}, "shown", "found 'ab'; give a list"),
        ({**GOOD, "offset": [1]}, "offset", "one finite number for each of the 2 shown"),
        ({**GOOD, "offset": [1, "2"]}, "offset", "one finite number for each"),
        ({**GOOD, "offset": [0, 10**400]}, "offset", "one finite number for each"),
        ({**GOOD, "weight": -1}, "weight", "finite number that is not negative"),
        ({**GOOD, "weight": "1"}, "weight", "finite number that is not negative"),
        ({**GOOD, "weight": True}, "weight", "finite number that is not negative"),
        ({**GOOD, "weight": 10**400}, "weight", "finite number that is not negative"),
        ({**GOOD, "person": ""}, "person", "text that is not empty"),
        ({**GOOD, "id": 1.5}, "id", "text that is not empty, or a whole number"),
        ({**GOOD, "source": ["a"]}, "source", "text that is not empty"),
        ({"shown": ["a", "b"], "ranks": [1]}, "ranks", "one rank for each of the 2 shown"),
        ({"shown": ["a", "b"], "ranks": 1}, "ranks", "one rank for each"),
        ({"shown": ["a", "b"], "ranks": [0, 1]}, "ranks", "whole numbers from 1, the best"),
        ({"shown": ["a", "b"], "ranks": [1, 2.5]}, "ranks", "whole numbers from 1, the best"),
        ({"shown": ["a", "b"], "ranks": [1, 2], "offset": [0, 0]}, "offset", "a ranking has no such field"),
        ({"trajectory": "a", "level": 3, "levels": 3}, "level", "from 0 to 2"),
        ({"trajectory": "a", "level": 1}, "levels", "say how many levels there are"),
        ({"trajectory": "a", "level": True, "levels": 3}, "levels", "which has 2 levels; found 3"),
        ({"trajectory": "a", "level": 0, "levels": 1}, "levels", "from 2 to 1000"),
        ({"trajectory": "a", "level": 0, "levels": 10**300}, "levels", "from 2 to 1000"),
        ({"trajectory": "a", "level": 0.0, "levels": 2}, "level", "from 0 to 1"),
        ('{"weight": NaN, "trajectory": 1}', None, "NaN is not a number in JSON"),
        ('{"trajectory": [-Infinity]}', None, "-Infinity is not a number in JSON"),
        ('{"weight": 1e999, "trajectory": 1}', None, "'1e999' is too large for a number"),
        ('{"trajectory": {"k": [-1e9991]}}', None, "'-1e9991' is too large for a number"),
        ('{"trajectory": 1, "trajectory": 2}', None, "the field 'trajectory' is there twice"),
        ('{"trajectory": {"a": 1, "a": 2}}', None, "the field 'a' is there twice"),
        ('{"trajectory": 1', None, "not JSON: Expecting ',' delimiter at character 17"),
        ('{"trajectory": 1} {"trajectory": 1}', None, "not JSON: Extra data"),
        ("[1, 2]", None, "found [1, 2]; write one JSON object"),
        ("null", None, "found None; write one JSON object"),
        ('{"trajectory": ' + "[" * 100_000 + "]" * 100_000 + "}", None, "nested more than 64 deep"),
        ('{"trajectory": ' + '{"a":' * 100_000, None, "nested more than 64 deep"),
        ('{"trajectory": ' + "9" * 100_000 + "}", None, "a number has thousands of digits"),
        ('{"trajectory": "' + "a" * (1 << 20) + '"}', None, "longer than 1,048,576 bytes"),
        ('{"trajectory": "a\0"}', None, "NUL character"),
    ],
)
def test_a_bad_line_is_named_with_what_to_do(file, row, field, reason):
    found = problem(file, {"trajectory": "fine"}, row, {"trajectory": "fine too"})
    assert (found.file, found.line, found.field) == (str(file), 2, field)
    assert reason in found.reason


def test_brackets_in_text_are_no_nesting(file):
    text = '"\\' + "[" * 1000
    assert read_jsonl(lines(file, {"trajectory": [text, text]}))[0].chosen == [text, text]
    assert read_jsonl(lines(file, {"trajectory": [[k] for k in range(1000)]}))[0].chosen[999] == [999]


def test_a_parser_says_what_is_wrong_and_where(file):
    def parse(value):
        if not isinstance(value, str):
            raise ValueError(f"found {value!r}; write the path as text")
        return tuple(value)

    assert read_jsonl(lines(file, GOOD), parse_trajectory=parse)[0].shown == (("a",), ("b",))
    found = problem(file, GOOD | {"shown": ["a", 5]}, parse_trajectory=parse)
    assert (found.field, found.reason) == ("shown[1]", "found 5; write the path as text")
    found = problem(file, GOOD | {"context": 3}, parse_context=parse)
    assert (found.field, found.reason) == ("context", "found 3; write the path as text")


def test_all_bad_lines_are_listed_up_to_twenty(file):
    with pytest.raises(DataError) as error:
        read_jsonl(lines(file, *["nonsense"] * 30, GOOD))
    assert [p.line for p in error.value.problems] == list(range(1, 31))
    message = str(error.value).splitlines()
    assert (
        len(message) == 21 and message[0].startswith(f"{file}, line 1: not JSON") and message[-1] == "... and 10 more"
    )


def test_ids_name_one_row(file):
    found = problem(file, GOOD | {"id": "a"}, GOOD, GOOD | {"id": "a"})
    assert (found.line, found.field) == (3, "id") and "'a' is the id of line 1 already" in found.reason
    found = problem(file, GOOD | {"id": 2}, GOOD)
    assert found.line == 2 and "named by its number, but line 1 has the id 2" in found.reason
    ranking = {"shown": ["a", "b", "c"], "ranks": [1, 2, 3], "id": "r"}
    assert "'r/1' is the id of line 1 already" in problem(file, ranking, GOOD | {"id": "r/1"}).reason


def test_equal_contexts_are_one_also_when_they_are_lists(file):
    rows = [{"context": x, "trajectory": 1} for x in ([0, 3], [0, 3], [0, 3.0], {"a": 1}, {"a": 1})]
    assert list(read_jsonl(lines(file, *rows)).context) == [0, 0, 1, 2, 2]


def test_skipping_keeps_the_good_lines_untouched_and_the_others_beside(file):
    lines(file, {**GOOD, "id": "a"}, "nonsense", GOOD, {**GOOD, "id": "a"}, {**GOOD, "chosen": 5}, {**GOOD, "id": "z"})
    with pytest.warns(UserWarning, match=r"f\.jsonl: 3 of 6 lines were rejected; see f\.rejected\.jsonl"):
        feedback = read_jsonl(file, on_error="skip")
    assert [row.id for row in feedback] == ["a", "3", "z"]
    rejected = [json.loads(line) for line in (file.parent / "f.rejected.jsonl").read_text().splitlines()]
    assert [(r["line"], r["field"]) for r in rejected] == [(2, None), (4, "id"), (5, "chosen")]
    assert rejected[0]["text"] == "nonsense" and "not JSON" in rejected[0]["reason"]


def test_skipping_nothing_warns_and_writes_nothing(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_jsonl(lines(file, GOOD), on_error="skip")) == 1
    assert [p.name for p in file.parent.iterdir()] == ["f.jsonl"]


def test_encodings(file):
    file.write_bytes(b'\xef\xbb\xbf{"trajectory": "\xc3\xa9\xe2\x80\xa8"}\r\n\r\n \n\n')
    assert read_jsonl(file)[0].chosen == "\u00e9\u2028"
    file.write_bytes(b'{"trajectory": 1}\n{"trajectory": "\xe9"}\n')
    with pytest.raises(DataError, match=r"line 2: byte 0xe9 in position 17 is not UTF-8; save the file as UTF-8"):
        read_jsonl(file)
    file.write_text('{"trajectory": 1}', encoding="utf-16")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_jsonl(file)


def test_a_blank_line_in_the_middle_is_not_dropped_silently(file):
    assert problem(file, GOOD, "", GOOD).line == 2


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(file, content):
    file.write_text(content)
    with pytest.raises(DataError, match="the file is empty"):
        read_jsonl(file)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="there is no such file; check the path"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_jsonl(tmp_path)
    with pytest.raises(DataError, match="cannot be read: embedded null byte"):
        read_jsonl("a\0b")


def test_compressed_files(tmp_path):
    path = tmp_path / "f.jsonl.gz"
    feedback = Feedback.of([Choice("x", ("a", "b"), 0)])
    write_jsonl(feedback, path)
    assert list(read_jsonl(path)) == list(read_jsonl(path)) and read_jsonl(path)[0].shown == ("a", "b")
    whole = path.read_bytes()
    for damaged in (whole[:-6], whole[:12] + b"\xff\xff\xff" + whole[15:], b"not gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="the compressed data is damaged"):
            read_jsonl(path)


@pytest.mark.parametrize("byte", [b"\0", b"\n", b"[", b'"\n', b"[]\n"])
def test_bombs_end_soon_and_small(tmp_path, byte):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(byte * ((1 << 20) // len(byte)))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError):
        read_jsonl(path)
    assert time.process_time() - start < 5  # 1 s where nothing else runs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.just("\ud800")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
numbers = st.floats(-1e300, 1e300)
common = {
    "weight": st.floats(0, 1e300),
    "source": text,
    "person": st.none() | text,
    "datum": st.none() | text,
    "id": st.none(),
}


choices = st.tuples(
    st.lists(values, min_size=2, max_size=4), st.integers(-1, 3), st.none() | st.tuples(*[numbers] * 4), values
)
ratings = st.tuples(values, st.integers(2, 9), st.integers(0, 8))


def row(kind, choice, rating, common):
    """A row from drawn values; made here, because checking types at random disturbs hypothesis."""
    if kind == "rating":
        trajectory, levels, level = rating
        return Rating(trajectory, trajectory, level % levels, levels, **common)
    shown, chosen, offset, context = choice
    if kind == "demonstration":
        return Choice(context, EVERYTHING, shown[0], **common)
    chosen = TIE if chosen < 0 and len(shown) == 2 else abs(chosen) % len(shown)
    return Choice(context, tuple(shown), chosen, offset and offset[: len(shown)], **common)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rating", "demonstration", "choice"]), choices, ratings, st.fixed_dictionaries(common)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_written_is_read_back(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("round") / "f.jsonl"
    feedback = Feedback.of([row(*one) for one in drawn])
    write_jsonl(feedback, path)
    again = read_jsonl(path)
    assert repr(list(again)) == repr(list(feedback))  # repr, because 1 == True == 1.0
    first = path.read_bytes()
    write_jsonl(again, path)
    assert path.read_bytes() == first


def test_a_ranking_stays_one_datum(file):
    feedback = rankings(["x", "y"], [["a", "b", "c"], ["b", "a"]], persons=["ann", None])
    write_jsonl(feedback, file)
    assert list(read_jsonl(file)) == list(feedback)


def test_what_cannot_be_written_leaves_the_file_as_it_was(file):
    lines(file, GOOD)
    before = file.read_bytes()
    twice = demonstrations(None, ["a", "b"], ids=["i", "i"])
    with pytest.raises(DataError, match="rows 0 and 1 have one id, 'i'; give each row its own"):
        write_jsonl(twice, file)
    for bad in (object(), float("nan")):
        with pytest.raises(DataError, match="row 0 \\(id '0'\\) cannot be written as JSON"):
            write_jsonl(demonstrations("x", [bad]), file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["f.jsonl"]


def test_trajectories_are_written_as_the_world_says(file):
    feedback = demonstrations([("s", 1)], [(1, 2)])
    write_jsonl(feedback, file, trajectory_json=list, context_json=list)
    assert json.loads(file.read_text())["trajectory"] == [1, 2]
    assert list(read_jsonl(file, parse_trajectory=tuple, parse_context=tuple)) == list(feedback)


TEXTS = {"0": 0, "-7": -7, "007": "007", "1.0": "1.0", "+1": "+1", "1e3": "1e3", " a ": "a", "٣": "٣"}


@pytest.mark.parametrize(("cell", "expected"), [*TEXTS.items(), (3, 3), (3.0, 3), (3.5, "3.5"), (True, "True")])
def test_labels_are_the_same_everywhere(cell, expected):
    assert label(cell) == expected and type(label(cell)) is type(expected)


@pytest.mark.parametrize("cell", ["", " ", None, float("nan"), "a" * 1001, [1], {}, pytest.param(10**5000, id="huge")])
def test_what_is_no_label(cell):
    with pytest.raises(ValueError, match=r"empty|characters|digits|write text or a number"):
        label(cell)

"""Each shape of data, as strings and as conversations, beside the rows written by hand; damage; real pairs."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from irlhf import EVERYTHING, TIE, Choice, Rating, Source, Term, davidson, listed
from irlhf.errors import ConfigError, DataError
from irlhf.io import read_jsonl
from irlhf.worlds.text.encoding import Message
from irlhf.worlds.text.reading import read, read_prompts
from tests.test_fuzz_files import MEMORY, damaged, files_in_memory, n_lines

USER, SYSTEM = {"role": "user", "content": "Which color?"}, {"role": "system", "content": "Be brief."}
RED, BLUE, SKY = ({"role": "assistant", "content": content} for content in ("Red.", "Blue.", "The sky's."))
WHY = {"role": "user", "content": "Why?"}


def said(*messages: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(message["role"], message["content"]) for message in messages)


def demonstration(context, trajectory, **common) -> Choice:
    return Choice(context, EVERYTHING, trajectory, **{"source": "demonstrations", "id": "a", "datum": "a"} | common)


def comparison(context, *shown, **common) -> Choice:
    return Choice(context, shown, 0, **{"source": "comparisons", "id": "a", "datum": "a"} | common)


def ranking(context, first, second, third) -> list[Choice]:
    return [
        Choice(context, (first, second, third), 0, source="rankings", id="a/0", datum="a"),
        Choice(context, (second, third), 0, source="rankings", id="a/1", datum="a"),
    ]


def rating(context, trajectory, level, levels=2, **common) -> Rating:
    return Rating(context, trajectory, level, levels, **{"source": "ratings", "id": "a", "datum": "a"} | common)


SHAPES = {
    "text": ({"text": "Red it is."}, [demonstration(None, "Red it is.")]),
    "messages": ({"messages": [SYSTEM, USER, RED]}, [demonstration(said(SYSTEM, USER), said(RED))]),
    "messages of two turns": (
        {"messages": [USER, RED, WHY, SKY]},
        [
            demonstration(said(USER), said(RED), id="a/0"),
            demonstration(said(USER, RED, WHY), said(SKY), id="a/1"),
        ],
    ),
    "completion": ({"prompt": "Which?", "completion": " Red."}, [demonstration("Which?", " Red.")]),
    "completion after nothing": ({"completion": "Red."}, [demonstration(None, "Red.")]),
    "completion of messages": ({"prompt": [USER], "completion": [RED]}, [demonstration(said(USER), said(RED))]),
    "completion of two turns": (
        {"prompt": [USER], "completion": [RED, WHY, SKY]},
        [
            demonstration(said(USER), said(RED), id="a/0"),
            demonstration(said(USER, RED, WHY), said(SKY), id="a/1"),
        ],
    ),
    "preference": (
        {"prompt": "Which?", "chosen": " Red.", "rejected": " Blue."},
        [comparison("Which?", " Red.", " Blue.")],
    ),
    "preference of messages": (
        {"prompt": [USER], "chosen": [RED], "rejected": [BLUE]},
        [comparison(said(USER), said(RED), said(BLUE))],
    ),
    "implicit": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},  # not "The sky is bl"
        [comparison("The sky is", " blue.", " black.")],
    ),
    "implicit in the first word": ({"chosen": "Red.", "rejected": "Blue."}, [comparison(None, "Red.", "Blue.")]),
    "implicit of messages": (
        {"chosen": [SYSTEM, USER, RED], "rejected": [SYSTEM, USER, BLUE]},
        [comparison(said(SYSTEM, USER), said(RED), said(BLUE))],
    ),
    "implicit, and the prompt once more": (
        {"prompt": USER["content"], "chosen": [USER, RED], "rejected": [USER, BLUE]},
        [comparison(said(USER), said(RED), said(BLUE))],
    ),
    "margin": (
        {"prompt": "Which?", "chosen": "Red.", "rejected": "Blue.", "margin": 0.5},
        [comparison("Which?", "Red.", "Blue.", offset=(0.0, 0.5))],
    ),
    "margin of messages": (
        {"chosen": [USER, RED], "rejected": [USER, BLUE], "margin": -1},
        [comparison(said(USER), said(RED), said(BLUE), offset=(0.0, -1.0))],
    ),
    "rated": ({"prompt": "Which?", "completion": "Red.", "label": True}, [rating("Which?", "Red.", 1)]),
    "rated messages": (
        {"prompt": [USER], "completion": [BLUE], "label": False},
        [rating(said(USER), said(BLUE), 0)],
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: Which color?\n\nAssistant: Red.\n\nHuman: Why?\n\nAssistant: The sky's.",
            "rejected": "\n\nHuman: Which color?\n\nAssistant: Red.\n\nHuman: Why?\n\nAssistant: Blue.",
        },
        [comparison(said(USER, RED, WHY), said(SKY), said(BLUE))],
    ),
    "hh-rlhf that parts early": (
        {
            "chosen": "\n\nHuman: Which color?\n\nAssistant: Red.",
            "rejected": "\n\nHuman: Which color?\n\nAssistant: Blue.\n\nHuman: Why?\n\nAssistant: x",
        },
        [comparison(said(USER), said(RED), (Message("assistant", "Blue.\n\nHuman: Why?\n\nAssistant: x"),))],
    ),
    "a prompt of hh-rlhf": (
        {"prompt": "\n\nHuman: Which color?\n\nAssistant:", "chosen": " Red.", "rejected": " Blue."},
        [comparison(said(USER), said(RED), said(BLUE))],
    ),
    "a text of hh-rlhf": (
        {"text": "\n\nHuman: Which color?\n\nAssistant: Red."},
        [demonstration(said(USER), said(RED))],
    ),
    "no hh-rlhf": (
        {"chosen": "Human: one\n\nAssistant: two", "rejected": "Human: one\n\nAssistant: three"},
        [comparison("Human: one\n\nAssistant:", " two", " three")],
    ),
    "ranks": (
        {"prompt": "Which?", "completions": ["Blue.", "Red.", "None."], "ranks": [2, 1, 3]},
        ranking("Which?", "Red.", "Blue.", "None."),
    ),
    "ranks of messages": (
        {"prompt": [USER], "completions": [[BLUE], [RED], "The sky's."], "ranks": [2, 1, 3]},
        ranking(said(USER), said(RED), said(BLUE), said(SKY)),
    ),
    "scores": (
        {"prompt": "Which?", "completions": ["Blue.", "Red.", "None."], "scores": [0.5, 7, -1e3]},
        ranking("Which?", "Red.", "Blue.", "None."),
    ),
    "own fields": (
        {"context": [USER], "shown": ["Red.", [BLUE]], "chosen": 1, "offset": [0, 1]},
        [Choice(said(USER), (said(RED), said(BLUE)), 1, (0.0, 1.0), source="comparisons", id="a", datum="a")],
    ),
    "own rating": ({"trajectory": "Red.", "level": 2, "levels": 3}, [rating(None, "Red.", 2, 3)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_the_rows_written_by_hand(shape):
    fields, rows = SHAPES[shape]
    assert list(read([{"id": "a"} | fields])) == rows
    filled = {"margin": None, "messages": None, "label": None, "images": []} | fields  # as tables do
    assert list(read([{"id": "a"} | filled])) == rows


def test_scores_are_ratings_where_levels_are_given():
    row = {"id": "a", "prompt": "Which?", "completions": ["Red.", "Blue."], "scores": [2.0, 0]}
    both = {"datum": "a", "source": "ratings"}
    assert list(read([row], levels=3)) == [
        Rating("Which?", "Red.", 2, 3, id="a/0", **both),
        Rating("Which?", "Blue.", 0, 3, id="a/1", **both),
    ]
    with pytest.raises(DataError, match=r"field 'scores\[0\]': found 2.0; with levels=2, write a whole number"):
        read([row], levels=2)
    with pytest.raises(ConfigError, match="levels is 1"):
        read([row], levels=1)
    assert len(read([row])) == 1  # a ranking of two


@pytest.mark.parametrize("told", [{"ranks": [1, 2, 2]}, {"scores": [5, 1, 1]}])
def test_equal_ranks_are_refused_unless_ties_are_modeled(told):
    row = {"completions": ["Red.", "Blue.", "None."]} | told
    with pytest.raises(DataError, match=f"field '{next(iter(told))}': .* has equal ranks, but ties are not modeled"):
        read([row])
    first, last = read([row], ties=True)
    assert first.chosen == 0 and last.shown == ("Blue.", "None.") and last.chosen is TIE


@dataclass(frozen=True)
class Lookup:
    """A world whose batch is the list of trajectories, and a reward that looks them up."""

    worth: dict[str, float]
    deterministic: bool = True

    def collate(self, contexts, trajectories):
        return list(trajectories)

    def log_base(self, batch):
        raise NotImplementedError

    def log_base_step(self, batch):
        raise NotImplementedError

    def __call__(self, batch):
        return torch.tensor([self.worth[trajectory] for trajectory in batch], dtype=torch.float64)


def test_a_margin_is_that_of_trl():
    world = Lookup({"Red.": 0.3, "Blue.": -0.4})
    rows = read([{"prompt": "Which?", "chosen": "Red.", "rejected": "Blue.", "margin": m} for m in (0.0, 1.5, -2.0)])
    margin = torch.tensor([0.0, 1.5, -2.0], dtype=torch.float64)
    by_hand = torch.nn.functional.logsigmoid(torch.tensor(0.7, dtype=torch.float64) - margin)
    torch.testing.assert_close(Term(rows, listed(world)).log_prob(world), by_hand, rtol=0, atol=1e-15)


def test_a_row_says_who_when_and_how_often():
    common = {"id": 7, "person": "ann", "source": "crowd", "weight": 2, "datum": "d"}
    [row] = read([{"completion": "Red.", **common}])
    assert row == demonstration(None, "Red.", id="7", person="ann", source="crowd", weight=2.0, datum="d")
    assert read([{"completion": "Red.", **common}], source="us")[0].source == "us"
    twice = read([{"messages": [USER, RED, WHY, SKY], **common}])
    assert list(twice.id) == ["7/0", "7/1"] and set(twice.datum) == {"d"} and list(twice.person) == ["ann"] * 2


def test_rows_without_an_id_are_named_by_their_place(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"messages": [USER, RED, WHY, SKY]}))
    assert list(read(path).id) == ["1", "2/0", "2/1"]
    assert list(read([{"text": "a"}, {"text": "b"}]).id) == ["0", "1"]
    with pytest.raises(DataError, match="the data, row 1, field 'id': 'x' is the id of row 0 already"):
        read([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}])


# ------------------------------------------------------------------------------------------------------ containers

PAIRS = [
    {"prompt": [USER], "chosen": [RED], "rejected": [BLUE], "margin": 0.5, "person": "ann"},
    {"prompt": [SYSTEM, USER], "chosen": [BLUE], "rejected": [SKY], "margin": None, "person": None},
]


def containers(folder: Path):
    text = "".join(json.dumps(row) + "\n" for row in PAIRS)
    (folder / "f.jsonl").write_text(text)
    (folder / "f.json").write_text(text)
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(PAIRS), folder / "f.parquet")
    yield from (folder / name for name in ("f.jsonl", "f.json", "f.jsonl.gz", "f.parquet"))
    yield PAIRS
    yield datasets.Dataset.from_list(PAIRS)
    yield datasets.Dataset.from_list(PAIRS).with_format("numpy")
    yield datasets.Dataset.from_list(PAIRS).to_iterable_dataset()


def test_every_container_holds_the_same(tmp_path):
    one = comparison(said(USER), said(RED), said(BLUE), offset=(0.0, 0.5), person="ann", id="", datum="")
    two = comparison(said(SYSTEM, USER), said(BLUE), said(SKY), id="", datum="")
    for data in containers(tmp_path):
        rows = list(read(data))
        assert [row.id for row in rows] in (["0", "1"], ["1", "2"])
        assert [Choice(**(vars(row) | {"id": "", "datum": ""})) for row in rows] == [one, two], data
        assert read_prompts(data) == [one.context, two.context]


def test_the_librarys_own_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(
        '{"context": "x", "trajectory": "abc"}\n'
        '{"context": "x", "shown": ["a", "b"], "chosen": "tie", "person": "ann"}\n'
        '{"shown": ["a", "b", "c"], "ranks": [2, 3, 1]}\n'
        '{"context": null, "trajectory": "b", "level": false}\n'
    )
    assert list(read(path, ties=True)) == list(read_jsonl(path, ties=True))
    assert Term(read(path, ties=True)[1:2], listed(Lookup({"a": 0.0, "b": 0.0})), Source(ties=davidson()))


def test_columns_that_no_shape_has_are_named_and_not_read(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 3, "magrin": k} for k in (1, 2)]
    with pytest.warns(UserWarning, match=r"'score_chosen' \(2 rows.*, 'magrin' \(2 rows, did you mean 'margin'\?\)"):
        assert len(read(rows)) == 2
    table = [row | {"image_of_it": {"bytes": b"\0", "path": None}} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "f.parquet")
    with pytest.warns(UserWarning, match=r"f\.parquet: these fields were not read.*'image_of_it'"):
        assert list(read(tmp_path / "f.parquet")) == list(read([{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2))
    with pytest.warns(UserWarning, match=r"the dataset: .*'score_chosen' .*'magrin' "):
        read(datasets.Dataset.from_list(rows))
    with pytest.raises(DataError, match="no column is one of a shape"):
        read(datasets.Dataset.from_list([{"review": "good"}]))


def test_what_is_no_data_says_what_to_give(tmp_path):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)})
    with pytest.raises(ConfigError, match="a dictionary of 'train'; give one of them"):
        read(splits)
    with pytest.raises(ConfigError, match="the data are a int"):
        read(3)
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(DataError, match=rf"{name}: there is no such file"):
            read(tmp_path / name)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        read(tmp_path / "bad.parquet")
    for empty in ([], tmp_path / "empty.jsonl"):
        (tmp_path / "empty.jsonl").touch()
        with pytest.raises(DataError, match=r"there are no rows|the file is empty"):
            read(empty)


# ------------------------------------------------------------------------------------------------------- bad rows

BAD = [
    ({"prompt": "p"}, None, "read_prompts reads it"),
    ({}, None, "there is no feedback in it"),
    ({"prompt": 3, "completion": "a"}, "prompt", "found 3; write a string, or a list of messages"),
    ({"prompt": "p", "completion": 3}, "completion", "found 3"),
    ({"prompt": "p", "completion": [RED]}, "completion", "it is messages, but the prompt is not"),
    ({"prompt": [USER], "completion": [USER]}, "completion", "the last message is the user's"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [RED]}, "chosen", "starts with the role 'user'"),
    ({"prompt": [USER], "chosen": [RED, WHY, SKY], "rejected": [RED]}, "chosen", "it has 3 messages"),
    ({"prompt": "p", "chosen": "a"}, "rejected", "the field is missing in a preference"),
    ({"chosen": "a", "rejected": [RED]}, "rejected", "one of chosen and rejected is a string"),
    ({"chosen": [RED], "rejected": [BLUE]}, "rejected", "share no first message"),
    ({"prompt": "x", "chosen": [USER, RED], "rejected": [USER, BLUE]}, "prompt", "no message of theirs"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "1"}, "margin", "found '1'; write a finite number"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": True}, "margin", "found True"),
    ({"prompt": "p", "completion": "a", "margin": 1}, "margin", "a demonstration has no such field"),
    ({"prompt": "p", "completion": "a", "label": 1}, "label", "found 1; write true or false"),
    ({"text": "a", "label": True}, "completion", "the field is missing in a rated completion"),
    ({"text": "a", "prompt": "p"}, "prompt", "a text has no such field"),
    ({"messages": []}, "messages", r"found \[\]"),
    ({"messages": [RED]}, "messages", "no prompt"),
    ({"messages": [USER]}, "messages", "end with the assistant's answer"),
    ({"messages": [USER, {"from": "gpt", "value": "a"}]}, r"messages\[1\]", 'write {"role": "user"'),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\]", "found None"),
    ({"messages": [USER, RED | {"tool_calls": [1]}]}, r"messages\[0\]|messages\[1\]", "found 'tool_calls'"),
    ({"prompt": "p", "completion": "a", "images": [1]}, "images", "only text is read here"),
    ({"completions": ["a"], "ranks": [1]}, "completions", "at least two"),
    ({"completions": ["a"] * 1001, "ranks": [*range(1, 1002)]}, "completions", "1,000 are possible"),
    ({"shown": ["a"] * 1001, "ranks": [*range(1, 1002)]}, "shown", "1,000 are possible"),
    ({"completions": "ab", "ranks": [1, 2]}, "completions", "give a list"),
    ({"completions": ["a", "b"]}, None, "neither of ranks and scores"),
    ({"completions": ["a", "b"], "ranks": [1, 2], "scores": [1, 2]}, None, "both of ranks and scores"),
    ({"completions": ["a", "b"], "ranks": [1]}, "ranks", "give one rank for each of the 2"),
    ({"completions": ["a", "b"], "scores": [1, None]}, "scores", "one finite number for each"),
    ({"text": "half \ud800"}, "text", "lone surrogate"),
    ({"text": "x" * (1 << 20) + "x"}, "text", "1,048,576 are possible"),
    ({"text": "a", "weight": -1}, "weight", "not negative"),
    ({"messages": [USER, RED, WHY, SKY], "id": []}, "id", r"found \[\]"),
    ({"context": "x", "shown": ["a", "b"]}, "shown", "nothing says what was preferred"),
    ({"context": "x", "trajectory": "a", "rnaks": 1}, "rnaks", "did you mean 'ranks'"),
    ("text", None, "a row is a dictionary"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD)
def test_a_row_that_cannot_be_used_is_named_with_field_and_reason(row, field, reason):
    place = "the data, row 1" + ("" if field is None else f", field '{field}'")
    with pytest.raises(DataError, match=rf"(?s)^{place}: .*{reason}"):
        read([{"text": "fine"}, row])


def test_twenty_bad_lines_are_listed_and_the_rest_counted(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "fine"}\n' + '{"text": 1}\n' * 30)
    with pytest.raises(DataError) as error:
        read(path)
    listed_lines = str(error.value).splitlines()
    assert len(listed_lines) == 21 and listed_lines[-1] == "... and 10 more"
    assert listed_lines[0] == f"{path}, line 2, field 'text': found 1; write a string"


def test_bad_rows_are_skipped_and_kept_where_that_is_asked_for(tmp_path):
    rows = [{"text": "fine"}, {"prompt": "p", "completion": "a", "label": "yes"}, {"text": "too"}]
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"1 of 3 lines were rejected; see f\.rejected\.jsonl"):
        assert [row.chosen for row in read(path, on_error="skip")] == ["fine", "too"]
    [rejected] = map(json.loads, (tmp_path / "f.rejected.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["field"]) == (2, "label") and json.loads(rejected["text"]) == rows[1]
    with pytest.warns(UserWarning, match=r"(?s)1 of 3 rows were rejected.*row 1, field 'label': found 'yes'"):
        assert len(read(rows, on_error="skip")) == 2
    pq.write_table(pa.table({"text": ["fine", None]}), tmp_path / "g.parquet")
    with pytest.warns(UserWarning, match=r"1 of 2 rows were rejected; see g\.rejected\.jsonl"):
        assert len(read(tmp_path / "g.parquet", on_error="skip")) == 1
    assert json.loads((tmp_path / "g.rejected.jsonl").read_text())["row"] == 1


def test_prompts_are_read_whatever_else_a_row_has():
    rows = [{"prompt": "p", "solution": 3}, {"prompt": [USER], "chosen": 1}, {"prompt": None}, {"context": ""}]
    assert read_prompts(rows) == ["p", said(USER), None, ""]
    assert read_prompts([{"prompt": "\n\nHuman: Which color?\n\nAssistant:"}]) == [said(USER)]
    with pytest.raises(DataError, match="row 0, field 'prompt': the field is missing"):
        read_prompts([{"text": "a"}])


def result(path: Path, **options):
    """(feedback, None) or (None, error)."""
    try:
        return read(path, **options), None
    except DataError as error:
        return None, error


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "' + b"x" * (2 << 20) + b'"}',
        b'{"messages": ' + b"[" * 100_000 + b"}",
        b"{" + b",".join(b'"k%d": 1' % k for k in range(100_000)) + b', "text": "a"}',
        b'{"completions": [' + b'"a",' * 200_000 + b'"a"], "ranks": [1]}',
        b'{"chosen": "' + b"a " * 250_000 + b'a", "rejected": "' + b"a " * 250_000 + b'b"}',
    ],
)
def test_large_lines_are_answered_soon(tmp_path, line):
    path = tmp_path / "f.jsonl"
    path.write_bytes(line)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, error = result(path)
    assert (error is None and len(found) == 1) or len(str(error)) < 1000
    assert time.process_time() - start < 3  # with every signature checked; under 1 without


VALID = "".join(json.dumps({"id": k} | fields) + "\n" for k, (fields, _) in enumerate(SHAPES.values())).encode()


def campaign(path: Path, n: int, seed: int) -> None:
    """Damaged files of n lines in all: each is read or refused by number and reason, and no line is lost."""
    rng, n_files, n_lines_seen, n_read = random.Random(seed), 0, 0, 0
    shapes = VALID.splitlines(keepends=True)
    with files_in_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while n_lines_seen < n:
            data = damaged(b"".join(rng.sample(shapes, 3)), rng)
            lines = n_lines(data)
            MEMORY[path] = data
            feedback, error = result(path, ties=rng.random() < 0.5, levels=rng.choice([None, 3]))
            if error is None:
                assert len(set(feedback.id)) == len(feedback) >= lines, data
                n_read += 1
            else:
                assert str(error).encode()
                assert all(p.file and p.reason and (p.line is None) == (lines == 0) for p in error.problems), data
                assert len({p.line for p in error.problems}) == len(error.problems) <= max(lines, 1), data
            n_files, n_lines_seen = n_files + 1, n_lines_seen + lines
    assert 0.02 * n_files < n_read < 0.9 * n_files, f"{n_read} of {n_files} were read: too few or too many to tell"


def test_ten_thousand_damaged_lines(tmp_path):
    """In a process of its own, where no signature is checked, which takes longer than reading."""
    command = [sys.executable, "-m", "tests.worlds.text.test_reading", str(tmp_path / "f.jsonl"), "10000", "0"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


def test_damaged_lines_with_every_signature_checked(tmp_path):
    campaign(tmp_path / "f.jsonl", 500, seed=1)


# ----------------------------------------------------------------------------------------------------- real pairs


def test_the_pairs_of_hh_rlhf():
    path = Path(os.environ.get("IRLHF_DATA", "")) / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    if "IRLHF_DATA" not in os.environ or not path.exists():
        pytest.skip("set IRLHF_DATA to the folder that has hh_rlhf/harmless_base_test.jsonl.gz")
    feedback = read(path)
    assert len(feedback) == 2312 and (feedback.sizes == 2).all() and not feedback.chosen.any()
    with gzip.open(path, "rt") as file:
        for row, line in zip(feedback, file, strict=True):
            assert row.context[0].role == row.context[-1].role == "user"
            before = "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in row.context)
            raw = json.loads(line)
            for shown, whole in zip(row.shown, (raw["chosen"], raw["rejected"]), strict=True):
                [answer] = shown  # nothing is lost: prompt and answer are the whole string
                same = f"{before}\n\nAssistant: {answer.content}" == whole
                assert answer.role == "assistant" and (same or not answer.content)


if __name__ == "__main__":
    start = time.perf_counter()
    campaign(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(f"{sys.argv[2]} lines in {time.perf_counter() - start:.0f} s")

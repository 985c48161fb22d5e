"""Damaged files of each format: each is read, or refused with a DataError; no line is lost on the way.

10,000 files of four formats; a million of each in `make long`.
"""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path as File

import pytest

from irlhf.errors import DataError
from irlhf.feedback import CHOICE, Feedback
from irlhf.io import lines, read_jsonl, write_jsonl
from irlhf.worlds.tabular.panel import read_features, read_panel, read_transitions, write_panel

JSONL = b"""\
{"context": "x", "trajectory": "abc", "id": "a"}
{"context": [1, 2], "shown": ["a", "b"], "chosen": 1, "offset": [0, 0.5], "person": "ann", "weight": 2}
{"context": "x", "shown": ["a", "b"], "chosen": "tie", "source": "crowd"}
{"context": "y", "shown": ["a", "b", "c"], "ranks": [2, 3, 1], "datum": "r"}
{"context": "y", "trajectory": {"k": [1]}, "level": 1, "levels": 3}
{"context": null, "trajectory": "b", "level": false}
"""
PANEL = b'''\
trajectory,step,state,action,next_state,context,person,weight,source
a,0,3,up,4,home,ann,2.5,expert
a,1,4,up,,home,ann,2.5,expert
"b ""c""",5,3,01,,home,,1,expert
"b ""c""",9,-2,01,3,home,,1,expert
'''
FEATURES = b"state,action,cost,length\n1,up,0.5,1e3\n1,down,-0.25,2\n2,up,3,4\nend,up,0,0\n"
TRANSITIONS = b"state,action,next_state,probability\n1,up,2,0.25\n1,up,1,0.75\n2,up,end,1\nend,up,end,1\n"

PIECES = [b"\0", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\n", b"\r", b"\r\n", b'"', b'""', b",", b",,", b"\\", b"{"]
PIECES += [b"}", b"[", b"]", b"[" * 200, b":", b"NaN", b"nan", b"Infinity", b"-1", b"0", b"1e999", b"1e-999", b"9" * 30]
PIECES += [b"9" * 5000, b"null", b"true", b'"tie"', b"\\ud800", b" ", b"\t", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"0x10"]
PIECES += [
    b"id",
    b"chosen",
    b"ranks",
    b"levels",
    b"state",
    b"trajectory",
    b"1_0",
    b"\xd9\xa3",
    b"'",
    b";",
    b"=1",
    b"../",
]


def damaged(valid: bytes, rng: random.Random) -> bytes:
    """One to four changes: bytes changed, cut, doubled or swapped, lines moved, and what trips parsers put in."""
    data = valid
    for _ in range(rng.randrange(1, 5)):
        i, j = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(9)
        if kind == 0:
            data = data[:i] + bytes([rng.randrange(256)]) + data[i + 1 :]
        elif kind == 1:
            data = data[:i] + data[min(j, i + 20) :]
        elif kind == 2:
            data = data[:j]
        elif kind == 3:
            data = data[:j] + data[i:j] + data[j:]
        elif kind == 4:
            data = data[:i] + rng.choice(PIECES) + data[i:]
        elif kind == 5:
            data = data[:i] + rng.choice(PIECES) + data[min(j, i + 5) :]
        elif kind == 8:
            data = data.replace(b"\n", rng.choice([b"\r\n", b"\n\n", b"\r", b""]), rng.randrange(1, 5))
        else:
            lines = data.split(b"\n")
            a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
            if kind == 6:
                lines[a], lines[b] = lines[b], lines[a]
            else:
                lines.insert(a, lines[b])
            data = b"\n".join(lines)
    return data


MEMORY: dict[File, bytes] = {}  # what is read, in place of the disk; what is written goes to the disk


@contextlib.contextmanager
def files_in_memory():
    """Reads from MEMORY, and waits for no disk: the disk would take longer than all parsing."""
    genuine = lines._open, os.fsync
    lines._open = lambda path: io.BytesIO(MEMORY.pop(path)) if path in MEMORY else genuine[0](path)
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        lines._open, os.fsync = genuine


def n_lines(data: bytes) -> int:
    """Lines of a file, without empty ones at its end."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return len(lines)


def jsonl(path: File, data: bytes) -> bool:
    """True if it was read. Lines in = data out + lines rejected."""
    MEMORY[path] = data
    try:
        feedback = read_jsonl(path, ties=True)
    except DataError as error:
        refused = lines_named(error)
        if len(data) % 10:  # skipping writes files, which is slow: for one of ten
            return False
    else:
        assert len(set(feedback.id)) == len(feedback)
        assert lines_of(feedback) == n_lines(data)
        return True
    MEMORY[path] = data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            good = read_jsonl(path, ties=True, on_error="skip")
        except DataError:
            assert not n_lines(data)
            return False
    assert len(caught) == 1
    beside = path.with_name("f.rejected.jsonl")
    rejected = [json.loads(line) for line in beside.read_text("utf-8").splitlines()]
    assert {r["line"] for r in rejected} == refused and len(rejected) == len(refused)
    assert lines_of(good) + len(rejected) == n_lines(data)
    write_jsonl(good, path)
    if len(good):
        assert repr(list(read_jsonl(path))) == repr(list(good))
    return False


def lines_named(error: DataError) -> set[int | None]:
    """The lines an error names; every place has a file and a reason, and all can be printed."""
    assert str(error).encode() and all(p.file and p.reason for p in error.problems)
    return {p.line for p in error.problems}


def lines_of(feedback: Feedback) -> int:
    """From how many lines feedback was read: the choices of a ranking come from one."""
    found = set()
    for name, kind in zip(feedback.id, feedback.kind, strict=True):
        of_ranking = re.fullmatch(r"(.*)/\d+", name, re.DOTALL) if kind == CHOICE else None
        found.add(("ranking", of_ranking[1]) if of_ranking else ("row", name))
    return len(found)


def table(read):
    def check(path: File, data: bytes) -> bool:
        MEMORY[path] = data
        try:
            result = read(path)
        except DataError as error:
            named = lines_named(error)
            assert named <= {None, *range(1, data.count(b"\n") + 2)}
            return False
        rows = len(result.trajectories.state) if isinstance(result, Feedback) else len(result)
        assert rows == n_lines(data) - 1
        if isinstance(result, Feedback) and len(data) % 5 == 0:  # writing takes longer than reading
            write_panel(result, path)
            again = read_panel(path)
            assert list(again) == list(result) and list(again.trajectories) == list(result.trajectories)
        return True

    return check


FORMATS = {
    "jsonl": (JSONL, jsonl),
    "panel": (PANEL, table(read_panel)),
    "features": (FEATURES, table(read_features)),
    "transitions": (TRANSITIONS, table(read_transitions)),
}


def campaign(name: str, directory: File, n: int, seed: int) -> int:
    """How many of n damaged files were read all the same."""
    valid, check = FORMATS[name]
    path = directory / f"f.{'jsonl' if name == 'jsonl' else 'csv'}"
    rng, n_read = random.Random(seed), 0
    with files_in_memory():
        assert check(path, valid)
        for k in range(n):
            data = damaged(valid, rng)
            try:
                n_read += check(path, data)
            except Exception as error:
                raise AssertionError(f"file {k} of seed {seed}, {data!r}: {type(error).__name__}: {error}") from error
    assert 0.005 * n < n_read < 0.9 * n, f"{n_read} of {n} were read: the damage is too heavy or too light to tell"
    return n_read


def in_a_process(name: str, directory: File, n: int, seed: int) -> str:
    """A campaign in a process of its own, where no signature is checked, which takes longer than reading a file."""
    command = [sys.executable, "-m", "tests.test_fuzz_files", name, str(directory), str(n), str(seed)]
    done = subprocess.run(command, cwd=File(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(tmp_path, name):
    in_a_process(name, tmp_path, 10_000, seed=0)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_with_every_signature_checked(tmp_path, name):
    campaign(name, tmp_path, 500, seed=2)


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_by_the_million(tmp_path, name):
    print(in_a_process(name, tmp_path, int(os.environ.get("IRLHF_FUZZ", "1000000")), seed=1))


if __name__ == "__main__":
    start = time.perf_counter()
    read = campaign(sys.argv[1], File(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    print(f"{sys.argv[1]}: {read} of {sys.argv[3]} read, {time.perf_counter() - start:.0f} s")

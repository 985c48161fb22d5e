"""Configurations that nobody would write on purpose: each is settings, or one named error; never a traceback."""

import random
import string

import pytest

from irlhf.cli.flags import fit_flags
from irlhf.config import parse_toml, settings_from
from irlhf.errors import ConfigError, IrlhfError
from irlhf.worlds.tabular.config import Settings
from tests.cli_data import irlhf, write_replacement

WORDS = [
    "causal",
    "person",
    "linear",
    "frequencies",
    "davidson",
    "adam",
    "tabular",
    "../x",
    "",
    " ",
    "é",
    "a.b",
    "1:2",
    "x=1",
]
NUMBERS = ["0", "1", "-1", "0.5", "1e999", "nan", "-inf", "1e-320", "9" * 30, "1_000", "0x1f", "1" + "0" * 400]
ODD = [
    "true",
    "[]",
    "{}",
    "[[]]",
    "2020-01-01",
    "07:32:00",
    '{ "" = 1 }',
    "[1, [2, 'x']]",
    "{ a = { b = 1 } }",
    '"\\u0000"',
]
TABLES = [
    "[sources.a]",
    "[sources]",
    "[fix]",
    "[bound]",
    "[a.b.c]",
    "[[sources]]",
    "[sources.'']",
    "[reset]",
    "[world]",
]


def value(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return repr(rng.choice(WORDS))
    if kind < 0.6:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(ODD)
    if kind < 0.85:
        return f"[{', '.join(value(rng) for _ in range(rng.randrange(4)))}]"
    if kind < 0.95:
        return f"{{ {', '.join(f'k{i} = {value(rng)}' for i in range(rng.randrange(3)))} }}"
    return repr("".join(rng.choices(string.printable, k=rng.randrange(200))))


def configuration(rng: random.Random, names: list[str]) -> bytes:
    """Lines of settings, known and unknown, in a quarter of all cases with bytes lost, doubled or changed."""
    lines = ["panel = 'p.csv'", "features = 'f.csv'"] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(6)):
        name = rng.choice(names) if rng.random() < 0.9 else "".join(rng.choices(string.ascii_letters + "-_.", k=6))
        lines.append(rng.choice(TABLES) if rng.random() < 0.1 else f"{name} = {value(rng)}")
    data = bytearray("\n".join(lines).encode())
    if rng.random() < 0.25 and data:
        for _ in range(rng.randrange(1, 4)):
            k = rng.randrange(len(data))
            data[k : k + rng.randrange(2)] = bytes(rng.choices(range(256), k=rng.randrange(3))) or data[:2]
    return bytes(data)


def read(data: bytes) -> str | None:
    """The error, or None for settings."""
    try:
        settings_from(parse_toml(data, "fuzz.toml"))
    except ConfigError as error:
        return str(error)


def campaign(n: int, seed: int) -> int:
    """How many of n configurations are right."""
    rng, names, right = random.Random(seed), [*Settings.model_fields, "temperature", "split-by"], 0
    for _ in range(n):
        error = read(configuration(rng, names))
        right += error is None
        assert error is None or 0 < len(error) < 5000
    return right


def test_10_000_configurations():
    assert campaign(10_000, 0) > 100  # some of them are even right


@pytest.mark.long
def test_a_million_configurations():
    assert campaign(1_000_000, 1) > 10_000


@pytest.mark.parametrize(
    "data",
    [b"[" * 100_000, b"a=" + b"[" * 100_000, b"a=" * 10, b"\xff", b"\x00", b"x." * 1_900 + b"x=1", b"#" * 60_000],
)
def test_hostile_bytes(data):
    read(data)


def test_whole_command_lines(tmp_path, monkeypatch, capsys):
    """Flags of random values, over files that are there: exit 0 or 2, and no exception comes out."""
    write_replacement(tmp_path)
    monkeypatch.chdir(tmp_path)
    rng, flags = random.Random(0), [f"--{flag.name.replace('_', '-')}" for flag in fit_flags(Settings)]
    files = [
        "panel.csv",
        "features.csv",
        "transitions.csv",
        "pairs.jsonl",
        "opinions.jsonl",
        "nothing",
        ".",
        "panel.csv/x",
    ]
    good = {"--optimizer": "adam", "--hidden": "3", "--kind": "weighted", "--ties": "davidson", "--cluster": "person"}
    for k in range(40):
        line = ["--panel", rng.choice(files[:1] * 5 + files), "--features", rng.choice(files[1:2] * 5 + files)]
        line += ["--discount", "0.5", "--max-steps", "2", "--no-report", "--out", f"run {k}"]
        for flag in rng.sample(flags, rng.randrange(3)):
            if flag in ("--destinations", "--report", "--max-steps"):
                continue
            words = [good.get(flag, "0.5"), rng.choice(WORDS), rng.choice(NUMBERS), rng.choice(files)]
            line += [flag, rng.choice(words)]
        code = irlhf("fit", *line)
        assert code in (0, 2), line
        assert "Traceback" not in capsys.readouterr().err, line


def test_no_other_error_for_settings_that_are_right(tmp_path, monkeypatch):
    """What validation lets through may still not fit the data: then the error is named, too."""
    write_replacement(tmp_path)
    monkeypatch.chdir(tmp_path)
    from irlhf.cli import jobs

    rng = random.Random(3)
    choices = {
        "reward": ["linear", "tabular", "neural"],
        "on": ["states", "pairs", "outcomes"],
        "kind": ["causal", "weighted", "anticipative"],
        "discount": [0, 0.5, 0.99, 1],
        "horizon": [1, 25, 100],
        "pooling": ["increments"],
        "transitions": ["transitions.csv"],
        "choices": ["pairs.jsonl", "opinions.jsonl"],
        "ties": ["davidson", "rao-kupper"],
        "holdout": [0.1, 0.9],
        "split_by": ["person", "context", "datum"],
        "destinations": [True],
        "base": ["base.csv", "features.csv"],
        "prior": [1.0],
        "max_steps": [2],
    }
    (tmp_path / "base.csv").write_text("state,action,log_base\n0,0,-0.5\n1,1,0.5\n")
    outcomes = {"fitted": 0, "refused": 0}
    for _ in range(25):
        raw = {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.3}
        raw |= {"panel": "panel.csv", "features": "features.csv", "max_steps": 2}
        raw.setdefault("discount", 0.9)
        try:
            jobs.run_fit(jobs.prepare(settings_from(raw)))
            outcomes["fitted"] += 1
        except IrlhfError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 3, outcomes

"""What the command line says is in its own words: flags, not Python. A table of real command lines, and the library."""

import ast
import json
import os
import re
from pathlib import Path

import pytest

import irlhf as package
from irlhf.cli.words import WORDS
from tests.cli_data import irlhf, write_replacement, write_routes

PYTHON = re.compile(
    r"\w=(True|False|None|[A-Za-z_]+\(|'|\")"  # destinations=True, ties=davidson(), kind='causal'
    r"|\b[a-z_]+=(?!\w)"  # states=
    r"|[a-z_]\(\w*\)"  # davidson(), exact(world)
    r"|\b(fit|term|world)\.[a-z]"  # fit.unidentified
    r"|\b(max_steps|split_by|log_base|or None)\b"
)
ONLY_PYTHON_FILES = ("joint.py", "hypothesis.py", "predictive.py", "export.py", "saving.py")  # what no command does
ONLY_PYTHON = (  # what no command line can lead to: arguments that the command line makes itself
    "fit_reward takes terms",
    "a term takes feedback",
    "its choice set is everything",
    "what was shown is a list",
    "it is one trajectory judged",
    "the inverse Hessian knows no clusters; use kind=",  # the settings refuse it before
    "or None for no limit",
    "pooling 'increments' needs states=",
    "log_base has shape",
    "log_base must be numbers",
    "inside `with open_run(...)`",
    "convert it first",
    "must be strings, but",
    "load it with load_checkpoint",
    "a proposal is a policy, Base(),",
    "a mixture is of at least two proposals",
    "what it leaves out still counts; use exact(world)",  # no command has a variational term
    "a prompt has at least one token; Encoder.prompt(None)",
    "the tokens of a completion hold the end token",
    "which the fast sampler cannot read; see supports()",
    "give a whole number from 2 to 1000, or None",
)

PAIR = [{"states": [0, 1], "actions": [0]}, {"states": [1, 1], "actions": [0]}]
FILES = {
    "ties.jsonl": [{"shown": PAIR, "chosen": "tie"}],
    "ranks.jsonl": [{"shown": PAIR, "ranks": [1, 1]}],
    "scales.jsonl": [
        {"trajectory": {"states": [0, 1], "actions": [0]}, "level": 1, "levels": levels} for levels in (3, 4)
    ],
    "strange.jsonl": [{"id": "first", "trajectory": {"states": [2, 1], "actions": [7]}}],
    "one-sided.jsonl": [
        {"shown": [{"states": [0, 1], "actions": [0]}, {"states": [11, 1], "actions": [1]}], "chosen": 0}
    ],
    "base.csv": "state,action,log_base\n99,0,0.5\n",
    "two-states.csv": "state,x\n0,1\n1,2\n",
    "last.csv": "trajectory,step,state,action\na,0,0,0\na,1,1,1\n",
    "single.csv": "trajectory,step,state,action\na,0,0,0\n",
    "both-fit.toml": """
        panel = "panel.csv"
        choices = "pairs.jsonl"
        features = "features.csv"
        transitions = "transitions.csv"
        discount = 0.9
        [sources.demonstrations]
        fit_temperature = true
        [sources.comparisons]
        fit_temperature = true
        """,
}
BUS = "fit --panel panel.csv --features features.csv"
SHOWN = "--features features.csv --transitions transitions.csv --discount 0.9"

REFUSED = [
    (BUS, "give --discount below 1, --horizon, --destinations, or transitions with a state that has no actions"),
    (f"fit --choices ties.jsonl {SHOWN}", "is a tie, but its source models none; give --ties davidson or --ties rao-"),
    (f"fit --choices ranks.jsonl {SHOWN}", "ties are not modeled; give --ties davidson or --ties rao-kupper, or drop"),
    (f"fit --choices scales.jsonl {SHOWN}", 'give each scale its own "source"'),
    (f"fit --choices strange.jsonl {SHOWN}", "demonstration 'first', step 0 (state 2, action 7): this action"),
    ("fit both-fit.toml", "write temperature = 1 under its [sources.NAME] in the file"),
    (f"{BUS} --discount 0.9 --base base.csv", "the base measure names action 0 in state 99, which the world does not"),
    (f"{BUS} --discount 0.9 --kind anticipative", "give --base, --horizon, or --kind causal"),
    (f"{BUS} --discount 0.9 --horizon 0", "--horizon is '0', but should be greater"),
    (f"{BUS} --split-by rows", "--split-by is 'rows', but should be 'datum'"),
    (f"{BUS} --reward neural --hidden x", "--hidden is 'x', but should be a whole number"),
    (f"{BUS} --transitions transitions.csv --pooling increments", "--transitions gives them; leave one out"),
    (f"{BUS} --discount 0.9 --reset 1=0", "--reset belongs to --pooling increments"),
    (f"{BUS} --discount 0.9 --pooling increments --reset 5=0", "correct --reset"),
    (f"{BUS} --discount 0.9 --pooling increments --reset 1=99", "correct --reset"),
    ("fit --panel panel.csv --features two-states.csv --pooling increments --discount 0.9", "give features of it"),
    (
        "fit --panel last.csv --reward tabular --discount 0.9",
        "or --transitions, or --pooling increments",
    ),
    (
        "fit --panel single.csv --reward tabular --discount 0.9",
        "where it led; give --transitions, or next",
    ),
    ("fit --panel trips.csv --reward tabular --discount 0.9 --pooling increments", "--pooling increments needs states"),
    (
        "fit --panel trips.csv --features links.csv --destinations --start length=9",
        "give --start lower, --discount",
    ),
    (f"{BUS} --errors hessian --cluster person", "choose --errors sandwich or --errors opg, or leave --cluster out"),
    (f"{BUS} --fix mileage=1 --start mileage=2", "'mileage' is in --fix and in --start"),
    (f"{BUS} --discount 0.9 --holdout 0.001", "choose another share, or another --split-by"),
    (f"{BUS} --discount 0.9 --likelihood sampled", "Say --kind anticipative if that is meant, or leave out --likel"),
    ("fit --panel panel.csv", "give --features, or --reward tabular"),
    ("fit --features features.csv", "give --panel (demonstrations), --choices, or both"),
]
FITTED = [
    (f"fit --choices one-sided.jsonl {SHOWN}", "Give a prior (for example --prior 1.0), or more feedback"),
    (f"{BUS} --discount 0.9 --max-steps 1", "To go on: irlhf fit --resume RUN --max-steps N"),
    (f"{BUS} --discount 0.9 --reward tabular --on outcomes", "fix it (--fix NAME=VALUE), give a prior (--prior 1.0)"),
    (f"{BUS} --discount 0.9 --max-steps 1", "give --transitions or --pooling increments"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_replacement(folder)
    write_routes(folder)
    for name, content in FILES.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("line", "sentence"), [*REFUSED, *FITTED])
def test_in_the_words_of_the_command_line(folder, tmp_path, monkeypatch, capsys, line, sentence):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    code = irlhf(*line.split(), "--no-report", "--out", tmp_path / "run")
    screen = capsys.readouterr()
    said = " ".join((screen.err + screen.out).split())
    assert code == (2 if (line, sentence) in REFUSED else 0)
    assert sentence in said
    assert not PYTHON.search(said), PYTHON.search(said)


def sentences() -> dict[str, str]:
    """The text of every raise, reason and status of the library, by where it is; values in it are {}."""
    root = Path(package.__file__).parent
    found = {}
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] in ("demos", "functional", "cli") or file.name in ONLY_PYTHON_FILES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            reason = named and (node.targets[0].id == "reason" or node.targets[0].id.isupper())
            refusal = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("refuse", "_refuse", "check")
            if isinstance(node, ast.Raise) or reason or refusal:
                for text in texts(node):
                    found[f"{file.name}:{node.lineno} {text[:30]}"] = text
    return found


def texts(node: ast.AST) -> list[str]:
    """Texts of several words in a node."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and " " in node.value else []
    return [text for child in ast.iter_child_nodes(node) for text in texts(child)]


def test_the_table_and_the_library_agree():
    library = sentences()
    assert len(library) > 150
    for phrase in WORDS:
        assert any(phrase in text for text in library.values()), f"the library does not say {phrase!r} any more"
    for where, text in library.items():
        said = text
        for phrase, shell in WORDS.items():
            said = said.replace(phrase, shell)
        assert not PYTHON.search(said) or any(python in said for python in ONLY_PYTHON), (
            f"{where}: only Python can follow {text!r}; put what the shell says into irlhf.cli.words"
        )
    for phrase in ONLY_PYTHON:
        assert any(phrase in text for text in library.values()), phrase

"""The files of a tabular world: panels of observed behavior, features, transitions.

A panel is a table with one row for each step: ``trajectory, step, state, action[, next_state][, context][, person]
[, weight][, source]``. Everything here works on columns; no loop runs over rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.feedback import DEMONSTRATION, Feedback, picked
from irlhf.gather import demonstrations
from irlhf.io import Table, label, read_table
from irlhf.io.lines import MOST_PROBLEMS
from irlhf.io.tables import cell_text, number, whole
from irlhf.io.wording import shown
from irlhf.storage.files import atomic_write
from irlhf.worlds.tabular.paths import UNKNOWN, Paths, objects

PANEL = ("trajectory", "step", "state", "action", "next_state", "context", "person", "weight", "source")
KEYS = ("state", "action", "next_state")
SOURCE = "demonstrations"


def read_panel(source: Any, *, default_source: str = SOURCE) -> Feedback:
    """Demonstrations from a panel: a CSV or Parquet file, or a pandas or polars frame.

    Rows may come in any order: steps are sorted within a trajectory, trajectories stay in the order of their first
    rows. Where step numbers are consecutive, a step led to the state of the next row; where they are not, and at the
    end, it led to ``next_state``, or, if that is missing or empty, nobody knows where (``UNKNOWN``). A path starts at
    time 0 whatever the number of its first step; from there the numbers count, also those missing in a gap: they
    decide what a discount or a horizon makes of a step. Without a column
    ``action`` the world is a network and the action is the next state. Columns that describe a trajectory (context,
    person, weight, source) are the same in all its rows. The trajectory's name is the row's id.

    Args:
        default_source: the source of all rows if the panel has no such column.

    Returns:
        Feedback whose ``trajectories`` is a :class:`Paths`.

    Raises:
        DataError: names every bad row with the field, what was found and what to do.
        ConfigError: Parquet without pyarrow, or not a table.

    Example:
        >>> frame = pd.DataFrame({"trajectory": ["a", "a"], "step": [0, 1], "state": [3, 4], "action": ["up", "up"]})
        >>> read_panel(frame).trajectories[0]
        Path(states=(3, 4), actions=('up', 'up'))
    """
    table = read_table(source, what="the panel")
    network = "action" not in table.columns
    table.require(["trajectory", "step", "state", "next_state" if network else "action"], PANEL)

    names, trajectory = table.convert("trajectory", _name)
    names, trajectory = _merged(names, trajectory)
    step = table.numbers("step", whole)
    columns = ["state", *(name for name in ("next_state", "action") if name in table.columns)]
    labels, codes = _labels(table, columns)
    per_path = {name: _described(table, name, trajectory, len(names)) for name in PANEL[5:] if name in table.columns}
    table.check()

    order = np.lexsort((step, trajectory))
    trajectory, step = trajectory[order], step[order]
    state, *others = (code[order] for code in codes)
    same_path = trajectory[1:] == trajectory[:-1]
    twice = np.flatnonzero(same_path & (step[1:] == step[:-1])) + 1
    for k in twice[:MOST_PROBLEMS]:
        reason = f"step {step[k]} of trajectory {shown(names[trajectory[k]])} is there twice; number the steps apart"
        table.problem(order[k], "step", reason)
    table.check()

    unknown = len(labels)
    following = np.full(len(state), unknown)
    consecutive = np.flatnonzero(same_path & (step[1:] == step[:-1] + 1))
    following[consecutive] = state[consecutive + 1]
    if "next_state" in table.columns:
        given = others[0]
        wrong = np.flatnonzero((given >= 0) & (following != unknown) & (given != following))
        for k in wrong[:MOST_PROBLEMS]:
            reason = (
                f"found {shown(labels[given[k]])}, but the next step is in state {shown(labels[following[k]])}; "
                "correct one of them, or leave a gap in the step numbers where a step is missing"
            )
            table.problem(order[k], "next_state", reason)
        following = np.where(given >= 0, given, following)
    action = others[-1]
    if network:
        action = following
        for k in np.flatnonzero(action == unknown)[:MOST_PROBLEMS]:
            table.problem(order[k], "next_state", "is empty, and without actions it says what was done; add it")
    table.check()

    n_steps = np.bincount(trajectory, minlength=len(names))
    first_step = np.concatenate([[0], np.cumsum(n_steps)]).astype(np.int64)
    paths = Paths(
        state=labels[state],
        action=labels[action],
        next_state=np.append(labels, np.array([UNKNOWN], object))[following],
        first_step=first_step,
        time=step - step[first_step[:-1]][trajectory],
    )
    feedback = demonstrations(
        per_path.get("context", [None] * len(names)),
        paths,
        persons=per_path.get("person"),
        weights=per_path.get("weight", 1.0),
        ids=names,
        source=default_source,
    )
    return replace(feedback, source=objects(per_path["source"])) if "source" in per_path else feedback


def _name(text: str) -> str:
    return str(label(text))


def _optional_name(text: str) -> str | None:
    return _name(text) if text.strip() else None


def _weight(text: str) -> float:
    value = number(text)
    if value < 0:
        raise ValueError(f"found {shown(text)}; a weight is not negative")
    return value


def _merged(values: list[Any], codes: NDArray[np.int64]) -> tuple[list[Any], NDArray[np.int64]]:
    """Distinct values (texts that differ by outer spaces are one) in the order of their first appearance."""
    distinct: dict[Any, int] = {}
    merged = np.array([distinct.setdefault(value, len(distinct)) for value in values], np.int64)
    return list(distinct), merged[codes]


def _labels(table: Table, columns: Sequence[str]) -> tuple[NDArray[np.object_], list[NDArray[np.int64]]]:
    """Labels of states and actions, numbered together; an empty next state has the code -1."""
    optional = "next_state" in columns
    labels, codes = table.labels(*(name for name in columns if name != "next_state"))
    if optional:
        more, [following] = table.labels("next_state", empty=UNKNOWN)
        number_of = {value: code for code, value in enumerate(labels)}
        code = np.array(
            [-1 if value is UNKNOWN else number_of.setdefault(value, len(number_of)) for value in more], np.int64
        )
        labels, codes = objects(list(number_of)), [codes[0], code[following], *codes[1:]]
    return labels, codes


def _described(table: Table, column: str, trajectory: NDArray[np.int64], n: int) -> list[Any]:
    """[trajectories] One value for each trajectory; rows that say something else than its first row are problems."""
    function = {"context": label, "person": _optional_name, "weight": _weight, "source": _name}[column]
    values, codes = _merged(*table.convert(column, function))
    first = np.full(n, len(trajectory))
    np.minimum.at(first, trajectory, np.arange(len(trajectory)))
    for row in np.flatnonzero(codes != codes[first[trajectory]])[:MOST_PROBLEMS]:
        found, before = shown(values[codes[row]]), shown(values[codes[first[trajectory[row]]]])
        reason = f"found {found}, but earlier rows of this trajectory have {before}; it is one for a whole trajectory"
        table.problem(row, column, reason)
    return [values[code] for code in codes[first]]


# ------------------------------------------------------------------------------------------ features, transitions


def read_features(source: Any) -> pd.DataFrame:
    """Features of states, pairs or outcomes: ``state[, action][, next_state]``, each other column one feature.

    Returns:
        A frame of labels and float columns; ``frame.attrs["on"]`` is "states", "pairs" or "outcomes".

    Raises:
        DataError: a cell is not a finite number, a label is empty, two rows have one key, no feature column.
    """
    table = read_table(source, what="the features")
    if {"trajectory", "step"} <= table.columns.keys():
        reason = "this is a panel; features have state[, action][, next_state], and one column of numbers for each"
        raise DataError(Problem(table.name, 1 if table.has_lines else None, None, reason))
    keys = [name for name in KEYS if name in table.columns]
    table.require(["state", "action"] if "next_state" in table.columns else ["state"])
    if len(keys) == len(table.columns):
        reason = f"there are no features beside {', '.join(keys)}; add one column for each"
        raise DataError(Problem(table.name, 1 if table.has_lines else None, None, reason))
    labels, codes = table.labels(*keys)
    features = {name: table.numbers(name) for name in table.columns if name not in keys}
    table.check()
    _refuse_repeated(table, keys, labels, codes)
    frame = pd.DataFrame({name: labels[code] for name, code in zip(keys, codes, strict=True)} | features)
    frame.attrs["on"] = {1: "states", 2: "pairs", 3: "outcomes"}[len(keys)]
    return frame


def read_transitions(source: Any) -> pd.DataFrame:
    """Transitions: a frame of ``state, action, next_state, probability``.

    Raises:
        DataError: a probability outside [0, 1], two rows for one outcome, or probabilities of a pair (state, action)
            that do not sum to 1 within 1e-6; names the pair and its first line.
    """
    table = read_table(source, what="the transitions")
    table.require([*KEYS, "probability"], [*KEYS, "probability"])
    labels, codes = table.labels(*KEYS)
    probability = table.numbers("probability", _probability)
    table.check()
    _refuse_repeated(table, KEYS, labels, codes)
    pair = codes[0] * len(labels) + codes[1]
    _, first, number_of = np.unique(pair, return_index=True, return_inverse=True)
    total = np.bincount(number_of, probability)
    for row, value in sorted(zip(first[abs(total - 1) > 1e-6], total[abs(total - 1) > 1e-6], strict=True)):
        where = f"state {shown(labels[codes[0][row]])}, action {shown(labels[codes[1][row]])}"
        reason = f"the probabilities of {where} sum to {value:.9g}; they must sum to 1, add or correct its rows"
        table.problem(row, "probability", reason)
    table.check()
    columns = {name: labels[code] for name, code in zip(KEYS, codes, strict=True)}
    return pd.DataFrame(columns | {"probability": probability})


def _probability(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise ValueError(f"found {shown(text)}; a probability is from 0 to 1")
    return value


def _refuse_repeated(table: Table, keys: Sequence[str], labels: NDArray, codes: list[NDArray[np.int64]]) -> None:
    rows = pd.DataFrame(dict(zip(keys, codes, strict=True)))
    for row in np.flatnonzero(rows.duplicated())[:MOST_PROBLEMS]:
        key = ", ".join(f"{name} {shown(labels[code[row]])}" for name, code in zip(keys, codes, strict=True))
        table.problem(row, keys[0], f"an earlier row is for {key} already; keep one")
    table.check()


# ------------------------------------------------------------------------------------------------------- writing


def write_panel(feedback: Feedback, path: str | os.PathLike[str]) -> None:
    """Write demonstrations as a panel (``.csv``, ``.csv.gz``, ``.parquet``); :func:`read_panel` gives them back.

    Step numbers are the times of the steps.

    Raises:
        DataError: something a panel cannot hold: comparisons, ratings, repeated ids, paths without steps, labels that
            are neither whole numbers nor text, times that reading would change; says which.
        ConfigError: Parquet without pyarrow.
    """
    frame = panel_frame(feedback, name=os.fspath(path))
    suffix = Path(path).suffix.lower()
    if suffix in (".parquet", ".pq"):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            reason = f"{os.fspath(path)} is a Parquet file, which needs pyarrow; pip install 'irlhf[parquet]'"
            raise ConfigError(reason) from None
        buffer = io.BytesIO()
        pq.write_table(pa.table({str(name): frame[name].tolist() for name in frame}), buffer)
        return atomic_write(path, buffer.getvalue())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(zip(*(frame[name].tolist() for name in frame), strict=True))
    data = text.getvalue().encode()
    return atomic_write(path, gzip.compress(data, mtime=0) if suffix == ".gz" else data)


def panel_frame(feedback: Feedback, *, name: str = "the panel") -> pd.DataFrame:
    """The panel of demonstrations as a frame of texts; see :func:`write_panel`."""

    def refuse(field: str | None, reason: str) -> DataError:
        return DataError(Problem(name, None, field, reason))

    if (feedback.kind != DEMONSTRATION).any():
        raise refuse(None, "a panel holds demonstrations only; write comparisons and ratings as JSON Lines")
    ids = [str(i) for i in feedback.id]
    if len(set(ids)) != len(ids):
        raise refuse("trajectory", "two rows have one id; give each its own")
    if (feedback.datum != feedback.id).any():
        raise refuse("trajectory", "a panel has no column for datum; write JSON Lines")
    if feedback.offset.any():
        raise refuse(None, "a panel has no column for offsets; write JSON Lines")
    paths = feedback.trajectories
    if not np.array_equal(feedback.trajectory, np.arange(len(paths))):
        paths = picked(paths, feedback.trajectory)
    columnar = Paths.of(paths)
    n_steps = np.diff(columnar.first_step)
    if (n_steps == 0).any():
        row = int(np.argmin(n_steps))
        raise refuse("trajectory", f"the path of row {row} (id {shown(ids[row])}) has no steps; leave it out")
    row = np.repeat(np.arange(len(ids)), n_steps)
    following, is_last = columnar.next_state, np.append(row[1:] != row[:-1], True)
    known = np.array([label is not UNKNOWN for label in following], bool)
    if (columnar.time[columnar.first_step[:-1]] != 0).any():
        late = int(np.argmax(columnar.time[columnar.first_step[:-1]] != 0))
        reason = f"row {late} (id {shown(ids[late])}) does not start at time 0, and in a panel every path does"
        raise refuse("step", reason)
    # Where the next row is the next step, it says where this one led.
    leads = np.append(np.diff(columnar.time) == 1, False) & ~is_last
    broken = leads[:-1] & (following[:-1] != columnar.state[1:]).astype(bool)
    if broken.any():
        k = int(np.argmax(broken))
        reason = (
            f"time {columnar.time[k]} of row {row[k]} (id {shown(ids[row[k]])}) did not lead to the state of the next"
        )
        raise refuse("step", reason + "; leave a gap in time between them")
    columns: dict[str, Any] = {
        "trajectory": objects(ids)[row],
        "step": columnar.time.astype(str).astype(object),
        "state": _texts(columnar.state, "state", refuse),
        "action": _texts(columnar.action, "action", refuse),
    }
    if (known & ~leads).any():
        texts = np.full(len(row), "", object)
        texts[known] = _texts(following[known], "next_state", refuse)
        columns["next_state"] = texts
    contexts = [feedback.contexts[k] for k in feedback.context]
    if any(x is not None for x in contexts):
        columns["context"] = _texts(objects(contexts), "context", refuse)[row]
    if any(person is not None for person in feedback.person):
        columns["person"] = objects(["" if p is None else str(p) for p in feedback.person])[row]
    if (feedback.weight != 1).any():
        columns["weight"] = objects([repr(float(w)) for w in feedback.weight])[row]
    if (feedback.source != SOURCE).any():
        columns["source"] = feedback.source[row]
    for column in ("trajectory", "person", "source"):
        for text in pd.unique(columns.get(column, objects([]))):
            if text != text.strip() or not _is_one_cell(text) or (column != "person" and not text):
                raise refuse(column, f"{shown(text)} cannot be written in one cell; rename it")
    return pd.DataFrame(columns, dtype=object)


def _is_one_cell(text: str) -> bool:
    """Whether a text is one cell on one line of a UTF-8 file."""
    return "\n" not in text and "\0" not in text and text == text.encode("utf-8", "replace").decode()


def _texts(labels: NDArray[np.object_], field: str, refuse: Any) -> NDArray[np.object_]:
    """Labels as cells; each must come back as what it is."""
    codes, distinct = pd.factorize(labels, use_na_sentinel=False)
    texts = []
    for value in distinct:
        try:
            text = cell_text(value)
            back = label(text)
        except ValueError as error:
            raise refuse(field, f"{shown(value)} cannot be written in a cell: {error}") from None
        if back != value or isinstance(back, str) != isinstance(value, str) or not _is_one_cell(text):
            raise refuse(field, f"{shown(value)} would be read back as {shown(back)}; use whole numbers or plain text")
        texts.append(text)
    return objects(texts)[codes]

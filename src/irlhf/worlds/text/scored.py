"""What ``irlhf score`` asks of the text world: the records of a file as they are, each with the reward's score."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from irlhf.config import Setup
from irlhf.gather import demonstrations
from irlhf.io.records import collect
from irlhf.protocols import finite_or_raise
from irlhf.worlds.text import shapes
from irlhf.worlds.text.reading import _fields, _rows

AT_ONCE = 4096  # texts laid out together


def scored(setup: Setup, path: Path) -> list[dict[str, Any]]:
    """The records of a file in their order, each with ``"score"``, in units of the reward.

    A number for a record with one completion; for one with several (chosen and rejected, ``completions``, the turns of
    an assistant) a list in their order; null for a text over the limits, unless the fit cut such texts.

    Raises:
        DataError: names file, line, field and reason.
        NonFiniteError: a score is not finite; names lines.
    """
    rows = _rows(path)

    def parse(number: int, record: Any) -> list[tuple[int, dict[str, Any], list[tuple[Any, Any]]]]:
        fields = _fields(record)
        return [(number, fields, _pairs(fields))]

    records = collect(rows.name, rows.records, parse, on_error="raise", beside=None, unit=rows.unit)
    names = [
        f"{rows.unit} {number}" + (f", completion {k}" if len(pairs) > 1 else "")
        for number, _, pairs in records
        for k in range(len(pairs))
    ]
    scores = iter(_scores(setup, path.name, [pair for _, _, pairs in records for pair in pairs], names))
    told = []
    for _, fields, pairs in records:
        own = [next(scores) for _ in pairs]
        told.append({**fields, "score": own[0] if len(own) == 1 else own})
    return told


def _pairs(fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(context, trajectory) of each completion in a record."""
    if fields.get("completions") is not None and not {"ranks", "scores"} & fields.keys():
        fields = {**fields, "scores": [0.0] * len(fields["completions"])}  # nobody has judged them yet
    told, _ = shapes.translate(fields, None)
    return [(one["context"], y) for one in told for y in (one["shown"] if "shown" in one else [one["trajectory"]])]


def _scores(setup: Setup, file: str, pairs: list[tuple[Any, Any]], names: list[str]) -> Iterable[float | None]:
    contexts, trajectories = [list(part) for part in zip(*pairs, strict=True)]
    feedback = demonstrations(contexts, trajectories, source=file, ids=names)
    cut = setup.about["texts"]["long"] == "cut"
    kept, lengths = setup.world.encoder.within(feedback, "cut" if cut else "drop")
    if lengths.long_rows:
        warnings.warn(f"{file}: {lengths}" + ("" if cut else " Their score is null."), stacklevel=4)
    found: dict[str, float] = {}
    for first in range(0, len(kept), AT_ONCE):
        part = kept[first : first + AT_ONCE]
        batch = setup.world.collate(
            [part.contexts[x] for x in part.context], [part.trajectories[y] for y in part.trajectory]
        )
        with torch.no_grad():
            values = setup.reward(batch).double()
        finite_or_raise("the score", values, list(part.id))
        found |= dict(zip(part.id, values.tolist(), strict=True))
    return [found.get(name) for name in names]

"""The curve of a run as TensorBoard reads it: each number of a step is a scalar under its own name."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from irlhf.errors import ConfigError
from irlhf.storage.rundir import read_metrics

Progress = Callable[[dict[str, Any]], None]


def require(wanted: bool) -> None:
    """Raises ConfigError where TensorBoard is wanted and not there: before the work, not after it."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs the package tensorboard: pip install tensorboard, or leave the flag out")


@contextlib.contextmanager
def scalars(path: Path, wanted: bool, progress: Progress) -> Iterator[Progress]:
    """``progress``, which also writes each step into the folder ``tensorboard`` of the run in ``path``.

    A resumed run writes its curve anew, so that no step is there twice.
    """
    if not wanted:
        yield progress
        return
    from torch.utils.tensorboard import SummaryWriter

    folder = path / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))

    def write(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("step", "of") and isinstance(value, int | float) and math.isfinite(value):
                writer.add_scalar(name, value, row["step"])

    def told(row: dict[str, Any]) -> None:
        if "step" in row:
            write(row)
        progress(row)

    try:
        for row in read_metrics(path):
            write(row)
        yield told
    finally:
        writer.close()

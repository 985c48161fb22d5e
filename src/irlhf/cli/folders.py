"""Where runs go, and which one is meant: a fit, or a policy that ``irlhf distill`` made of one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irlhf.errors import ConfigError, IrlhfError

RUN_FILES = ("config.json", "fingerprint.json", "status.json", "metrics.jsonl", "lock")  # of a run without results


@contextlib.contextmanager
def nothing_left_behind(path: Path) -> Iterator[list[Path]]:
    """A new run that was refused before its first checkpoint leaves no directory in the way of the next attempt.

    The run goes into the list once it is there: nobody else's files are touched.
    """
    was_there = path.exists()
    made: list[Path] = []
    try:
        yield made
    except IrlhfError:
        if made and not (path / "checkpoint").exists():
            for name in RUN_FILES:
                (path / name).unlink(missing_ok=True)
            if not was_there:
                with contextlib.suppress(OSError):  # somebody put something there
                    path.rmdir()
        raise


def is_policy(stored: Any) -> bool:
    """Whether what a ``config.json`` holds is of a policy, and not of a fit."""
    return isinstance(stored, dict) and "learner" in stored


def default_path(stem: str, resume: bool, *, policies: bool) -> Path:
    """``runs/STEM``, numbered if it is taken; the last of them to resume."""
    folder = Path("runs").absolute()
    if resume:
        return newest(f"{stem}*", policies=policies) if any(folder.glob(f"{stem}*")) else folder / stem
    number, path = 1, folder / stem
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}"
    return path


def newest(pattern: str, *, policies: bool) -> Path:
    """The run of this kind in the folder ``runs`` that was worked on last. Raises ConfigError if there is none."""
    found = []
    for file in Path("runs").absolute().glob(f"{pattern}/config.json"):
        with contextlib.suppress(OSError, ValueError):  # a damaged one is named when it is asked for
            if is_policy(json.loads(file.read_bytes())) == policies:
                found.append((file.stat().st_mtime_ns, file.parent))
    if not found:
        command, what = ("distill", "policy") if policies else ("fit", "run")
        raise ConfigError(f"there is no {what} in the folder runs to resume; say which: irlhf {command} --resume DIR")
    return max(found)[1]

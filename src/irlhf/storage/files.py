"""Files that are whole or absent, names that stay inside a directory, and JSON that comes back as it was."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from irlhf.errors import CheckpointError

_PLAIN = (float, int, str, bool, type(None))  # most of what there is: a curve of numbers, in every checkpoint anew
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{16}\.tmp$")


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at every moment, also after a power cut, ``path`` is the old file or the new one, whole.

    A temporary file in the same directory is written, flushed to the disk and renamed, and the directory is flushed.
    The mode follows the umask. Raises OSError (disk full, no permission), leaving the old file and no orphan; a
    process killed on the way leaves an orphan that :func:`remove_orphans` finds.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however few the system takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable; some network file systems cannot, and that is not an error."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory if it is not there, and its name durable."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def is_orphan(name: str) -> bool:
    """Whether a file name is one that only a killed :func:`atomic_write` leaves."""
    return bool(_TEMPORARY.match(name))


def remove_orphans(directory: Path, *, deep: bool = False) -> None:
    """Delete what a killed :func:`atomic_write` left in a directory (and below). Only for its one writer."""
    for at, folders, names in os.walk(directory):
        # not in runs below this one, which have writers of their own
        folders[:] = [name for name in folders if deep and not os.path.exists(os.path.join(at, name, "lock"))]
        for name in filter(is_orphan, names):
            Path(at, name).unlink(missing_ok=True)


def inside(root: str | os.PathLike[str], name: str) -> Path:
    """The path of ``name`` below ``root``, for names that come from data (an id, a source, a person).

    Raises CheckpointError for names that are empty, absolute or over-long, hold NUL, control characters, a backslash
    or ``..``, start with a dot, or lead outside through a symbolic link.
    """

    def refuse(reason: str) -> CheckpointError:
        shown = repr(name) if len(name) <= 60 else f"{name[:40]!r}... ({len(name)} characters)"
        return CheckpointError(f"a file name inside {root} was asked for, but {shown} {reason}; choose a plain name")

    if not isinstance(name, str) or not name:
        raise CheckpointError(f"a file name inside {root} was asked for, but {name!r} was given; choose a plain name")
    if len(name) > 1000 or any(len(part.encode("utf-8", "replace")) > 200 for part in name.split("/")):
        raise refuse("is too long (200 bytes)")
    if not name.isprintable() or "\\" in name or ":" in name:
        raise refuse("holds a character that file names cannot hold everywhere")
    if name.startswith("/"):
        raise refuse("is absolute")
    if any(part.startswith(".") or not part for part in name.split("/")):
        raise refuse("has an empty part or one that starts with a dot")
    path = Path(root) / name
    if not path.parent.resolve().is_relative_to(Path(root).resolve()):
        raise refuse("leads outside through a symbolic link")
    return path


def plain(value: Any, where: str = "value") -> Any:
    """The JSON form of a value: numbers of numpy and torch, tuples and paths become plain ones.

    Raises CheckpointError naming the place of anything that would not come back from JSON as it was.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise CheckpointError(f"the keys of {where} must be strings, but {strange[0]!r} was given; use str(key)")
        return {k: x if type(x) in _PLAIN else plain(x, f"{where}[{k!r}]") for k, x in value.items()}
    if isinstance(value, list | tuple):
        return [x if type(x) in _PLAIN else plain(x, f"{where}[{i}]") for i, x in enumerate(value)]
    hint = "put arrays among the tensors" if isinstance(value, Tensor | np.ndarray) else "convert it first"
    raise CheckpointError(f"{where} is a {type(value).__name__}, which JSON cannot hold; {hint}")


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value: what is hashed. Non-finite numbers keep Python's spelling, to come back alike."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON from a file that may be forged. Raises CheckpointError naming ``what``."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not readable JSON ({type(error).__name__}); it is damaged") from error

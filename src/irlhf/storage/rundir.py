"""The directory of one run: one writer, a configuration, a curve, checkpoints, and a resume that is exact or says why.

    config.json        the resolved configuration          metrics.jsonl       one JSON object a line, the curve
    fingerprint.json   what the numbers may depend on      checkpoint/         the last two checkpoints
    status.json        running | finished | failed ...     reward.safetensors  the result, and world.safetensors; or
                                                           policy.safetensors

>>> import tempfile, torch
>>> folder = tempfile.mkdtemp() + "/run"
>>> with open_run(folder, config={"seed": 0}) as run:
...     run.log({"step": 1, "objective": -2.0, "time": {"seconds": 0.1}})
...     run.save(1, {"theta": torch.zeros(3)}, {"trace": [-2.0]})
>>> with open_run(folder, config={"seed": 0}, resume=True) as run:
...     checkpoint = run.load(like={"theta": torch.zeros(3)})
>>> checkpoint.step, checkpoint.info
(1, {'trace': [-2.0]})
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from irlhf import distributed
from irlhf.errors import CheckpointError
from irlhf.storage.checkpoint import (
    Checkpoint,
    encode_tensors,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    tensor_digest,
)
from irlhf.storage.files import (
    atomic_write,
    canonical,
    inside,
    is_orphan,
    make_directory,
    parse_json,
    plain,
    remove_orphans,
    write_all,
)
from irlhf.storage.fingerprint import differences, fingerprint, hash_files

try:
    import fcntl
except ImportError:  # Windows has no flock; there one has to take care oneself
    fcntl = None

CLOCK = "time"  # the field of metrics and info that may differ between identical runs: not in the digest
LINE_CAP = 1 << 20  # bytes of a line of metrics
RESERVED = ("config.json", "fingerprint.json", "status.json", "metrics.jsonl", "lock", "checkpoint")


def open_run(
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    data_files: Iterable[str | os.PathLike[str]] = (),
    resume: bool = False,
    may_change: Sequence[str] = (),
) -> RunDir:
    """Open a run directory for writing: a new one, or with ``resume=True`` one that was left at any moment.

    ``config`` is anything JSON can hold; a resumed run must have the same but for the (dotted) names in ``may_change``,
    or None to go on with what is stored. ``data_files`` are hashed, and a resumed run must have the same contents.
    Resuming what is not there yet starts it: a run may be killed that early. Of several processes (``torchrun``) all
    call this, and only the first reads and writes the directory.

    Raises CheckpointError if another process writes there (naming its pid), if a run is there and ``resume`` is False,
    if configuration or data differ (listing where), if no checkpoint is whole, or if the directory cannot be written.
    Anything that keeps the resumed run from being identical to the bit is a warning, and a sentence in ``run.notes``.
    """
    distributed.start()
    run = RunDir(Path(path)) if distributed.first() else _Followed(Path(path))

    def start() -> tuple[dict[str, Any], int]:
        try:
            run._start(_finite(plain(config, "config")), hash_files(data_files), resume, may_change)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise CheckpointError(f"the run directory {str(path)!r} cannot be written: {why}") from error
        return run.config, run.attempt

    try:
        run.config, run.attempt = distributed.from_first(start)
    except BaseException:
        run.close()
        raise
    return run


class RunDir:
    """An open run directory; made by :func:`open_run`, used in a ``with`` block, which records how the run ended."""

    path: Path
    config: dict[str, Any]
    attempt: int  # 1 for a new run, one more for each time it was opened again
    notes: list[str]  # sentences for the user: what was found, what differs
    status: dict[str, Any]  # written on entry and exit; add what you like

    def __init__(self, path: Path):
        self.path, self.config, self.attempt, self.notes, self.status = path, {}, 0, [], {}
        self._lock: int | None = None
        self._metrics: int | None = None
        self._hash, self._length = hashlib.sha256(), 0  # of the metrics written so far
        self._torn = False  # whether there may be part of a line behind them
        self._whole: list[int] = []  # the last checkpoint known to be whole

    # ------------------------------------------------------------------------------------------------------ use

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint: all tensors and numbers from which the run goes on after ``step``, and the curve so far.

        Raises CheckpointError if it cannot be written (disk full, no permission); those before stay whole.
        """
        metrics = self._opened()
        try:
            os.fsync(metrics)  # the curve first: a checkpoint never points beyond what is on the disk
        except OSError as error:
            raise CheckpointError(f"{self.path / 'metrics.jsonl'} cannot be written: {error.strerror}") from error
        about = {
            "config": self.config,
            "attempt": self.attempt,
            "metrics": {"bytes": self._length, "sha256": self._hash.hexdigest()},
        }
        number = save_checkpoint(self.path / "checkpoint", step, tensors, info, about=about, keep=self._whole)
        self._whole = [number]

    def load(self, like: Mapping[str, Tensor] | None = None, *, free: Sequence[str] = ()) -> Checkpoint | None:
        """The last whole checkpoint, or None; see :func:`irlhf.storage.checkpoint.load_checkpoint`."""
        self._opened()
        with warnings.catch_warnings():  # said when the run was opened
            warnings.simplefilter("ignore")
            return load_checkpoint(self.path / "checkpoint", like, free=free)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``. What the clock says belongs in the field "time".

        NaN and infinities are written as the strings "NaN", "Infinity", "-Infinity", which JSON can hold and ``float``
        reads. Raises CheckpointError if the line cannot be written, and then leaves no part of it.
        """
        descriptor = self._opened()
        line = canonical(_finite(plain(metrics, "metrics"))) + b"\n"
        if len(line) > LINE_CAP:
            raise CheckpointError(f"a line of metrics has at most {LINE_CAP} bytes, but this has {len(line)}; log less")
        after = self._hash.copy()
        after.update(line)
        try:
            if self._torn:
                os.ftruncate(descriptor, self._length)
            self._torn = True
            write_all(descriptor, line)
            self._hash, self._length, self._torn = after, self._length + len(line), False
        except BaseException as error:
            with contextlib.suppress(OSError):  # if this fails too, the next line begins with it
                os.ftruncate(descriptor, self._length)
            if isinstance(error, OSError):
                raise CheckpointError(f"{self.path / 'metrics.jsonl'} cannot be written: {error.strerror}") from error
            raise

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file of the run atomically. Raises CheckpointError for names that lead outside or are reserved."""
        self._opened()
        path = inside(self.path, name)
        if name.split("/")[0] in RESERVED:
            raise CheckpointError(f"{name!r} belongs to the run directory itself; choose another name")
        return self._write(path, data)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file of the run atomically (non-finite numbers as in :meth:`log`)."""
        return self.write_bytes(name, _pretty(value))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> Path:
        """Write a safetensors file of the run atomically; ``checkpoint.read_tensors`` reads and verifies."""
        return self.write_bytes(name, encode_tensors(tensors, info or {}))

    # --------------------------------------------------------------------------------------------- open and close

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._lock is None:
            return
        ends = "finished" if kind is None else "failed" if issubclass(kind, Exception) else "interrupted"
        self.status |= {"state": ends} | ({} if error is None else {"error": f"{type(error).__name__}: {error}"})
        try:
            self._write_status()
        except CheckpointError:
            if kind is None:
                raise
        finally:
            self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # an open lock would outlive a run that was dropped in a notebook
            self.close()

    def close(self) -> None:
        """Let go of the lock and the files. The ``with`` block does it."""
        for descriptor in (self._metrics, self._lock):  # the lock last
            if descriptor is not None:
                os.close(descriptor)
        self._metrics = self._lock = None
        _OPEN.discard(self)

    def _start(self, config: Any, data: list[dict[str, Any]], resume: bool, may_change: Sequence[str]) -> None:
        if not (self.path / "lock").exists():
            self._refuse_used(resume)  # before anything is written into somebody else's directory
        make_directory(self.path)
        self._take_lock()
        self._refuse_used(resume)
        remove_orphans(self.path, deep=(self.path / "config.json").exists())
        checkpoint = load_checkpoint(self.path / "checkpoint")
        about = {} if checkpoint is None else _about_run(checkpoint.about, self.path)
        stored = self._read_json("config.json")
        if stored is None and checkpoint is not None:
            stored = about["config"]
        if stored is None:
            self.config = config or {}
            if resume:
                self.notes.append(f"there was nothing to resume in {self.path}: the run starts")
        else:
            self._same_config(stored, config, may_change)
            if checkpoint is not None:
                self._same_config(about["config"], config or stored, may_change)
                self.notes += checkpoint.warnings
                self._whole = [checkpoint.number]
            self.config = stored if config is None else config
        self.attempt = self._attempts() + 1
        self._compare_fingerprint({**fingerprint(processes=distributed.size()), "data": data}, stored is None)
        self._write(self.path / "config.json", _pretty(self.config))
        self._open_metrics(about.get("metrics", {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}))
        self.status = {"state": "running", "attempt": self.attempt, "pid": os.getpid(), "host": socket.gethostname()}
        self._write_status()

    def _attempts(self) -> int:
        try:
            return int((self._read_json("status.json") or {}).get("attempt", 0))
        except (CheckpointError, TypeError, ValueError):  # for people, not for the numbers: no reason to stop
            return 0

    def _refuse_used(self, resume: bool) -> None:
        used = [name for name in ("config.json", "metrics.jsonl", "checkpoint") if (self.path / name).exists()]
        if used and not resume:
            raise CheckpointError(
                f"{self.path} holds a run already ({', '.join(used)}); resume it or choose another directory"
            )
        if not used and self.path.is_dir():
            # a run that was killed before it had a configuration left nothing but files of these names
            others = [name for name in sorted(os.listdir(self.path)) if name not in RESERVED and not is_orphan(name)]
            if others:
                named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
                raise CheckpointError(
                    f"{self.path} holds other files ({named}) and no run; choose an empty directory, or a new one"
                )

    def _take_lock(self) -> None:
        path = self.path / "lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _OPEN.add(self)
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._lock, 1000, 0).decode(errors="replace").strip()
                raise CheckpointError(
                    f"{self.path} is in use by {holder or 'another process'}; wait for it, stop it, or choose another "
                    "directory"
                ) from None
            except OSError as error:  # some cluster file systems have no locks
                self._note(f"{path} cannot be locked ({error.strerror}): see to it that only one process writes here")
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _same_config(self, stored: Mapping[str, Any], config: Mapping[str, Any] | None, may: Sequence[str]) -> None:
        differ = differences(stored, stored if config is None else config)
        differ = {k: v for k, v in differ.items() if not any(k == name or k.startswith(name + ".") for name in may)}
        if differ:
            listed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in list(differ.items())[:20])
            raise CheckpointError(
                f"the run in {self.path} has another configuration: {listed}. Resume with that one or start a new run"
            )

    def _compare_fingerprint(self, now: dict[str, Any], fresh: bool) -> None:
        path = self.path / "fingerprint.json"
        first = None if fresh else self._read_json(path.name)
        if first is None:
            if not fresh:
                self._note(f"{path} is missing: the resumed run is not promised to be identical to the bit")
            self._write(path, _pretty({**now, "resumed": {}}))
            return
        try:
            resumed = {str(attempt): dict(names) for attempt, names in first.pop("resumed").items()}
            before = [str(file["sha256"]) for file in first["data"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged; if nothing else is, remove it and resume") from error
        if before != [file["sha256"] for file in now["data"]]:
            names = [file["file"] for file in now["data"] if file["sha256"] not in before] or ["other files"]
            raise CheckpointError(
                f"the run in {self.path} began with other data: {', '.join(names)} changed. Give it the data of then "
                "or start a new run"
            )
        harmless = {"data": [], "processes": None}  # the data were compared; how many processes changes no number
        differ = differences({**first, **harmless}, {**now, **harmless})
        if differ.keys() - {"git"}:
            now_differs = {name: new for name, (_, new) in differ.items()}
            self._write(path, _pretty({**first, "resumed": {**resumed, str(self.attempt): now_differs}}))
        listed = [f"{name} was {old}, is {new}" for name, (old, new) in differ.items()]
        listed += [f"attempt {attempt} had another {', '.join(names)}" for attempt, names in resumed.items()]
        sentence = f"the run in {self.path} is not promised to be identical to the bit: {'; '.join(listed)}"
        if differ.keys() - {"git"} or resumed:
            self._note(sentence)
        elif differ:  # another commit of the working directory need not be other code: told, but no warning
            self.notes.append(sentence)

    def _open_metrics(self, known: dict[str, Any]) -> None:
        """Cut the curve back to what the checkpoint knew of it, so that the steps after it are not there twice."""
        path = self.path / "metrics.jsonl"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._metrics = os.open(path, flags, 0o666)
        with open(path, "rb") as file:
            while chunk := file.read(min(LINE_CAP, known["bytes"] - self._length)):
                self._hash.update(chunk)
                self._length += len(chunk)
        if self._hash.hexdigest() != known["sha256"]:
            self._note(
                f"{path} is damaged before the checkpoint: the run goes on, the curve before it is not to be trusted"
            )
            self._length = path.read_bytes()[: self._length].rfind(b"\n") + 1
            self._hash = hashlib.sha256(path.read_bytes()[: self._length])
        os.ftruncate(self._metrics, self._length)

    # -------------------------------------------------------------------------------------------------- small things

    def _opened(self) -> int:
        if self._metrics is None:
            raise CheckpointError(f"{self.path} is not open in this process; write inside `with open_run(...)`")
        return self._metrics

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        warnings.warn(sentence, stacklevel=5)

    def _write(self, path: Path, data: bytes) -> Path:
        try:
            make_directory(path.parent)
            atomic_write(path, data)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}; what was there is whole") from error
        return path

    def _write_status(self) -> None:
        self.status["seconds_since_1970"] = round(time.time(), 3)
        self._write(self.path / "status.json", _pretty(self.status))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        value = parse_json(path.read_bytes(), str(path))
        if not isinstance(value, dict):
            raise CheckpointError(f"{path} is not a JSON object; it is damaged: remove it and resume")
        return value


class _Followed(RunDir):
    """The run of another process: what is given to this one is what that one writes."""

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> None:
        pass

    def log(self, metrics: Mapping[str, Any]) -> None:
        pass

    def write_bytes(self, name: str, data: bytes) -> Path:
        return inside(self.path, name)

    def _opened(self) -> int:
        return -1


_OPEN: weakref.WeakSet[RunDir] = weakref.WeakSet()


def _forget() -> None:
    # A forked child (a data loader) shares the lock and would hold it after the driver was killed.
    for run in list(_OPEN):
        run.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; also of a running or killed one, whose torn last line is left out.

    Raises CheckpointError naming the line if another one is damaged.
    """
    file = Path(path) / "metrics.jsonl"
    if not file.exists():
        return []
    lines, read = [], file.read_bytes()
    for number, line in enumerate(read[: read.rfind(b"\n") + 1].splitlines(), 1):
        lines.append(parse_json(line, f"{file}, line {number},"))
        if not isinstance(lines[-1], dict):
            raise CheckpointError(f"{file}, line {number}, is not a JSON object; it is damaged")
    return lines


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of what a run computed: last checkpoint, curve, reward and policy, without the field "time".

    Two runs with one configuration and fingerprint have one digest, however often they were killed and resumed.
    """
    path, result = Path(path), hashlib.sha256()
    checkpoint = load_checkpoint(path / "checkpoint")
    if checkpoint is not None:
        result.update(tensor_digest(checkpoint.tensors, [checkpoint.step, _timeless(checkpoint.info)]).encode())
    for line in read_metrics(path):
        result.update(canonical(_timeless(line)) + b"\n")
    for name in ("reward.safetensors", "policy.safetensors"):
        if (path / name).exists():
            tensors, info = read_tensors(path / name)
            result.update(tensor_digest(tensors, _timeless(info)).encode())
    return result.hexdigest()


def _about_run(about: dict[str, Any], path: Path) -> dict[str, Any]:
    match about:
        case {"config": dict(), "metrics": {"bytes": int(), "sha256": str()}}:
            return about
    raise CheckpointError(f"the checkpoint in {path} was not written by a run; load it with load_checkpoint")


def _timeless(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != CLOCK}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _pretty(value: Any) -> bytes:
    return json.dumps(_finite(plain(value)), indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

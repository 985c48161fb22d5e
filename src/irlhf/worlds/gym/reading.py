"""Episodes from the files that people have: arrays (``.npz``), Minari datasets, JSON Lines.

An ``.npz`` has either the names that the library ``imitation`` writes (``obs`` with one row more than steps in each
episode, ``acts``, ``rews``, ``indices`` where episodes are cut apart, ``terminal``), or one row a step: ``obs``,
``next_obs``, ``acts``, ``episode`` (its number), ``terminated`` (of the step), ``rewards``. JSON Lines are those of
:func:`irlhf.read_jsonl`, with an episode for a trajectory:

    {"obs": [[...], ...], "acts": [...], "terminated": true, "rewards": [...]}
    {"file": "episodes.npz", "episode": 3, "start": 10, "stop": 60}          a part of another file, or all of it

``acts`` and ``rewards`` may be left out; ``obs`` has one entry more than there are steps.
"""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from irlhf.errors import ConfigError, DataError, Problem
from irlhf.feedback import Feedback
from irlhf.gather import demonstrations
from irlhf.io.jsonl import read_jsonl
from irlhf.io.records import finite, is_whole
from irlhf.io.wording import nearest, shown
from irlhf.storage.files import atomic_write
from irlhf.worlds.gym.episodes import Episode, Episodes

LARGEST = 1 << 33  # bytes of an array in a file
IMITATION = ("obs", "acts", "rews", "indices", "terminal")
FLAT = ("obs", "next_obs", "acts", "episode", "terminated", "rewards")
INLINE = ("obs", "acts", "terminated", "rewards", "length")
ELSEWHERE = ("file", "episode", "start", "stop")


def read(path: str | os.PathLike[str], *, ties: bool = False, on_error: Literal["raise", "skip"] = "raise") -> Feedback:
    """Feedback from a file: demonstrations from arrays, every kind from JSON Lines.

    Args:
        path: ``.npz``, ``.jsonl`` (also ``.gz``), or the folder of a Minari dataset.
        ties: whether ties are modeled; see :func:`irlhf.read_jsonl`, ``on_error`` too.

    Raises:
        DataError: names file, line or array, and the reason.
        ConfigError: a Minari dataset, but h5py is not installed.
    """
    name = os.fspath(path)
    plain = name.lower().removesuffix(".gz")
    if os.path.isdir(path) or plain.endswith((".hdf5", ".h5")):
        return demonstrations(None, read_minari(path))
    if plain.endswith((".jsonl", ".json", ".ndjson")):
        parser = _Parser(Path(path).parent)
        return read_jsonl(path, parse_trajectory=parser, ties=ties, on_error=on_error)
    return demonstrations(None, read_npz(path))


def read_npz(path: str | os.PathLike[str]) -> Episodes:
    """Episodes from arrays. What is pickled in the file is not read, and a note says so.

    Raises:
        DataError: names file, array and reason.
    """
    name = os.fspath(path)
    arrays, pickled = _arrays(path)
    if pickled:
        warnings.warn(f"{name}: {', '.join(pickled)} not read: pickled objects are never loaded", stacklevel=2)
    if "indices" in arrays or "terminal" in arrays:
        return _of_imitation(name, arrays)
    if "episode" in arrays:
        return _of_steps(name, arrays)
    raise DataError(
        Problem(
            name, None, None, f"found the arrays {', '.join(arrays) or 'none'}; it needs {', '.join(IMITATION)} "
            f"(as imitation saves them), or one row a step: {', '.join(FLAT)}",
        )
    )  # fmt: skip


def save(path: str | os.PathLike[str], episodes: Sequence[Episode]) -> None:
    """Writes episodes as ``.npz``, as :func:`read_npz` and ``imitation`` read them; whole or not at all.

    Raises:
        ConfigError: actions were not recorded.
    """
    import io

    given = Episodes.of(episodes)
    if given.acts is None:
        raise ConfigError("these episodes have no actions, and the file needs them; write them as JSON Lines")
    file = io.BytesIO()
    arrays = {"obs": given.obs, "acts": given.acts, "rews": given.rewards, "indices": given.first[1:-1]}
    np.savez(file, allow_pickle=False, **arrays, terminal=given.terminated)
    atomic_write(path, file.getvalue())


# ---------------------------------------------------------------------------------------------------------- arrays


def _arrays(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The arrays of a file by name, and the names of those that are pickled."""
    name = os.fspath(path)
    found: dict[str, NDArray[Any]] = {}
    pickled: list[str] = []
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                label = member.filename.removesuffix(".npy")
                with file.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2
                    shape, _, dtype = read(stream)
                    if dtype.hasobject:
                        pickled.append(label)
                        continue
                    size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
                    if size > min(member.file_size, LARGEST):
                        raise ValueError(f"its header says {size:,} bytes, but there are {member.file_size:,}")
                with file.open(member) as stream:
                    found[label] = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(Problem(name, None, None, "there is no such file; check the path")) from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(Problem(name, None, None, f"not a readable .npz: {error}; save it again")) from None
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, OSError, KeyError, AttributeError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()
        raise DataError(Problem(name, None, None, f"an array cannot be read: {(reason or ['damaged'])[0]}")) from None
    return found, pickled


def _header_2(stream: Any) -> Any:
    return np.lib.format.read_array_header_2_0(stream)


def _of_imitation(name: str, arrays: dict[str, NDArray[Any]]) -> Episodes:
    _need(name, arrays, ("obs", "acts", "terminal"))
    obs, acts = arrays["obs"], arrays["acts"]
    n = len(acts)
    cuts = _whole_numbers(name, arrays.get("indices", np.empty(0, np.int64)), "indices")
    first = np.concatenate([[0], cuts, [n]]).astype(np.int64)
    if (np.diff(first) < 0).any() or first.min(initial=0) < 0 or first.max(initial=0) > n:
        raise DataError(Problem(name, None, "indices", f"they must rise from 0 to the {n} actions; found others"))
    if empty := np.flatnonzero(np.diff(first) == 0).tolist():
        raise DataError(Problem(name, None, "indices", f"episode {empty[0]} has no step; leave it out"))
    terminal = np.atleast_1d(arrays["terminal"])
    episodes = len(first) - 1
    if len(terminal) != episodes:
        raise DataError(Problem(name, None, "terminal", f"{len(terminal)} entries for {episodes} episodes"))
    if len(obs) != n + episodes:
        reason = f"{len(obs)} rows, but {n} actions in {episodes} episodes need {n + episodes}: one more for each"
        raise DataError(Problem(name, None, "obs", reason))
    rewards = _rewards(name, arrays.get("rews"), "rews", n)
    _numeric(name, obs=obs, acts=acts)
    return Episodes(obs, acts, first, terminal.astype(bool), rewards)


def _of_steps(name: str, arrays: dict[str, NDArray[Any]]) -> Episodes:
    _need(name, arrays, ("obs", "next_obs", "episode", "terminated"))
    n = len(arrays["obs"])
    if not n:
        raise DataError(Problem(name, None, "obs", "there are no steps"))
    for field in FLAT:
        if field in arrays and len(arrays[field]) != n:
            raise DataError(Problem(name, None, field, f"{len(arrays[field])} rows, but obs has {n}; one a step"))
    episode = arrays["episode"]
    begins = np.flatnonzero(np.concatenate([[True], episode[1:] != episode[:-1]]))
    if len(np.unique(episode)) != len(begins):
        raise DataError(Problem(name, None, "episode", "the steps of an episode do not stand together; sort them"))
    first = np.append(begins, n).astype(np.int64)
    last = first[1:] - 1
    terminated = arrays["terminated"].astype(bool)
    inside = np.ones(n, bool)
    inside[last] = False
    if (wrong := np.flatnonzero(terminated & inside)).size:
        reason = f"row {wrong[0]} ends episode {episode[wrong[0]]}, but its steps go on; are truncations meant?"
        raise DataError(Problem(name, None, "terminated", reason))
    obs, after = arrays["obs"], arrays["next_obs"]
    _numeric(name, obs=obs, next_obs=after, acts=arrays.get("acts", np.zeros(1)))
    order = np.argsort(np.concatenate([np.arange(n), last]), kind="stable")
    whole = np.concatenate([obs, after[last]])[order]
    rewards = _rewards(name, arrays.get("rewards"), "rewards", n)
    return Episodes(whole, arrays.get("acts"), first, terminated[last], rewards, ids=[str(e) for e in episode[begins]])


def _need(name: str, arrays: dict[str, NDArray[Any]], fields: tuple[str, ...]) -> None:
    for field in fields:
        if field not in arrays:
            raise DataError(Problem(name, None, field, f"the array is missing; there are {', '.join(arrays)}"))
        if arrays[field].ndim == 0 and field != "terminal":
            raise DataError(Problem(name, None, field, "is a single number; give one row for each step"))


def _numeric(name: str, **arrays: NDArray[Any]) -> None:
    for field, values in arrays.items():
        if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            raise DataError(Problem(name, None, field, f"holds {values.dtype}, not numbers"))


def _rewards(name: str, values: NDArray[Any] | None, field: str, n: int) -> NDArray[Any] | None:
    if values is None:
        return None
    if values.shape != (n,):
        raise DataError(Problem(name, None, field, f"has shape {values.shape}; give one number for each of {n} steps"))
    _numeric(name, **{field: values})
    return values.astype(np.float64)


def _whole_numbers(name: str, values: NDArray[Any], field: str) -> NDArray[np.int64]:
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
        raise DataError(Problem(name, None, field, "must be a list of whole numbers: where episodes are cut apart"))
    return values.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- Minari


def read_minari(path: str | os.PathLike[str]) -> Episodes:
    """Episodes of a Minari dataset on disk: its folder, or ``main_data.hdf5`` in it.

    Raises:
        DataError: names file, episode and reason.
        ConfigError: h5py is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise ConfigError('Minari datasets need the package h5py, which is missing: pip install "irlhf[gym]"') from None
    folder = Path(path)
    files = [folder] if folder.is_file() else [folder / "data" / "main_data.hdf5", folder / "main_data.hdf5"]
    file = next((f for f in files if f.is_file()), None)
    name = os.fspath(path)
    if file is None:
        raise DataError(Problem(name, None, None, "is no Minari dataset: there is no data/main_data.hdf5 in it"))
    episodes: list[Episode] = []
    try:
        with h5py.File(file, "r") as data:
            groups = sorted((k for k in map(str, data) if k.startswith("episode_")), key=lambda k: int(k[8:]))
            for key in groups:
                episodes.append(_minari_episode(f"{file}, {key}", data[key], key[8:]))
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(Problem(os.fspath(file), None, None, f"cannot be read: {error}")) from None
    if not episodes:
        raise DataError(Problem(os.fspath(file), None, None, "there are no episodes in it"))
    return Episodes.of(episodes)


def _minari_episode(name: str, group: Any, label: str) -> Episode:
    for field in ("observations", "actions", "terminations"):
        if field not in group:
            raise DataError(Problem(name, None, field, f"is missing; there are {', '.join(group)}"))
        if not hasattr(group[field], "shape"):
            raise DataError(Problem(name, None, field, "is a dictionary, not an array; flatten it first"))
    obs, acts = np.asarray(group["observations"]), np.asarray(group["actions"])
    if len(obs) != len(acts) + 1 or not len(acts):
        raise DataError(Problem(name, None, "observations", f"{len(obs)} for {len(acts)} actions; one more is needed"))
    _numeric(name, observations=obs, actions=acts)
    rewards = np.asarray(group["rewards"], np.float64) if "rewards" in group else None
    return Episode(obs, acts, bool(np.asarray(group["terminations"])[-1]), rewards, id=label)


# ------------------------------------------------------------------------------------------------------ JSON Lines


class _Parser:
    """An episode from its JSON value; files that it names are read once. Raises ValueError(reason)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, Episodes] = {}

    def __call__(self, value: Any) -> Episode:
        if not isinstance(value, dict):
            raise ValueError(f"found {shown(value)}; write an episode, {{'obs': ..., 'acts': ..., 'terminated': ...}}")
        known = ELSEWHERE if "episode" in value else INLINE
        for field in value:
            if field not in known:
                raise ValueError(f"an episode has no field {shown(field)}; {nearest(field, known)}")
        return self._elsewhere(value) if "episode" in value else _inline(value)

    def _elsewhere(self, value: dict[str, Any]) -> Episode:
        file = value.get("file")
        if not isinstance(file, str) or not file or not file.isprintable():
            raise ValueError(f"file is {shown(file)}; name the file that the episode is in")
        if file not in self.files:
            if Path(file).suffix in (".jsonl", ".json", ".gz"):
                raise ValueError(f"{shown(file)} is JSON Lines; episodes can be referred to in .npz files")
            try:
                self.files[file] = read_npz(self.folder / file)
            except DataError as error:
                raise ValueError(str(error).splitlines()[0]) from None
        episodes, number = self.files[file], value["episode"]
        if not is_whole(number) or not 0 <= number < len(episodes):
            raise ValueError(f"episode is {shown(number)}; {shown(file)} has 0 to {len(episodes) - 1}")
        episode = episodes[number]
        if "start" not in value and "stop" not in value:
            return episode
        start, stop = value.get("start", 0), value.get("stop", len(episode))
        if not is_whole(start) or not is_whole(stop) or not 0 <= start < min(stop, len(episode)):
            raise ValueError(f"start {shown(start)} and stop {shown(stop)} are no part of {len(episode)} steps")
        return episode.part(start, stop)


def _inline(value: dict[str, Any]) -> Episode:
    if not isinstance(value.get("terminated"), bool):
        raise ValueError(
            f"terminated is {shown(value.get('terminated'))}; write true where the environment ended the episode, and "
            "false where it was cut"
        )
    obs = _numbers(value.get("obs"), "obs")
    if len(obs) < 2:
        raise ValueError("obs has fewer than two entries, so there is no step; write what was seen before and after")
    acts = None if value.get("acts") is None else _numbers(value["acts"], "acts")
    rewards = None if value.get("rewards") is None else _numbers(value["rewards"], "rewards")
    for field, values in (("acts", acts), ("rewards", rewards)):
        if values is not None and len(values) != len(obs) - 1:
            raise ValueError(f"{field} has {len(values)} entries for {len(obs) - 1} steps (obs has one more)")
    if rewards is not None and rewards.ndim != 1:
        raise ValueError("rewards are lists; give one number for each step")
    length = value.get("length")
    if length is not None and (not is_whole(length) or length < len(obs) - 1):
        raise ValueError(f"length is {shown(length)}; give the steps it is padded to, {len(obs) - 1} at least")
    return Episode(obs, acts, value["terminated"], rewards, length)


def _numbers(value: Any, field: str) -> NDArray[Any]:
    """A list of numbers, or of lists of equally many."""
    if not isinstance(value, list):
        raise ValueError(f"{field} is {shown(value)}; give a list with one entry for each step")
    flat = [x for row in value for x in (row if isinstance(row, list) else [row])]
    if any(finite(x) is None and not isinstance(x, bool) for x in flat):
        wrong = next(x for x in flat if finite(x) is None and not isinstance(x, bool))
        raise ValueError(f"{field} has {shown(wrong)} among its numbers; write finite numbers")
    if len({len(row) if isinstance(row, list) else -1 for row in value}) > 1:
        raise ValueError(f"the entries of {field} differ in length")
    whole = all(is_whole(x) for x in flat)
    return np.array(value, np.int64 if whole and all(abs(x) < 2**62 for x in flat) else np.float64)

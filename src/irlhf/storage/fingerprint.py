"""What the last bits of a number may depend on: versions, linear algebra, processor, threads, code and data."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irlhf.errors import CheckpointError

PACKAGES = ("irlhf", "torch", "numpy", "scipy", "numba", "pandas")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def fingerprint(*, processes: int = 1) -> dict[str, Any]:
    """A flat dict that is equal for two runs that can be expected to agree to the bit. It takes milliseconds."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
        "threads": torch.get_num_threads(),
        "thread_settings": {name: os.environ[name] for name in THREADS if name in os.environ},
        "default_dtype": str(torch.get_default_dtype()),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": processes,
        "git": _git_commit(),
    }


def hash_files(paths: Iterable[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Name, size and sha256 of each file, in the order given. Raises CheckpointError for one that cannot be read."""
    found = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                found.append({"file": os.fspath(path), "bytes": file.tell(), "sha256": sha256})
        except OSError as error:
            raise CheckpointError(f"the data file {os.fspath(path)} cannot be read: {error.strerror}") from error
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The (dotted) names in which two nested dicts differ, with both values; an absent one is the string "absent"."""
    old, new = _flat(old), _flat(new)
    names = [*old, *(name for name in new if name not in old)]
    pairs = {name: (old.get(name, "absent"), new.get(name, "absent")) for name in names}
    # types too: 1, 1.0 and True are equal to Python and different settings
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b or type(a) is not type(b)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) and item else {f"{prefix}{name}": item}
    return flat


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor()


def _blas() -> list[str]:
    """The linear algebra libraries this process has loaded, by path; where that is not to be had, numpy's build."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        maps = ""
    loaded = re.findall(r" (/.*/[^/\n]*(?:blas|mkl|lapack|blis)[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE)
    # scipy loads its own when first used, sooner or later in the program, and its version says which one that is
    if found := sorted({path for path in loaded if "/scipy.libs/" not in path and "/scipy/" not in path}):
        return found
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # pyright: ignore[reportOptionalSubscript]
    return [f"{blas.get('name')} {blas.get('version')}"]


def _git_commit() -> str | None:
    """The commit of the working directory, with "+" if files that git knows were changed; None outside of git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

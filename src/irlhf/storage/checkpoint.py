"""Tensors that survive: files that are whole or absent, and checkpoints that are verified before they are believed.

A checkpoint is a flat dict of tensors (safetensors) and a JSON-able dict. The rename of its manifest commits it; the
manifest holds sha256 and size of the tensor file, and its own sha256. The one before is kept. Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from irlhf.errors import CheckpointError
from irlhf.storage.files import atomic_write, canonical, inside, make_directory, parse_json, plain

FORMAT = 1  # of the manifest; a checkpoint of a later format is refused
HEADER_CAP = (
    4 << 20
)  # bytes of a safetensors header (about 40,000 tensors), so that a forged one cannot fill the memory
MANIFEST_CAP = 256 << 20  # bytes of a manifest: it holds the objective trace
About = TypeVar("About", bound=BaseModel)
KEPT = 2  # checkpoints on disk: the last one, and the one before in case the disk damages the last

_MANIFEST = re.compile(r"^(\d{8,})\.json$")


# -------------------------------------------------------------------------------------------------------- tensors


def encode_tensors(tensors: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a safetensors file, the same for the same input; ``info`` (if given) and a checksum go with them.

    Raises CheckpointError for names or tensors that cannot be saved (sparse, meta, quantized).
    """
    ready, seen = {}, set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(tensor, Tensor):
            raise CheckpointError(f"a tensor by name was asked for, but {name!r}: {type(tensor).__name__} was given")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise CheckpointError(f"tensor {name!r} ({tensor.layout}, {tensor.device}) cannot be saved; make it dense")
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if dense.untyped_storage().data_ptr() in seen:  # tied weights: each name gets its own copy
            dense = dense.clone()
        seen.add(dense.untyped_storage().data_ptr())
        ready[name] = dense
    header = None
    if info is not None:
        about = plain(info, "info")
        header = {"irlhf": canonical({"info": about, "sha256": tensor_digest(ready, about)}).decode()}
    try:
        data = safetensors.torch.save(ready, metadata=header)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"these tensors cannot be saved: {error}") from error
    if int.from_bytes(data[:8], "little") > HEADER_CAP:
        raise CheckpointError(f"{len(ready)} tensors and their info need a header over {HEADER_CAP} bytes; save fewer")
    return data


def decode_tensors(data: bytes, what: str = "the file") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the info of a safetensors file, also of one written by others (info is then ``{}``).

    Raises CheckpointError naming ``what`` if it is not such a file, is damaged, or has an over-long header.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_CAP, len(data) - 8):
        raise CheckpointError(f"{what} is not a safetensors file with a header of at most {HEADER_CAP} bytes")
    header = parse_json(data[8 : 8 + length], f"the header of {what}")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # a forged header reaches asserts and KeyErrors of the reader too
        raise CheckpointError(f"{what} is not a whole safetensors file: {error}") from error
    about = (header.get("__metadata__") or {}).get("irlhf")
    if about is None:
        return tensors, {}
    about = parse_json(about.encode(), f"the header of {what}")
    info = about.get("info") if isinstance(about, dict) else None
    if not isinstance(info, dict) or about.get("sha256") != tensor_digest(tensors, info):
        raise CheckpointError(f"{what} is damaged: its sha256 is not the one it was written with")
    return tensors, info


def tensor_digest(tensors: Mapping[str, Tensor], info: Any = None) -> str:
    """sha256 over names, dtypes, shapes and bytes in the order of names, and ``info``."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]) + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    digest.update(canonical(info))
    return digest.hexdigest()


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by ``RunDir.write_tensors`` or any other safetensors file. Raises CheckpointError."""
    try:
        return decode_tensors(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def valid(kind: type[About], info: Any, otherwise: str) -> About:
    """What came with tensors, as a pydantic model says it has to be.

    Raises CheckpointError: ``otherwise`` (a file "is not a reward"), and the first field that is not as it should be.
    """
    try:
        return kind.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{otherwise} that this version can read: {where}: {first['msg']}") from None


# ---------------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. ``warnings`` says what had to be passed over to find it."""

    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # what the run itself recorded: metrics length, config, attempt
    number: int = 0  # of the save, over the whole run
    warnings: tuple[str, ...] = ()


def save_checkpoint(
    directory: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any] | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    keep: Sequence[int] = (),
) -> int:
    """Write a checkpoint beside the others, then drop all but the last two. Returns its number.

    ``keep``: numbers of further checkpoints known to be whole. Raises CheckpointError if it cannot be written; the
    checkpoints before stay as they were.
    """
    directory = Path(directory)
    data = encode_tensors(tensors)
    before = _numbers(directory)
    number = max(before, default=0) + 1  # never that of a manifest: what one vouches for is never overwritten
    file, manifest = directory / f"{number:08d}.safetensors", directory / f"{number:08d}.json"
    body = {
        "format": FORMAT,
        "step": int(step),
        "tensors": {key: [str(value.dtype), list(value.shape)] for key, value in tensors.items()},
        "files": {file.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "info": plain(info or {}, "info"),
        "about": plain(about or {}, "about"),
    }
    try:
        make_directory(directory)
        atomic_write(file, data)
        try:
            atomic_write(manifest, _seal(body))  # its rename is the commit
        except BaseException:
            if not manifest.exists():
                file.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written to {directory}: {error.strerror}; those before it are "
            "whole: repair this and resume"
        ) from error
    _prune(directory, {number, *sorted(keep or before)[-(KEPT - 1) :]})
    return number


def load_checkpoint(
    directory: str | os.PathLike[str],
    like: Mapping[str, Tensor] | None = None,
    *,
    free: Sequence[str] = (),
) -> Checkpoint | None:
    """The last whole checkpoint of a directory, or None if there is none yet.

    Files are verified by size and sha256. A damaged one is passed over with a warning (also in ``.warnings``) in favor
    of the one before. ``like``: tensors whose names, shapes and dtypes the checkpoint must have; names that start with
    one of ``free`` are not compared. Raises CheckpointError if none is whole (naming each damaged file), if the format
    is a later one, or if ``like`` differs (listing the names). Nothing is changed either way.
    """
    directory = Path(directory)
    damaged: list[str] = []
    for number in sorted(_numbers(directory), reverse=True):
        try:
            checkpoint = _read(directory, number)
        except _Damaged as error:
            damaged.append(str(error))
            continue
        if like is not None:
            check_like(checkpoint.tensors, like, free, str(directory))
        if damaged:
            note = f"{'; '.join(damaged)}. Falling back to the checkpoint of step {checkpoint.step}, which is whole"
            warnings.warn(note, stacklevel=2)
            checkpoint = Checkpoint(**{**checkpoint.__dict__, "warnings": (note,)})
        return checkpoint
    if damaged:
        raise CheckpointError(f"no whole checkpoint in {directory}: {'; '.join(damaged)}. Start the run anew")
    return None


def check_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], free: Sequence[str], what: str) -> None:
    """Raises CheckpointError listing every name, shape and dtype in which ``tensors`` are not ``like``."""
    form = {name: f"{value.dtype}{list(value.shape)}".removeprefix("torch.") for name, value in tensors.items()}
    want = {name: f"{value.dtype}{list(value.shape)}".removeprefix("torch.") for name, value in like.items()}
    names = sorted(name for name in form.keys() | want.keys() if not name.startswith(tuple(free)))
    differ = [
        f"{name} (in the checkpoint {form.get(name, 'absent')}, in the model {want.get(name, 'absent')})"
        for name in names
        if form.get(name) != want.get(name)
    ]
    if differ:
        shown = "; ".join(differ[:20]) + (f"; ... and {len(differ) - 20} more" if len(differ) > 20 else "")
        raise CheckpointError(f"the checkpoint in {what} is of another model; {len(differ)} tensors differ: {shown}")


class _Damaged(Exception):
    pass


def _seal(body: Any) -> bytes:
    return canonical({"body": body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}) + b"\n"


def _unseal(data: bytes) -> dict[str, Any] | None:
    try:
        sealed = json.loads(data)
        body = sealed["body"]
        # compared as bytes, so that no flipped byte is equivalent to the original
        return body if isinstance(body, dict) and _seal(body) == data else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _numbers(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(found[1]) for name in os.listdir(directory) if (found := _MANIFEST.match(name)))


def _read(directory: Path, number: int) -> Checkpoint:
    path = directory / f"{number:08d}.json"
    body = _unseal(_bounded(path, MANIFEST_CAP))
    if body is None:
        raise _Damaged(f"{path} is damaged (its sha256 does not fit its content)")
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {body.get('format')!r}, this version reads {FORMAT}; update irlhf")
    tensors: dict[str, Tensor] = {}
    try:
        for name, expected in body["files"].items():
            file = inside(directory, name)
            data = _bounded(file, expected["bytes"])
            if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise _Damaged(f"{file} is damaged (its sha256 or size is not the one in {path.name})")
            tensors |= decode_tensors(data, str(file))[0]
        if not (isinstance(body["step"], int) and isinstance(body["info"], dict) and isinstance(body["about"], dict)):
            raise TypeError("step, info, about")
        return Checkpoint(body["step"], tensors, body["info"], body["about"], number)
    except (KeyError, TypeError, AttributeError) as error:  # sealed, but by somebody else
        raise _Damaged(f"{path} is not a manifest ({type(error).__name__}: {error})") from error


def _bounded(path: Path, cap: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > cap:
            raise _Damaged(f"{path} is damaged ({size} bytes where at most {cap} are expected)")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _Damaged(f"{path} is missing") from error
    except OSError as error:
        raise _Damaged(f"{path} cannot be read ({error.strerror})") from error


def _prune(directory: Path, keep: set[int]) -> None:
    # Manifests first: a kill in between leaves tensors without a manifest (dropped next time), never the reverse.
    # Failing to delete is no reason to fail a save.
    names = [name for name in os.listdir(directory) if re.match(r"^\d{8,}\.(json|safetensors)$", name)]
    for name in sorted(names, key=lambda name: (not name.endswith(".json"), name)):
        if int(name.split(".")[0]) not in keep:
            try:
                (directory / name).unlink(missing_ok=True)
            except OSError:
                continue

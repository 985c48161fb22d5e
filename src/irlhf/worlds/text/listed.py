"""Text with a vocabulary and a cap so small that everything can be listed: what sampled numbers are checked against."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from irlhf.errors import ConfigError
from irlhf.functional.choice import set_logsumexp
from irlhf.protocols import Draws
from irlhf.worlds.text.batch import TextBatch

MOST = 1_000_000


def every_completion(vocabulary: int, end: int, cap: int) -> tuple[Int[Tensor, "steps"], Int[Tensor, "items"]]:
    """(tokens, lengths) of all completions of at most ``cap`` steps: ended ones, shortest first, then the capped.

    Raises ConfigError where there are more than a million.
    """
    words = [token for token in range(vocabulary) if token != end]
    count = sum(len(words) ** n for n in range(cap)) + len(words) ** cap
    if count > MOST:
        raise ConfigError(
            f"{vocabulary} tokens and completions of up to {cap} make {count:.3g} completions, too many to list; "
            "draw them, or use a smaller world"
        )
    found = [[*text, end] for n in range(cap) for text in itertools.product(words, repeat=n)]
    found += [list(text) for text in itertools.product(words, repeat=cap)]
    tokens = [token for text in found for token in text]
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor([len(text) for text in found], dtype=torch.int64)


class Listed:
    """``log P(y|x) = R/T + log mu - log Z(x)``, with Z summed over all completions; ``values`` are log Z, in nats."""

    def __init__(self, world: Any, reward: Any, every: Draws, temperature: Tensor | float):
        self.world, self.reward, self.temperature = world, reward, temperature
        self.contexts = {prompt: k for k, prompt in enumerate(every.batch.contexts)}
        self.values = set_logsumexp(self._utility(every.batch), every.batch.context, len(self.contexts))

    def _utility(self, batch: TextBatch) -> Float[Tensor, "items"]:
        return self.reward(batch).double() / self.temperature + self.world.log_base(batch)

    def log_prob(self, batch: TextBatch) -> Float[Tensor, "items"]:
        number = torch.tensor([self.contexts[prompt] for prompt in batch.contexts])
        return self._utility(batch) - self.values[number[batch.context]]

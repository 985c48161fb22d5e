"""The world of text: contexts are prompts, trajectories completions, the base measure a language model."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from irlhf.errors import ConfigError, TrajectoryError
from irlhf.protocols import Draws
from irlhf.randomness import Key
from irlhf.worlds.text.batch import TextBatch, text_batch
from irlhf.worlds.text.encoding import Encoder, Prompt
from irlhf.worlds.text.listed import Listed, every_completion


class TextWorld:
    """Completions of at most ``encoder.max_tokens`` tokens: each ends with the end token, or is exactly that long.

    Nothing but the policy decides what happens, and nothing is discounted, so that the three likelihoods of a
    demonstration are one.

    Args:
        encoder: makes tokens of text, once for policy and reward.
        base: mu, a policy that stays as it is. None: counting (every completion alike); then only comparisons, pools
            and the like can be used, since nothing can be drawn from it.
    """

    deterministic = True
    kinds = ("anticipative",)

    def __init__(self, encoder: Encoder, base: Any = None):
        self.encoder, self.base = encoder, base
        self._every: dict[tuple[Prompt, ...], Draws] = {}
        self._log_base: weakref.WeakKeyDictionary[TextBatch, Tensor] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        base = "counting" if self.base is None else getattr(getattr(self.base, "model", None), "name", "a policy")
        return f"TextWorld(texts of at most {self.encoder.max_tokens} tokens, base measure: {base})"

    def name(self, context: Any) -> str:
        """A prompt as a person reads it."""
        text = self.encoder.text(self.encoder.prompt(context).tokens)
        return repr(text) if text else "no prompt"

    def collate(self, contexts: Sequence[Any], trajectories: Sequence[Any]) -> TextBatch:
        """Tokens of prompts and completions.

        Raises:
            TrajectoryError: a text that cannot be encoded (too long, has an end within), with the number of its item.
        """
        prompts, tokens, lengths = [], [], []
        for k, (context, trajectory) in enumerate(zip(contexts, trajectories, strict=True)):
            try:
                prompts.append(self.encoder.prompt(context))
                completion = self.encoder.completion(context, trajectory)
            except ValueError as error:
                raise TrajectoryError(k, str(error)) from None
            tokens += completion.tokens
            tokens += (self.encoder.end,) * completion.ended
            lengths.append(len(completion.tokens) + completion.ended)
        return text_batch(prompts, torch.arange(len(prompts)), *map(_whole_numbers, (tokens, lengths)))

    # -------------------------------------------------------------------------------------------------- base measure

    def base_policy(self) -> Any:
        """mu as a policy. Raises ConfigError where there is none."""
        if self.base is None:
            raise ConfigError("this world has no base model to draw from; give it one, or take rivals from a Pool")
        return self.base

    def log_base_step(self, batch: TextBatch) -> Float[Tensor, "steps"]:
        """``log mu`` of each token, in nats; computed once for a batch."""
        if self.base is None:
            return torch.zeros(len(batch.token), dtype=torch.float64)
        if batch not in self._log_base:
            if batch.taken_from is not None:
                whole, items = batch.taken_from
                return self.log_base_step(whole)[whole.steps_of(items)[0]]
            with torch.no_grad():
                self._log_base[batch] = self.base.log_prob(batch).double()
        return self._log_base[batch]

    def log_base(self, batch: TextBatch) -> Float[Tensor, "items"]:
        return batch.sum(self.log_base_step(batch))

    # ------------------------------------------------------------------------------------------------------- drawing

    def draw(self, policy: Any, contexts: Sequence[Any], n: int | np.ndarray, *, key: Key) -> Draws:
        """``n`` completions of each prompt (one number, or one for each), and what each token was drawn with."""
        prompts = [self.encoder.prompt(context) for context in contexts]
        counts = np.broadcast_to(n, len(prompts)).astype(np.int64)
        found = policy.sample(prompts, counts, key=key, max_tokens=self.encoder.max_tokens, end=self.encoder.end)
        request = torch.repeat_interleave(torch.arange(len(prompts)), torch.from_numpy(counts))
        batch = text_batch(prompts, request, found.token, found.length)
        return Draws(batch, request, found.log_prob.double(), self.whole(batch))

    def origins(self, batch: TextBatch) -> list[Prompt]:
        """The prompt of each item."""
        return [batch.contexts[x] for x in batch.context.tolist()]

    def whole(self, batch: TextBatch) -> Bool[Tensor, "items"]:
        """Whether each item ends with the end token, its only one, or is as long as the cap and has none."""
        ends = (batch.token == self.encoder.end).to(torch.int64)
        count = torch.zeros(batch.n_items, dtype=torch.int64).index_add(0, batch.item, ends)
        length = batch.length
        last = torch.zeros(batch.n_items, dtype=torch.bool)
        some = length > 0
        last[some] = ends.bool()[torch.cumsum(length, 0)[some] - 1]
        capped = (count == 0) & (length == self.encoder.max_tokens)
        return ((count == 1) & last & (length <= self.encoder.max_tokens)) | capped

    # ------------------------------------------------------------------------------------- worlds that can be listed

    def every(self, contexts: Sequence[Any]) -> Draws:
        """All completions of each prompt, where the vocabulary and the cap are small enough to list them.

        Raises ConfigError where there are more than a million.
        """
        prompts = [self.encoder.prompt(context) for context in contexts]
        token, length = every_completion(len(self.encoder.tokenizer), self.encoder.end, self.encoder.max_tokens)
        request = torch.repeat_interleave(torch.arange(len(prompts)), len(length))
        batch = text_batch(prompts, request, token.repeat(len(prompts)), length.repeat(len(prompts)))
        return Draws(batch, request, None, torch.ones(len(request), dtype=torch.bool))

    def solve(
        self,
        reward: Any,
        contexts: Sequence[Any],
        *,
        temperature: Tensor | float = 1.0,
        kind: str = "anticipative",
        warm_start: Tensor | None = None,
    ) -> Listed:
        """The partition function of each prompt, by summing over all completions. The ``kind`` does not matter here."""
        prompts = tuple(self.encoder.prompt(context) for context in contexts)
        if prompts not in self._every:
            self._every[prompts] = self.every(prompts)
        return Listed(self, reward, self._every[prompts], temperature)

    def best(self, reward: Any, contexts: Sequence[Any], *, temperature: float = 1.0) -> Float[Tensor, "contexts"]:
        """``log Z`` of each prompt, which no policy exceeds."""
        return self.solve(reward, list(contexts), temperature=temperature).values

    def attained(
        self, policy: Any, reward: Any, contexts: Sequence[Any], *, temperature: float = 1.0
    ) -> Float[Tensor, "contexts"]:
        """``E_pi[log w] = log Z - KL(pi || P)`` of each prompt, by summing over all completions."""
        every = self.every(contexts)
        with torch.no_grad():
            log_p = every.batch.sum(policy.log_prob(every.batch).double())
            log_w = reward(every.batch).double() / temperature + self.log_base(every.batch) - log_p
        return log_w.new_zeros(len(contexts)).index_add(0, every.request, log_p.exp() * log_w)

    def describe(self, draws: Draws) -> dict[str, float]:
        """What a step of learning tells of texts: mean tokens, and the share that was cut at the cap."""
        batch = draws.batch
        ended = torch.zeros(batch.n_items).index_add(0, batch.item, (batch.token == self.encoder.end).float()) > 0
        return {"tokens": float(batch.length.double().mean()), "truncated": float(1 - ended.double().mean())}

    def readable(self, draws: Draws) -> list[dict[str, Any]]:
        """Draws as a person reads them."""
        batch, text = draws.batch, self.encoder.text
        return [
            {"prompt": text(batch.contexts[x].tokens), "completion": text(completion.tokens), "ended": completion.ended}
            for x, completion in zip(batch.context.tolist(), batch.completions(self.encoder.end), strict=True)
        ]


def _whole_numbers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)

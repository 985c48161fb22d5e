"""Drawing completions from a causal language model, with the log-probabilities of what really drew them.

Temperature 1, no top-p, no top-k, and nothing out of a model's generation config. The random numbers are keyed: what
is drawn for a prompt depends on the key and on that prompt alone, never on what else is written at the same time.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from irlhf.errors import ConfigError, NonFiniteError
from irlhf.randomness import Key
from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.llama import Llama, supports

CHUNK = 256  # tokens whose probabilities are summed up first
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class Sampled:
    """Completions laid end to end, those of the first prompt first.

    A token is the end token only in the last step of an item; an item without one was stopped at ``max_tokens``.
    """

    token: Int[Tensor, "steps"]
    length: Int[Tensor, "items"]  # steps of each item; they sum to the number of steps
    log_prob: Float[Tensor, "steps"]  # float64; of each token under the distribution that it was drawn from
    version: int  # of the weights that drew: ``weights_version(model)``


@runtime_checkable
class Sampler(Protocol):
    """What writes completions: a model in this process, or a server beside it.

    ``n`` says how many completions each prompt gets, 0 included; ``end`` is the token after which one stops. An item
    has at most ``max_tokens`` steps, its end token counted.
    """

    def sample(
        self, prompts: Sequence[Prompt], n: Sequence[int] | NDArray[Any], *, key: Key, max_tokens: int, end: int
    ) -> Sampled: ...


@runtime_checkable
class Decoder(Protocol):
    """Logits of the next token, for several rows at a time."""

    def start(self, prompts: list[tuple[int, ...]], n: list[int], max_tokens: int) -> Tensor:
        """[rows, vocabulary] after each prompt, repeated ``n`` times; at most ``max_tokens`` tokens will follow."""
        ...

    def keep(self, rows: Tensor) -> None:
        """From now on there are only these rows, in this order."""
        ...

    def step(self, token: Tensor) -> Tensor:
        """[rows, vocabulary] after one more token in each row."""
        ...


class Generate:
    """The sampler for any causal model of ``transformers``: through :class:`Llama` where that knows it, else through
    the model's own forward pass.

    Args:
        model: draws with the adapters that are active when ``sample`` is called, dropout off.
        rows: completions written at a time, which bounds the memory.
    """

    def __init__(self, model: Any, *, rows: int = 64):
        self.model, self.rows = model, rows

    def sample(
        self, prompts: Sequence[Prompt], n: Sequence[int] | NDArray[Any], *, key: Key, max_tokens: int, end: int
    ) -> Sampled:
        check_positions(self.model, prompts, max_tokens)
        with frozen(self.model):
            decoder = Llama(self.model) if supports(self.model) else Forward(self.model)
            version = weights_version(self.model)
            return draw(decoder, prompts, n, key=key, max_tokens=max_tokens, end=end, rows=self.rows, version=version)


def draw(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    n: Sequence[int] | NDArray[Any],
    *,
    key: Key,
    max_tokens: int,
    end: int,
    rows: int,
    version: int,
) -> Sampled:
    """What every sampler does with its decoder.

    Raises:
        ConfigError: ``n`` does not fit the prompts, or there is no room for a token.
        NonFiniteError: the model's logits are not numbers.
    """
    counts = np.asarray(n, dtype=np.int64)
    if counts.shape != (len(prompts),) or (counts < 0).any():
        raise ConfigError(f"n = {counts.tolist()} for {len(prompts)} prompts; say how many each gets")
    if max_tokens < 1 or rows < 1:
        raise ConfigError(f"max_tokens = {max_tokens}, rows = {rows}; each must be at least 1")
    text = [prompt.tokens for prompt in prompts]
    owner = np.repeat(np.arange(len(text)), counts)
    stream = streams(prompts, counts, key)
    token = torch.zeros(len(owner), max_tokens, dtype=torch.int64)
    log_prob = torch.zeros(len(owner), max_tokens, dtype=torch.float64)
    length = torch.zeros(len(owner), dtype=torch.int64)
    by_size = np.argsort(np.array([len(tokens) for tokens in text])[owner], kind="stable")  # little padding
    for first in range(0, len(owner), rows):
        live = by_size[first : first + rows]
        live = live[np.argsort(owner[live], kind="stable")]  # the rows of a prompt side by side
        those, times = (found.tolist() for found in np.unique(owner[live], return_counts=True))
        logits = decoder.start([text[int(i)] for i in those], times, max_tokens)
        for t in range(max_tokens):
            u = torch.from_numpy(uniform(stream[live], t)).to(logits.device)
            drawn, log_p = inverse_cdf(logits, u)
            token[live, t], log_prob[live, t] = drawn.cpu(), log_p.cpu()
            length[live] = t + 1
            bad = np.flatnonzero(~torch.isfinite(log_p).cpu().numpy())
            if len(bad):
                raise NonFiniteError(f"the logits after prompt {owner[live[bad[0]]]}, token {t}, are not finite")
            stay = _remaining((drawn != end).cpu())
            if len(stay) == 0 or t + 1 == max_tokens:
                break
            if len(stay) < len(live):
                live, stay = live[stay.numpy()], stay.to(drawn.device)
                decoder.keep(stay)
                drawn = drawn[stay]
            logits = decoder.step(drawn)
    real = torch.arange(max_tokens) < length[:, None]
    return Sampled(token[real], length, log_prob[real], version)


def _remaining(going: Tensor) -> Tensor:
    """The rows that go on; those at the back fill the holes, so that few rows have to move."""
    left = int(going.sum())
    rows = torch.arange(left)
    rows[~going[:left]] = torch.arange(left, len(going))[going[left:]]
    return rows


def inverse_cdf(
    logits: Float[Tensor, "rows vocabulary"], u: Float[Tensor, "rows"]
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """(the token of each row, its log-probability in float64): the first at which the distribution function exceeds u.

    In two levels, sums of chunks and then one chunk, because a distribution function of 50,000 tokens is slow.
    """
    p = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if p.shape[-1] % CHUNK:
        p = torch.nn.functional.pad(p, (0, -p.shape[-1] % CHUNK))
    p = p.unflatten(-1, (-1, CHUNK))
    of_chunk = p.sum(-1).double()
    total = of_chunk.sum(-1)  # 1 but for rounding
    chunk, rest = _first_above(of_chunk, u * total)
    p = p[torch.arange(len(p), device=p.device), chunk].double()
    inside, _ = _first_above(p, rest)
    token = (chunk * CHUNK + inside).clamp_(max=logits.shape[-1] - 1)  # only NaN goes beyond; log p tells
    return token, (p.gather(-1, inside[:, None])[:, 0] / total).log()


def _first_above(weight: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    """The first index at which the running sum exceeds the mark (never one of weight 0), and the mark within it."""
    sums = weight.cumsum(-1)
    mark = torch.minimum(mark, sums[:, -1].nextafter(sums.new_zeros(())))  # rounding may have carried it to the total
    index = torch.searchsorted(sums, mark[:, None], right=True).clamp_(max=weight.shape[-1] - 1)
    before = sums.gather(-1, index) - weight.gather(-1, index)
    return index[:, 0], (mark - before[:, 0]).clamp_(min=0.0)


def streams(prompts: Sequence[Prompt], n: NDArray[np.int64], key: Key) -> NDArray[np.uint64]:
    """[items] a stream of random numbers for draw j of the k-th prompt with these tokens, given (key, tokens, k, j)."""
    seen: Counter[Prompt] = Counter()
    found = [np.empty(0, np.uint64)]
    for prompt, times in zip(prompts, n, strict=True):
        name = blake2b(np.asarray(prompt.tokens, "<i8").tobytes(), digest_size=32).hexdigest()
        base = np.uint64(key.at(name, seen[prompt]).bits(64))
        found.append(_mixed(base + np.uint64(GOLDEN) * np.arange(1, times + 1, dtype=np.uint64)))
        seen[prompt] += 1
    return np.concatenate(found)


def uniform(stream: NDArray[np.uint64], step: int) -> NDArray[np.float64]:
    """A number in [0, 1) of each stream: output ``step`` of SplitMix64 (Steele, Lea and Flood 2014, figure 14)."""
    z = _mixed(stream + np.uint64(GOLDEN * (step + 1) % 2**64))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Forward:
    """A model's forward pass, prompts padded on the left. Without a cache it reads everything again at each step."""

    def __init__(self, model: Any):
        self.model = model
        self.takes = inspect.signature(model.forward).parameters
        self.caching = "past_key_values" in self.takes

    def start(self, prompts: list[tuple[int, ...]], n: list[int], max_tokens: int) -> Tensor:
        width = max(map(len, prompts))
        device = self.model.device
        rows = [[0] * (width - len(p)) + list(p) for p in prompts]
        self.tokens = torch.tensor(rows, device=device)
        size = torch.tensor([len(p) for p in prompts], device=device)
        self.mask = (torch.arange(width, device=device) >= width - size[:, None]).long()
        self.cache = None
        logits = self._logits(self.tokens)
        repeated = torch.repeat_interleave(torch.tensor(n, device=device))
        self.keep(repeated)
        return logits[repeated]

    def keep(self, rows: Tensor) -> None:
        self.tokens, self.mask = self.tokens[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def step(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        if self.cache is not None:
            return self._logits(token[:, None])
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        return self._logits(self.tokens)

    def _logits(self, tokens: Tensor) -> Tensor:
        position = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        optional = {"position_ids": position, "logits_to_keep": 1, "past_key_values": self.cache}
        given = {name: value for name, value in optional.items() if name in self.takes}
        out = self.model(input_ids=tokens, attention_mask=self.mask, use_cache=self.caching, **given)
        self.cache = out.past_key_values if self.caching else None
        return out.logits[:, -1]


def weights_version(model: Any) -> int:
    """Grows whenever a parameter is changed in place, as optimizers do; equal only if none was."""
    return sum(parameter._version for parameter in model.parameters())


def check_positions(model: Any, prompts: Sequence[Prompt], max_tokens: int) -> None:
    """Raises ConfigError where a model has no positions left for what is to be written."""
    room = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    if room and room > 0 and longest + max_tokens > room:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_tokens} more are asked of a model with {room} positions; lower "
            "max_tokens or cut the prompts"
        )


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No gradients and no dropout; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training

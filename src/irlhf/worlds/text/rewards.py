"""Rewards of completions, read by a model at the last token of each.

The last token is the end token where a completion has ended, or with ``end`` the one before. It is found by counting:
neither padding nor what else is in a batch changes a score.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.randomness import Key
from irlhf.worlds.text.batch import TextBatch, parts
from irlhf.worlds.text.model import TOKENS, LanguageModel
from irlhf.worlds.text.sentences import SentenceModel

Backbone = LanguageModel | SentenceModel


class LinearReward(nn.Module):
    """``R(x, y) = theta . phi(x, y) / scale``: phi is what the frozen model makes of the text; ``theta`` is fitted.

    One pass over the texts; then a fit is that of a linear model, with everything that goes with it. ``scale`` is the
    standard deviation of each feature over the texts that :meth:`standardize` is given, so that one prior suits all;
    1 before that.

    Args:
        model: stays as it is.
        adapter: of a LanguageModel, stays as it is too; None: none.
        depth: decoder layers that are read; None: all. The middle of a model often knows more than its end.
        end: the end token, if it is not to be read. A frozen model has said more of a text at its last word than
            after it; a trained one learns to sum up at the end token.

    Raises:
        ConfigError: the model has no such adapter.
    """

    scale: Tensor

    def __init__(
        self, model: Backbone, *, adapter: str | None = None, depth: int | None = None, end: int | None = None
    ):
        super().__init__()
        _require(model, adapter, depth)
        self._shared = (model,)  # in a tuple, so that its parameters are not this module's
        self.adapter, self.depth, self.end = adapter, depth, end
        self.theta = nn.Parameter(torch.zeros(model.width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(model.width, dtype=torch.float64))
        self._features: weakref.WeakKeyDictionary[TextBatch, Tensor] = weakref.WeakKeyDictionary()
        self._known: dict[tuple[tuple[int, ...], ...], Tensor] = {}  # features by (prompt, completion)

    @property
    def model(self) -> Backbone:
        return self._shared[0]

    def standardize(self, *batches: TextBatch, tell: Callable[[int], None] = lambda items: None) -> None:
        """Divides features by their standard deviations over these items; ``theta`` is then in those units.

        The features of these texts are remembered, in whatever batch they come again. ``tell`` hears how many items
        were read, some at a time.
        """
        for batch in batches:
            self._features[batch] = self._read(batch, tell)
            self._known |= dict(zip(self._names(batch), self._features[batch], strict=True))
        spread = torch.cat([self._features[batch] for batch in batches]).std(0, correction=0)
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def another(self) -> LinearReward:
        """One to be fitted anew, in the same units, that knows all texts which this one has read."""
        other = LinearReward(self.model, adapter=self.adapter, depth=self.depth, end=self.end)
        other.scale.copy_(self.scale)
        other._features, other._known = self._features, self._known
        return other

    def features(self, batch: TextBatch) -> Float[Tensor, "items width"]:
        """phi of each item, as the model gives it, in float64; computed once for a batch.

        Of other texts than those that the reward was standardized by nothing is remembered beyond their batch: what a
        text is read with shows in the last digits, and a run that is resumed has forgotten what it drew.
        """
        if batch not in self._features:
            if batch.taken_from is not None:
                whole, items = batch.taken_from
                return self.features(whole)[items]
            self._features[batch] = self._read(batch)
        return self._features[batch]

    def _read(self, batch: TextBatch, tell: Callable[[int], None] = lambda items: None) -> Tensor:
        names = self._names(batch)
        new = {name: k for k, name in reversed(list(enumerate(names))) if name not in self._known}
        read = self._without_end(batch).take(torch.tensor(list(new.values()), dtype=torch.int64))
        found = _frozen(self.model, read, self.adapter, self.depth, tell).double()
        known = {**self._known, **dict(zip(new, found, strict=True))}
        return torch.stack([known[name] for name in names]) if names else found

    def _names(self, batch: TextBatch) -> list[tuple[tuple[int, ...], ...]]:
        """(prompt, completion) of each item."""
        read = self._without_end(batch)
        prompts, tokens = [prompt.tokens for prompt in read.contexts], read.token.split(read.length.tolist())
        return [(prompts[x], tuple(own.tolist())) for x, own in zip(read.context.tolist(), tokens, strict=True)]

    def _without_end(self, batch: TextBatch) -> TextBatch:
        return batch if self.end is None else batch.without_end(self.end)

    def forward(self, batch: TextBatch) -> Float[Tensor, "items"]:
        return self.features(batch) @ (self.theta / self.scale)


class ScoreReward(nn.Module):
    """``R(x, y) = head . phi(x, y)``, with the model trained too: by an adapter, or all of it; or the head alone.

    The head is in single precision at least, whatever the model computes in, and has no constant (which no comparison
    could tell).

    Args:
        model: shared with whatever else reads it.
        adapter: the name of one that a LanguageModel has, trained with the head.
        whole: train the model itself. Then nothing else should stand on it.
        depth, end: as of :class:`LinearReward`.
        key: of the head's random start.

    Raises:
        ConfigError: both an adapter and the whole model, or the model has no such adapter.
    """

    def __init__(
        self,
        model: Backbone,
        adapter: str | None = None,
        *,
        whole: bool = False,
        depth: int | None = None,
        end: int | None = None,
        key: Key | None = None,
    ):
        super().__init__()
        _require(model, adapter, depth)
        if adapter is not None and whole:
            raise ConfigError(f"both the adapter {adapter!r} and the whole model are to be trained; choose one")
        self._shared = (model,)
        self.adapter, self.depth, self.end = adapter, depth, end
        if isinstance(model, LanguageModel) and adapter is not None:
            self.matrices = model.adapter(adapter)
        elif whole:
            self.whole = model.model.requires_grad_(True)
            if isinstance(model, LanguageModel):  # what only makes logits of words is no part of a reward
                model.head.requires_grad_(model.model.get_input_embeddings().weight is model.head.weight)
        start = torch.randn(model.width, generator=(key or Key(0)).at("head").torch()) / model.width**0.5
        self.head = nn.Parameter(start.to(torch.promote_types(model.dtype, torch.float32)))

    @property
    def model(self) -> Backbone:
        return self._shared[0]

    def forward(self, batch: TextBatch) -> Float[Tensor, "items"]:
        trained = any(p.requires_grad for name, p in self.named_parameters() if name != "head")
        read = _read if trained and torch.is_grad_enabled() else _frozen
        batch = batch if self.end is None else batch.without_end(self.end)
        return read(self.model, batch, self.adapter, self.depth).to(self.head.dtype) @ self.head


def _require(model: Backbone, adapter: str | None, depth: int | None) -> None:
    if isinstance(model, LanguageModel):
        if adapter is not None:
            model.adapter(adapter)
    elif adapter is not None or depth is not None:
        raise ConfigError(
            f"{model.name} reads whole texts, without adapters and with all of its layers; leave both out"
        )


def _read(model: Backbone, batch: TextBatch, adapter: str | None, depth: int | None) -> Float[Tensor, "items width"]:
    """What the model makes of each item; differentiable."""
    if isinstance(model, SentenceModel):
        return model.read(batch)
    hidden, where = model.hidden(batch, adapter, depth)
    found = hidden[where.last]
    if batch.n_items > 1 and not torch.isfinite(found.detach()).all():
        # What is not finite spreads to all that stands in the same row (0 x NaN is NaN), but errors name the guilty.
        alone = [_read(model, batch.take(item), adapter, depth) for item in torch.arange(batch.n_items).split(1)]
        return torch.cat(alone)
    return found


def _frozen(
    model: Backbone,
    batch: TextBatch,
    adapter: str | None,
    depth: int | None,
    tell: Callable[[int], None] = lambda items: None,
) -> Float[Tensor, "items width"]:
    """The same without gradients, some items at a time."""
    result = torch.empty(batch.n_items, model.width, dtype=model.dtype)
    with torch.no_grad():
        for items in parts(batch, TOKENS):
            result[items] = _read(model, batch.take(items), adapter, depth)
            tell(len(items))
    return result

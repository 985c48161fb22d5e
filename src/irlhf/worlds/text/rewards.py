"""Rewards of completions, read by a language model at the last token of each."""

from __future__ import annotations

import weakref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.randomness import Key
from irlhf.worlds.text.batch import TextBatch, parts
from irlhf.worlds.text.model import TOKENS, LanguageModel


class LinearReward(nn.Module):
    """``theta . phi(x, y)``: phi is what the frozen model makes of the last token, ``theta`` is fitted.

    One pass over the texts; then a fit is that of a linear model, with everything that goes with it. Each feature is
    divided by its standard deviation over the texts that :meth:`standardize` is given, so that one prior suits all.

    Args:
        model: stays as it is.
        adapter: of the model, stays as it is too; None: none.
        depth: decoder layers that are read; None: all. The middle of a model often knows more than its end.
    """

    def __init__(self, model: LanguageModel, *, adapter: str | None = None, depth: int | None = None):
        super().__init__()
        self._shared = (model,)
        self.adapter, self.depth = adapter, depth
        self.theta = nn.Parameter(torch.zeros(model.width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(model.width, dtype=torch.float64))
        self._features: weakref.WeakKeyDictionary[TextBatch, Tensor] = weakref.WeakKeyDictionary()

    @property
    def model(self) -> LanguageModel:
        return self._shared[0]

    def standardize(self, batch: TextBatch) -> None:
        """Divides features by their standard deviations over these items; ``theta`` is then in those units."""
        spread = self.features(batch).std(0)
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def features(self, batch: TextBatch) -> Float[Tensor, "items width"]:
        """phi of each item, as the model gives it, in float64; computed once for a batch."""
        if batch not in self._features:
            if batch.taken_from is not None:
                whole, items = batch.taken_from
                return self.features(whole)[items]
            self._features[batch] = last_hidden(self.model, batch, self.adapter, self.depth).double()
        return self._features[batch]

    def forward(self, batch: TextBatch) -> Float[Tensor, "items"]:
        return self.features(batch) @ (self.theta / self.scale)


class ScoreReward(nn.Module):
    """A scalar head on the model, trained with an adapter of it, with all of it, or alone.

    Args:
        model: shared with whatever else reads it.
        adapter: the name of one that the model has, trained with the head.
        whole: train the model itself. Then nothing else should stand on it.
        depth: as of :class:`LinearReward`.
        key: of the head's random start.
    """

    def __init__(
        self,
        model: LanguageModel,
        adapter: str | None = None,
        *,
        whole: bool = False,
        depth: int | None = None,
        key: Key | None = None,
    ):
        super().__init__()
        self._shared = (model,)
        self.adapter, self.depth = adapter, depth
        if adapter is not None:
            self.matrices = model.adapter(adapter)
        elif whole:
            self.whole = model.model.requires_grad_(True)
            model.head.requires_grad_(model.model.get_input_embeddings().weight is model.head.weight)
        start = torch.randn(model.width, generator=(key or Key(0)).at("head").torch()) / model.width**0.5
        self.head = nn.Parameter(start.to(torch.promote_types(model.dtype, torch.float32)))

    @property
    def model(self) -> LanguageModel:
        return self._shared[0]

    def forward(self, batch: TextBatch) -> Float[Tensor, "items"]:
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            hidden, where = self.model.hidden(batch, self.adapter, self.depth)
            return hidden[where.last].to(self.head.dtype) @ self.head
        return last_hidden(self.model, batch, self.adapter, self.depth).to(self.head.dtype) @ self.head


def last_hidden(
    model: LanguageModel, batch: TextBatch, adapter: str | None, depth: int | None
) -> Float[Tensor, "items width"]:
    """The hidden state of the last token of each item, without gradients, some items at a time."""
    result = torch.empty(batch.n_items, model.width, dtype=model.dtype)
    with torch.no_grad():
        for items in parts(batch, TOKENS):
            hidden, where = model.hidden(batch.take(items), adapter, depth)
            result[items] = hidden[where.last]
    return result

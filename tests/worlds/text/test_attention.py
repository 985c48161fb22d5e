"""The gradient of attention by matrix products is that of torch's own attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from irlhf.randomness import Key
from irlhf.worlds.text import attention
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.rewards import ScoreReward
from tests.worlds.text import tiny
from tests.worlds.text.test_world import ragged


@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["a row at a time", "at once"])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_torch(masked, piece, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", piece)
    draw = Key(0).torch()
    parts = [torch.randn(2, 3, 5, 4, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]
    mask = attention.causal(5, torch.float64)
    if masked:
        mask = mask.repeat(2, 1, 1, 1)
        mask[1, 0, 3, 1:3] = torch.finfo(torch.float64).min
    theirs = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.7)
    ours = attention.ShortRows.apply(*parts, mask, 0.7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    toward = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, parts, toward), torch.autograd.grad(theirs, parts, toward), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_a_model_that_attends_this_way_has_the_same_gradient(make, monkeypatch):
    """With keys for several heads, and rows that completions share and that they do not."""
    used = []
    monkeypatch.setattr(attention, "FAST", torch.float64)
    real = attention.ShortRows.apply
    monkeypatch.setattr(attention.ShortRows, "apply", lambda *given: used.append(1) or real(*given))

    def gradient(batch):
        language = LanguageModel(make())
        language.add_adapter("reward", rank=2, key=Key(1))
        reward = ScoreReward(language, "reward")
        with torch.no_grad():
            for p in reward.parameters():
                p.add_(torch.randn(p.shape, generator=Key(4).torch(), dtype=p.dtype) * 0.2)
        found = torch.cat([g.flatten() for g in torch.autograd.grad(reward(batch).sum(), list(reward.parameters()))])
        assert language.model.config._attn_implementation == "sdpa"
        return found

    for batch in (ragged(), ragged().take(torch.tensor([2]))):
        monkeypatch.setattr(attention, "LONGEST", 384)
        used.clear()
        ours = gradient(batch)
        assert len(used) >= 2  # in each layer
        monkeypatch.setattr(attention, "LONGEST", 0)
        used.clear()
        torch.testing.assert_close(ours, gradient(batch), rtol=0, atol=1e-12)
        assert not used

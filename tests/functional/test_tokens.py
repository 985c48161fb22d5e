"""Log-probabilities of tokens without all logits: the plain formula, its gradients, and chunks that change nothing."""

import pytest
import torch

from irlhf.functional import tokens
from irlhf.functional.tokens import token_log_prob
from irlhf.randomness import Key


def problem():
    generator = Key(0).torch()
    made = [torch.randn(*shape, generator=generator).double().requires_grad_() for shape in ((5, 3), (7, 3), (7,))]
    return *made, torch.tensor([0, 6, 3, 3, 1])


@pytest.mark.parametrize("elements", [1 << 24, 14, 1])
def test_it_is_a_log_softmax_with_its_gradients(elements, monkeypatch):
    monkeypatch.setattr(tokens, "ELEMENTS", elements)
    hidden, weight, bias, token = problem()
    plain = (hidden @ weight.T + bias).log_softmax(1)[torch.arange(5), token]
    torch.testing.assert_close(token_log_prob(hidden, weight, token, bias), plain, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda h, w, b: token_log_prob(h, w, token, b), (hidden, weight, bias))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda h: token_log_prob(h, frozen, token), (hidden,))


def test_a_model_in_half_precision_gets_single():
    hidden, weight, _, token = problem()
    found = token_log_prob(hidden.detach().bfloat16(), weight.detach().bfloat16(), token)
    assert found.dtype == torch.float32
    exact = token_log_prob(hidden.detach(), weight.detach(), token)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.1)

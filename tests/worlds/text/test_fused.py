"""Norms and gates of transformers, computed some rows at a time: the same values to the bit, and better gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from irlhf.worlds.text import fused
from irlhf.worlds.text.fused import Gate, Norm, fuse

HALF = torch.bfloat16


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.data.normal_()
    return made.to(HALF).eval()


def given(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(HALF).requires_grad_()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(fused, "PIECE", 100)  # several in each test


def test_norm_is_that_of_transformers_and_its_gradient_that_of_double_precision():
    layer = model().model.norm
    x, weight = given(3, 7, 24), layer.weight.requires_grad_()
    ours = Norm.apply(x, weight, layer.variance_epsilon)
    assert torch.equal(ours, layer(x))
    push = given(3, 7, 24).detach().roll(1)
    wide = [x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    rate = torch.rsqrt(wide[0].square().mean(-1, keepdim=True) + layer.variance_epsilon)
    exact = torch.autograd.grad(wide[0] * rate * wide[1], wide, push.double())
    for found, by_autograd, truth in zip(
        torch.autograd.grad(ours, [x, weight], push),
        torch.autograd.grad(layer(x), [x, weight], push),
        exact,
        strict=True,
    ):
        wrong = float((found - truth).norm() / truth.norm())
        assert wrong < 2.0**-8  # half a unit in the last place of a number, at most
        assert wrong <= 1.01 * float((by_autograd - truth).norm() / truth.norm())


def test_gate_is_that_of_transformers_to_the_bit():
    gate, up = given(3, 7, 40), given(3, 7, 40).detach().roll(3).requires_grad_()
    ours, theirs = Gate.apply(gate, up), F.silu(gate) * up
    assert torch.equal(ours, theirs)
    push = torch.ones_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, [gate, up], push), torch.autograd.grad(theirs, [gate, up], push), strict=True
    ):
        assert torch.equal(a, b)


def test_a_fused_model_gives_the_same_logits_wherever_it_goes():
    plain, ours = model(), model()
    fuse(ours)
    layers = [ours.model.norm, ours.model.layers[0].mlp, ours.model.layers[1].input_layernorm]
    assert all("forward" in vars(layer) for layer in layers)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    assert torch.equal(ours(tokens).logits, plain(tokens).logits)
    copied = copy.deepcopy(ours)
    copied.model.norm.weight.data.mul_(2)  # a copy computes with its own weights
    assert torch.equal(copied(tokens).logits, 2 * plain(tokens).logits)
    ours.float(), plain.float()
    assert torch.equal(ours(tokens).logits, plain(tokens).logits)


def test_a_layer_that_computes_something_else_stays_as_it_is():
    other = model()
    with torch.no_grad():
        kind = type(other.model.norm)

        class RaisedRMSNorm(kind):  # as Gemma's: one is added to the weight
            def forward(self, hidden_states):
                return super().forward(hidden_states) + hidden_states

        other.model.norm.__class__ = RaisedRMSNorm
        fuse(other)
    assert "forward" not in vars(other.model.norm)
    single = model().float()
    fuse(single)
    assert "forward" not in vars(single.model.norm)


def test_the_order_in_memory_does_not_matter():
    layer = model().model.norm
    x = given(7, 3, 24).detach().transpose(0, 1).requires_grad_()
    gate, up = (given(7, 3, 40).detach().roll(k).transpose(0, 1).requires_grad_() for k in (0, 3))
    for ours, theirs, parts in (
        (Norm.apply(x, layer.weight, layer.variance_epsilon), layer(x), [x]),
        (Gate.apply(gate, up), F.silu(gate) * up, [gate, up]),
    ):
        assert torch.equal(ours, theirs)
        for a, b in zip(torch.autograd.grad(ours.sum(), parts), torch.autograd.grad(theirs.sum(), parts), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)

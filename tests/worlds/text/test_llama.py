"""The fast decoder says what the model says."""

import warnings

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import MistralConfig, MistralForCausalLM

from irlhf.errors import ConfigError
from irlhf.randomness import Key
from irlhf.worlds.text import llama as fast
from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.llama import Llama, joined, supports
from irlhf.worlds.text.sampling import Forward, Generate, draw
from tests.worlds.text.models import END, PROMPTS, by_hand, gpt2, items, llama, qwen

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS = {
    "grouped": llama,
    "one key head": lambda: llama(num_key_value_heads=1),
    "as many key heads": lambda: llama(num_key_value_heads=6),
    "tied": lambda: llama(tie_word_embeddings=True),
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "size of heads not said": lambda: llama(head_dim=None),
    "gelu": lambda: llama(hidden_act="gelu"),
    "linear rope": lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "llama3 rope": lambda: llama(rope_parameters=LLAMA3),
    "yarn rope": lambda: llama(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    "qwen": qwen,
}


def with_adapters(model, *names, targets=ALL, size=0.5, **options):
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two adapters are what is meant
            inject_adapter_in_model(LoraConfig(r=3, lora_alpha=5, target_modules=targets, **options), model, name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.to(model.dtype).eval()


def use(model, name):
    """Makes one adapter the active one, or none."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(name is not None)
            if name is not None:
                module.set_adapter(name)


def drawn(decoder, prompts=PROMPTS, n=(3, 2, 0, 4), max_tokens=6, rows=64, seed=1):
    with torch.no_grad():
        return draw(decoder, prompts, n, key=Key(seed), max_tokens=max_tokens, end=END, rows=rows, version=0)


@torch.no_grad()
def greedy(decoder, prompts, tokens):
    """[prompts, tokens], each prompt's row ending with END, and then with zeros."""
    found = torch.zeros(len(prompts), tokens, dtype=torch.int64)
    live = torch.arange(len(prompts))
    logits = decoder.start([p.tokens for p in prompts], [1] * len(prompts), tokens)
    for t in range(tokens):
        best = logits.argmax(-1)
        found[live, t] = best
        stay = (best != END).nonzero()[:, 0]
        if not len(stay) or t + 1 == tokens:
            break
        live, best = live[stay], best[stay]
        decoder.keep(stay)
        logits = decoder.step(best)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_the_model(name):
    model = MODELS[name]()
    assert supports(model)
    found = drawn(Llama(model))
    for owner, token, log_prob in items(PROMPTS, [3, 2, 0, 4], found):
        assert torch.allclose(log_prob, by_hand(model, PROMPTS[owner], token), atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", [[1, 1, 1, 1], [9, 1, 1, 3], [0, 16, 0, 1]])
@pytest.mark.parametrize("rows", [4, 64])
def test_the_same_is_drawn_as_by_the_models_own_forward_pass(monkeypatch, n, rows):
    monkeypatch.setattr(fast, "STEPS", 3)  # the room for keys has to grow
    model = llama()
    ours, plain = (drawn(decoder(model), n=n, max_tokens=16, rows=rows) for decoder in (Llama, Forward))
    assert torch.equal(ours.length, plain.length) and torch.equal(ours.token, plain.token)
    assert torch.allclose(ours.log_prob, plain.log_prob, atol=1e-10, rtol=0)
    assert ours.length.min() < 8 and (sum(n) < 5 or ours.length.max() == 16)  # some rows left early, some never


@pytest.mark.parametrize("make", [llama, qwen])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_those_of_transformers(make, seed):
    model = make(50, seed=seed, dtype=torch.float32)
    torch.manual_seed(seed)
    prompts = [Prompt(tuple(torch.randint(1, 50, (size,)).tolist())) for size in (1, 7, 3, 12, 7)]
    found = greedy(Llama(model), prompts, 30)
    for prompt, row in zip(prompts, found.tolist(), strict=True):
        text = torch.tensor([prompt.tokens])
        whole = model.generate(text, attention_mask=torch.ones_like(text), do_sample=False, max_new_tokens=30,
                               eos_token_id=END, pad_token_id=END)  # fmt: skip
        theirs = whole[0, len(prompt.tokens) :].tolist()
        assert row == theirs + [0] * (30 - len(theirs))


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["up_proj", "lm_head"]])
def test_the_active_adapters_draw(targets):
    model = with_adapters(llama(attention_bias=True), "one", "other", targets=targets)
    assert supports(model)
    seen = []
    for name in ("one", "other", None, "one"):
        use(model, name)
        found = drawn(Llama(model))
        for owner, token, log_prob in items(PROMPTS, [3, 2, 0, 4], found):
            assert torch.allclose(log_prob, by_hand(model, PROMPTS[owner], token), atol=1e-10, rtol=0)
        seen.append(found.log_prob.tolist())
    assert seen[0] == seen[3] and seen[0] != seen[1] and seen[1] != seen[2] and seen[0] != seen[2]


def test_each_call_draws_with_the_weights_of_that_time():
    model = with_adapters(llama(), "policy")
    sample = Generate(model).sample
    before = sample(PROMPTS, [2] * 4, key=Key(0), max_tokens=4, end=END)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.lora_B["policy"].weight.mul_(3.0)
    after = sample(PROMPTS, [2] * 4, key=Key(0), max_tokens=4, end=END)
    assert after.version > before.version
    for owner, token, log_prob in items(PROMPTS, [2] * 4, after):
        assert torch.allclose(log_prob, by_hand(model, PROMPTS[owner], token), atol=1e-10, rtol=0)
    assert before.log_prob.tolist() != after.log_prob.tolist()


def test_a_small_adapter_is_not_rounded_away_in_half_precision():
    module = with_adapters(llama(dtype=torch.bfloat16), "policy", size=0.01).model.layers[0].mlp.down_proj
    with torch.no_grad():
        module.weight.copy_(module.weight.sign() * module.weight.abs().clamp(min=1.0))
        delta = module.get_delta_weight("policy")
        assert torch.equal(module.weight + delta.bfloat16(), module.weight)
        x = torch.randn(4000, module.in_features).bfloat16()
        made = joined(module)(x).double() - x.double() @ module.weight.double().T
        meant = x.double() @ delta.double().T
    slope = (made * meant).sum() / meant.square().sum()
    assert abs(slope - 1) < 0.1


def test_half_precision_is_the_same_but_for_rounding():
    half = llama(dtype=torch.bfloat16)
    found = drawn(Llama(half), n=[8] * 4)
    half.float()
    for owner, token, log_prob in items(PROMPTS, [8] * 4, found):
        assert torch.allclose(log_prob, by_hand(half, PROMPTS[owner], token), atol=0.5, rtol=0)


def test_other_models_and_other_adapters_go_the_general_way():
    sliding = MistralForCausalLM(
        MistralConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, eos_token_id=0, bos_token_id=0)
    )  # fmt: skip
    changing = llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    dora = with_adapters(llama(), "policy", use_dora=True)
    merged = with_adapters(llama(), "policy")
    merged.model.layers[0].self_attn.q_proj.merge()
    biased = with_adapters(llama(attention_bias=True), "policy", targets=["q_proj"], lora_bias=True)
    embedding = with_adapters(llama(), "policy", targets=["embed_tokens"])
    for model in (gpt2(), sliding, changing, dora, merged, biased, embedding):
        assert not supports(model)
        found = Generate(model).sample(PROMPTS, [1] * 4, key=Key(0), max_tokens=2, end=END)
        assert len(found.length) == 4
    with pytest.raises(ConfigError, match="cannot read"):
        Llama(dora)


def test_the_fast_way_is_taken_where_there_is_one(monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError

    model = llama()
    monkeypatch.setattr(model, "forward", forward)
    Generate(model).sample(PROMPTS, [1] * 4, key=Key(0), max_tokens=3, end=END)

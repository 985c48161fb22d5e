"""Drawing from language models: what is drawn, with which probability, and that nothing else has a say in it."""

import itertools

import numpy as np
import pytest
import torch

from irlhf.errors import ConfigError, NonFiniteError
from irlhf.randomness import Key
from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.sampling import Generate, inverse_cdf, streams, uniform, weights_version
from tests.worlds.text.models import END, PROMPTS, by_hand, gpt2, items, llama, mamba


@pytest.mark.parametrize(
    ("make", "close"),
    [(llama, 1e-10), (gpt2, 1e-10), (mamba, 1e-5)],  # parts of mamba are in single precision whatever its dtype
)
@pytest.mark.parametrize("rows", [3, 64])
def test_log_probabilities_are_those_of_full_passes_over_each_text_alone(make, close, rows):
    model, n = make(), [3, 2, 0, 4]
    found = Generate(model, rows=rows).sample(PROMPTS, n, key=Key(1), max_tokens=6, end=END)
    assert found.log_prob.dtype == torch.float64 and len(found.length) == 9
    for owner, token, log_prob in items(PROMPTS, n, found):
        assert torch.allclose(log_prob, by_hand(model, PROMPTS[owner], token), atol=close, rtol=0)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_item_stops_at_its_end_token_or_when_it_is_full(make):
    found = Generate(make()).sample(PROMPTS, [20] * 4, key=Key(0), max_tokens=4, end=END)
    assert int(found.length.sum()) == len(found.token) == len(found.log_prob)
    stopped = 0
    for _, token, _ in items(PROMPTS, [20] * 4, found):
        assert 1 <= len(token) <= 4
        assert END not in token[:-1].tolist()
        assert len(token) == 4 or token[-1] == END
        stopped += int(token[-1] == END)
    assert 0 < stopped < 80


@pytest.mark.parametrize("make", [llama, gpt2])
def test_strings_are_as_frequent_as_they_are_probable(make):
    model, prompt, draws = make(4), Prompt((1, 2)), 20_000
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
    found = Generate(model, rows=10_000).sample([prompt], [draws], key=Key(5), max_tokens=3, end=END)
    counts: dict[tuple[int, ...], int] = {}
    for _, token, _ in items([prompt], [draws], found):
        counts[tuple(token.tolist())] = counts.get(tuple(token.tolist()), 0) + 1
    body = range(1, 4)
    strings = [(*s, END) for k in range(3) for s in itertools.product(body, repeat=k)]
    strings += list(itertools.product(body, repeat=3))
    assert set(counts) <= set(strings)
    p = np.array([by_hand(model, prompt, torch.tensor(s)).sum().exp().item() for s in strings])
    assert abs(p.sum() - 1) < 1e-12
    frequency = np.array([counts.get(s, 0) for s in strings]) / draws
    error = np.sqrt(p * (1 - p) / draws)
    assert np.all(np.abs(frequency - p) < 5 * error + 1e-12)
    assert np.sum(p * draws > 25) > 20  # the test sees most strings


@pytest.mark.parametrize("make", [llama, gpt2])
def test_what_is_drawn_for_a_prompt_does_not_depend_on_what_else_is_drawn(make):
    model, key = make(), Key(3).at("draws")
    sample = Generate(model, rows=5).sample
    together = items(PROMPTS, [4] * 4, sample(PROMPTS, [4] * 4, key=key, max_tokens=8, end=END))
    for i, prompt in enumerate(PROMPTS):
        alone = items([prompt], [2], sample([prompt], [2], key=key, max_tokens=8, end=END))
        for (_, token, log_prob), (_, token_alone, log_prob_alone) in zip(
            together[4 * i : 4 * i + 2], alone, strict=True
        ):
            assert token.tolist() == token_alone.tolist()
            assert torch.allclose(log_prob, log_prob_alone, atol=1e-12, rtol=0)
    backwards = items(PROMPTS[::-1], [4] * 4, sample(PROMPTS[::-1], [4] * 4, key=key, max_tokens=8, end=END))
    assert [t.tolist() for _, t, _ in backwards[:4]] == [t.tolist() for _, t, _ in together[-4:]]
    shorter = items(PROMPTS, [4] * 4, sample(PROMPTS, [4] * 4, key=key, max_tokens=3, end=END))
    assert [t.tolist() for _, t, _ in shorter] == [t.tolist()[:3] for _, t, _ in together]


def test_the_same_prompt_twice_is_drawn_from_twice():
    sample = Generate(llama()).sample
    twice = items(PROMPTS[:1] * 2, [6, 6], sample(PROMPTS[:1] * 2, [6, 6], key=Key(0), max_tokens=8, end=END))
    once = items(PROMPTS[:1], [6], sample(PROMPTS[:1], [6], key=Key(0), max_tokens=8, end=END))
    first, second = ([t.tolist() for _, t, _ in part] for part in (twice[:6], twice[6:]))
    assert first == [t.tolist() for _, t, _ in once]
    assert first != second and len({tuple(t) for t in first}) > 1


def test_another_key_draws_something_else():
    one, other = (Generate(llama()).sample(PROMPTS, [3] * 4, key=Key(s), max_tokens=8, end=END) for s in (0, 1))
    assert one.token.tolist() != other.token.tolist()


def test_no_generation_config_has_a_say():
    model = llama()
    plain = Generate(model).sample(PROMPTS, [3] * 4, key=Key(0), max_tokens=6, end=END)
    model.generation_config.update(temperature=0.1, top_k=1, do_sample=True, repetition_penalty=9.0, eos_token_id=3)
    model.generation_config.max_new_tokens = 2
    again = Generate(model).sample(PROMPTS, [3] * 4, key=Key(0), max_tokens=6, end=END)
    assert torch.equal(plain.token, again.token) and torch.equal(plain.log_prob, again.log_prob)


def test_a_pad_token_that_is_the_end_token_is_no_trouble():
    model = llama()
    prompts = [Prompt((END, 2)), Prompt((END,)), Prompt((1, END, END, 4))]
    found = Generate(model).sample(prompts, [3] * 3, key=Key(0), max_tokens=5, end=END)
    for owner, token, log_prob in items(prompts, [3] * 3, found):
        assert torch.allclose(log_prob, by_hand(model, prompts[owner], token), atol=1e-10, rtol=0)


def test_dropout_is_off_and_every_module_keeps_its_mode():
    model = llama(attention_dropout=0.9).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    found = Generate(model).sample(PROMPTS, [2] * 4, key=Key(0), max_tokens=6, end=END)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    calm = Generate(model).sample(PROMPTS, [2] * 4, key=Key(0), max_tokens=6, end=END)
    assert torch.equal(found.log_prob, calm.log_prob) and not found.log_prob.requires_grad


def test_the_version_tells_when_a_weight_was_changed():
    model = llama()
    before = Generate(model).sample(PROMPTS[:1], [1], key=Key(0), max_tokens=2, end=END).version
    assert before == Generate(model).sample(PROMPTS[:2], [1, 1], key=Key(1), max_tokens=2, end=END).version
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    after = Generate(model).sample(PROMPTS[:1], [1], key=Key(0), max_tokens=2, end=END).version
    assert before < after == weights_version(model)


def test_nothing_is_drawn_where_nothing_is_asked_for():
    for prompts, n in (([], []), (PROMPTS, [0] * 4)):
        found = Generate(llama()).sample(prompts, n, key=Key(0), max_tokens=5, end=END)
        assert len(found.token) == len(found.length) == len(found.log_prob) == 0


def test_requests_that_cannot_be_met_are_refused():
    sample = Generate(gpt2()).sample
    with pytest.raises(ConfigError, match=r"n = .* for 4 prompts"):
        sample(PROMPTS, [1, 2], key=Key(0), max_tokens=2, end=END)
    with pytest.raises(ConfigError, match="n = "):
        sample(PROMPTS[:1], [-1], key=Key(0), max_tokens=2, end=END)
    with pytest.raises(ConfigError, match="max_tokens = 0"):
        sample(PROMPTS[:1], [1], key=Key(0), max_tokens=0, end=END)
    with pytest.raises(ConfigError, match="5 tokens and 28 more are asked of a model with 32 positions"):
        sample(PROMPTS, [1] * 4, key=Key(0), max_tokens=28, end=END)
    sample(PROMPTS[1:2], [1], key=Key(0), max_tokens=27, end=END)


def test_logits_that_are_no_numbers_are_refused():
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[4] = torch.nan
    with pytest.raises(NonFiniteError, match="prompt 1, token 0"):
        Generate(model).sample(PROMPTS[:2], [1, 2], key=Key(0), max_tokens=3, end=END)


def test_the_inverse_distribution_function_finds_the_interval_of_every_number():
    torch.manual_seed(0)
    logits = torch.randn(1, 1000, dtype=torch.float64) * 3
    logits[0, [0, 255, 256, 999]] = -torch.inf
    p = logits.softmax(-1)[0]
    upper = p.cumsum(0)
    lower = upper - p
    for at in (1e-4, 0.5, 1 - 1e-4):
        u = lower + at * p
        token, log_prob = inverse_cdf(logits.expand(1000, -1), u.clamp(0.0, 1 - 1e-16))
        possible = p > 1e-7
        assert torch.equal(token[possible], torch.arange(1000)[possible])
        assert torch.allclose(log_prob[possible], p[possible].log(), atol=1e-12)
    ends, log_prob = inverse_cdf(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [1, 998] and torch.isfinite(log_prob).all()


def test_half_precision_logits_are_drawn_from_in_single_precision():
    logits = torch.randn(4, 700, generator=torch.Generator().manual_seed(0)).bfloat16()
    u = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    token, log_prob = inverse_cdf(logits, u)
    exact = logits.double().log_softmax(-1)
    assert torch.allclose(log_prob, exact[torch.arange(4), token], atol=1e-6)
    assert torch.equal(token, torch.searchsorted(exact.exp().cumsum(-1), u[:, None], right=True)[:, 0])


def test_uniform_numbers_are_uniform_and_independent_from_draw_to_draw_and_step_to_step():
    stream = streams([Prompt((1,)), Prompt((2,))], np.array([2000, 2000]), Key(0))
    assert len(set(stream.tolist())) == 4000
    u = np.stack([uniform(stream, t) for t in range(25)], 1)
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 100, (0, 1))[0]
    assert abs(((counts - 1000) ** 2 / 1000).sum() - 99) < 5 * np.sqrt(2 * 99)
    z = (u - 0.5) * np.sqrt(12)
    for a, b in ((z[:, :-1], z[:, 1:]), (z[:-1], z[1:]), (z[:2000], z[2000:])):
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)

"""The world of text, small enough to be listed: everything sampled is held against sums over all completions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irlhf import (
    LBFGS,
    Source,
    Term,
    comparisons,
    demonstrations,
    estimate_log_z,
    exact,
    fit_jointly,
    fit_policy,
    fit_reward,
    listed,
    ratings,
    rloo,
    sampled,
)
from irlhf.errors import ConfigError, TrajectoryError
from irlhf.objective import Normal, Objective
from irlhf.proposals import Base, FromPolicy, Mixture, Pool
from irlhf.randomness import Key
from irlhf.rewards import Implicit
from irlhf.worlds.text.batch import layout, parts, text_batch
from irlhf.worlds.text.encoding import Completion, Prompt
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from tests.worlds.text import tiny

PROMPTS = ["a", "b c", "c c a b"]


def ragged(seed: int = 0, vocabulary: int = 4):
    """Items of 0 to 6 tokens at prompts of 1 to 5, several at each."""
    rng = np.random.default_rng(seed)
    prompts = [Prompt(tuple(rng.integers(0, vocabulary, n).tolist())) for n in (1, 5, 3)]
    length = torch.tensor([3, 0, 6, 1, 2, 4, 5])
    token = torch.from_numpy(rng.integers(0, vocabulary, int(length.sum())))
    return text_batch(prompts, torch.tensor([0, 1, 0, 2, 1, 1, 0]), token, length)


def by_hand(model, batch, k):
    """Log-probabilities of item k by one plain forward pass over its tokens alone."""
    prompt = list(batch.contexts[int(batch.context[k])].tokens)
    own = batch.token[batch.item == k].tolist()
    if not own:
        return torch.empty(0, dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + own])).logits[0].log_softmax(-1)
    return logits[torch.arange(len(prompt) - 1, len(prompt) + len(own) - 1), own]


@pytest.mark.parametrize("model", [tiny.llama(), tiny.gpt2()], ids=["llama", "gpt2"])
@pytest.mark.parametrize("row", [768, 8])
def test_log_prob_is_that_of_a_plain_pass(model, row, monkeypatch):
    monkeypatch.setattr("irlhf.worlds.text.model.layout", lambda b, shared=True: layout(b, shared=shared, row=row))
    language, batch = LanguageModel(model), ragged()
    assert language.shared
    expected = torch.cat([by_hand(model, batch, k) for k in range(batch.n_items)])
    torch.testing.assert_close(TextPolicy(language).log_prob(batch), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [tiny.llama(), tiny.gpt2()], ids=["llama", "gpt2"])
def test_prompts_that_fit_share_a_row_and_see_nothing_of_one_another(model):
    rng = np.random.default_rng(1)
    prompts = [Prompt(tuple(rng.integers(0, 4, n).tolist())) for n in (9, 2, 3, 1)]
    length = torch.tensor([5, 4, 2, 2, 0])
    batch = text_batch(prompts, torch.tensor([0, 1, 2, 3, 3]), torch.from_numpy(rng.integers(0, 4, 13)), length)
    where = layout(batch)
    assert where.tokens.shape == (2, 14) and where.attend is not None and layout(batch, shared=False).attend is None
    language = LanguageModel(model)
    expected = torch.cat([by_hand(model, batch, k) for k in range(batch.n_items)])
    torch.testing.assert_close(TextPolicy(language).log_prob(batch), expected, rtol=0, atol=1e-12)


def test_rows_are_as_wide_as_costs_least():
    def rows(*sizes):
        prompts = [Prompt((k,)) for k in range(len(sizes))]
        length = torch.tensor(sizes) - 1
        return layout(text_batch(prompts, torch.arange(len(sizes)), torch.zeros(int(length.sum()), dtype=int), length))

    assert rows(200, 120, 120, 60).tokens.shape == (2, 260)  # 520 for 500 tokens; rows of 200 would be 600 in three
    alike = rows(*[100] * 8)
    assert alike.tokens.shape == (8, 100) and alike.attend is None  # nothing is saved by a mask
    assert rows(500, 100, 100).tokens.shape == (2, 500)


def test_a_model_with_a_sliding_window_gets_a_row_for_each_item():
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(
        vocab_size=4, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=3, initializer_range=0.5, pad_token_id=None,
    )).double()  # fmt: skip
    language, batch = LanguageModel(model), ragged()
    assert not language.shared
    expected = torch.cat([by_hand(model, batch, k) for k in range(batch.n_items)])
    torch.testing.assert_close(TextPolicy(language).log_prob(batch), expected, rtol=0, atol=1e-12)


def test_what_is_read_together_changes_nothing():
    """Values and gradients of a batch are those of its items, whatever else stands in the batch."""
    language, batch = LanguageModel(tiny.llama()), ragged()
    language.add_adapter("reward", rank=2, key=Key(1))
    reward = ScoreReward(language, "reward")
    with torch.no_grad():
        for p in reward.parameters():
            p.add_(0.1)
    whole = torch.autograd.grad(reward(batch).sum(), list(reward.parameters()))
    each = [torch.autograd.grad(reward(batch.take(torch.tensor([k]))).sum(), list(reward.parameters()))
            for k in range(batch.n_items)]  # fmt: skip
    for together, *alone in zip(whole, *each, strict=True):
        torch.testing.assert_close(together, sum(alone), rtol=0, atol=1e-12)
    with torch.no_grad():
        alone = torch.cat([reward(batch.take(torch.tensor([k]))) for k in range(batch.n_items)])
        torch.testing.assert_close(reward(batch), alone, rtol=0, atol=1e-12)


def test_parts_hold_every_item_once():
    batch = ragged()
    for tokens in (1, 9, 20, 10_000):
        found = torch.cat(parts(batch, tokens))
        assert sorted(found.tolist()) == list(range(batch.n_items))


def test_all_completions_have_probability_one():
    for cap in (1, 2, 3):
        world, _ = tiny.world(cap)
        every = world.every(PROMPTS)
        assert bool(world.whole(every.batch).all())
        total = torch.zeros(3, dtype=torch.float64).index_add(0, every.request, world.log_base(every.batch).exp())
        torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_texts_become_tokens_with_one_end():
    world, _ = tiny.world()
    batch = world.collate(["a", "a"], ["b c", Completion((1, 1, 2), ended=False)])
    assert batch.token.tolist() == [1, 2, 3, 1, 1, 2] and batch.item.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.contexts == [Prompt((0,))] and world.whole(batch).tolist() == [True, True]
    with pytest.raises(TrajectoryError, match="max_tokens"):
        world.collate(["a", "a"], ["b", "b b b"])


def test_a_text_that_has_not_ended_is_whole_only_at_the_cap():
    world, _ = tiny.world()
    batch = text_batch([Prompt((0,))], torch.zeros(4, dtype=torch.int64), torch.tensor([1, 1, 3, 3, 1, 1, 1, 1]),
                       torch.tensor([1, 2, 2, 3]))  # fmt: skip
    assert world.whole(batch).tolist() == [False, True, False, True]


def truth(language, seed=3):
    """A reward that knows something of texts: a random linear function of what the model sees."""
    reward = LinearReward(language)
    with torch.no_grad():
        reward.theta.copy_(torch.randn(16, generator=Key(seed).torch()).double() * 0.5)
    return reward


def drawn(world, reward, prompts, n, seed=5):
    """Demonstrations from P itself, by listing."""
    every = world.every(prompts)
    solved = world.solve(reward, prompts)
    p = solved.log_prob(every.batch).detach().exp().reshape(len(prompts), -1).numpy()
    rng = np.random.default_rng(seed)
    completions = every.batch.completions(world.encoder.end)
    size = p.shape[1]
    chosen = [(x, k) for x in range(len(prompts)) for k in rng.choice(size, n, p=p[x] / p[x].sum())]
    return demonstrations([prompts[x] for x, _ in chosen], [completions[x * size + k] for x, k in chosen])


def test_log_z_by_sampling_is_that_of_listing():
    world, language = tiny.world()
    reward = truth(language)
    best = world.best(reward, PROMPTS).detach()
    table = estimate_log_z(reward, world, PROMPTS, world.base_policy(), n=1000)
    error = (torch.from_numpy(table["log_z"].to_numpy().copy()) - best).abs()
    assert (error.numpy() < 5 * table["standard_error"].to_numpy()).all()
    assert set(table["verdict"]) == {"reliable"}


def test_sampled_demonstrations_find_the_exact_fit():
    """The same maximum but for the luck of the rivals, from each proposal; with the offset left out, another one."""
    world, language = tiny.world()
    data = drawn(world, truth(language), PROMPTS, 40)
    prior = Normal(sd=1.0)
    best = fit_reward(LinearReward(language), Term(data, exact(world)), prior=prior)
    value = Objective(LinearReward(language), [Term(data, exact(world))], prior=prior).value
    top = float(value(best.theta))
    away = float(value(torch.zeros(16, dtype=torch.float64)))
    language.add_adapter("other", rank=4, key=Key(2))
    policy = TextPolicy(language, "other")
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=Key(9).torch(), dtype=p.dtype) * 0.2)
    for proposal in (Base(), FromPolicy(policy), Mixture(Base(), FromPolicy(policy))):
        term = Term(data, sampled(world, proposal, n=24))
        fit = fit_reward(LinearReward(language), term, prior=prior)
        assert top - float(value(fit.theta)) < 0.1 * (top - away), type(proposal).__name__


def test_a_pool_needs_no_base():
    """Rivals from P_pool: what is learned is relative to them, and no language model is asked for probabilities."""
    world, language = tiny.world()
    world.base = None
    data = drawn(world, truth(language), ["a"], 200)
    unlabeled = drawn(world, LinearReward(language), ["a"], 400, seed=8)
    term = Term(data, sampled(world, Pool(list(unlabeled.trajectories), ["a"] * 400), n=8))
    fit = fit_reward(LinearReward(language), term, prior=Normal(sd=1.0))
    every = world.every(["a"]).batch
    with torch.no_grad():
        found, real = fit.reward(every), truth(language)(every)
    assert np.corrcoef(found, real)[0, 1] > 0.8
    with pytest.raises(ConfigError, match="no base model"):
        Term(data, sampled(world, n=8))


def test_implicit_rewards_are_cloning_and_dpo():
    """The same fit_reward: a demonstration's likelihood is sum log pi, a pair's the DPO loss with beta = T / T_s."""
    world, language = tiny.world()
    language.add_adapter("policy", rank=2, key=Key(1))
    policy = TextPolicy(language, "policy")
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn(p.shape, generator=Key(4).torch(), dtype=p.dtype) * 0.3)
    implicit = Implicit(policy, world)
    data = demonstrations(["a", "b c"], ["b c", "a"])
    term = Term(data, exact(world))
    batch = world.collate(["a", "b c"], ["b c", "a"])
    with torch.no_grad():
        torch.testing.assert_close(term.log_prob(implicit), batch.sum(policy.log_prob(batch)), rtol=0, atol=1e-12)
    pairs = comparisons(["a", "b c"], ["b c", "a"], ["c", "b"], [0, 1])
    implicit = Implicit(policy, world, temperature=0.5)
    term = Term(pairs, listed(world), Source(temperature=2.0))
    both = world.collate(["a", "a", "b c", "b c"], ["b c", "c", "b", "a"])  # the preferred one first
    with torch.no_grad():
        ratio = batch_sum(both, policy.log_prob(both) - world.log_base_step(both))
        dpo = torch.nn.functional.logsigmoid(0.5 / 2.0 * (ratio[0::2] - ratio[1::2]))
        torch.testing.assert_close(term.log_prob(implicit), dpo, rtol=0, atol=1e-12)


def batch_sum(batch, steps):
    return batch.sum(steps, discounted=False)


def test_all_kinds_of_feedback_in_one_fit():
    world, language = tiny.world()
    reward = truth(language)
    terms = [
        Term(drawn(world, reward, PROMPTS, 30), sampled(world, Base(), n=8)),
        Term(comparisons(["a", "a"], ["b", "c"], ["c c", "b b"], [0, 1]), listed(world), Source(fit_temperature=True)),
        Term(ratings(["a", "a"], ["b", "c"], [0, 1]), listed(world), Source(temperature=2.0)),
    ]
    fit = fit_reward(LinearReward(language), terms, prior=Normal(sd=1.0))
    assert np.isfinite(fit.params).all() and len(fit.params) == 16 + 2
    objective = Objective(LinearReward(language), terms, prior=Normal(sd=1.0))
    _, gradient = objective.value_and_gradient(fit.theta)
    assert float(gradient.abs().max()) < 1e-4


def test_a_policy_learns_the_reward():
    """RLOO on an adapter gets most of the way from mu to P, and log w of its draws becomes nearly constant."""
    world, language = tiny.world(2)
    reward = truth(language)
    language.add_adapter("policy", rank=8, key=Key(1))
    policy = TextPolicy(language, "policy")
    start = world.best(reward, PROMPTS).detach() - world.attained(policy, reward, PROMPTS)
    fit = fit_policy(policy, reward, world, PROMPTS, learner=rloo(16, rate=0.03, max_steps=60))
    gap = torch.from_numpy(fit.gap().to_numpy().copy())
    assert float(start.mean()) > 0.2
    assert float(gap.mean()) < 0.25 * float(start.mean())
    assert fit.trace["effective_share"].iloc[-5:].mean() > fit.trace["effective_share"].iloc[1:6].mean()


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_gradient_accumulation_changes_nothing(at_once):
    def run(**how):
        world, language = tiny.world(2)
        language.add_adapter("policy", rank=2, key=Key(1))
        policy = TextPolicy(language, "policy")
        fit_policy(policy, truth(language), world, PROMPTS, learner=rloo(4, rate=0.02, max_steps=3), **how)
        return torch.cat([p.detach().reshape(-1) for p in policy.parameters()])

    torch.testing.assert_close(run(at_once=at_once), run(), rtol=0, atol=1e-12)


def test_lbfgs_and_a_trained_adapter_share_one_model():
    """A reward and a policy on one base do not disturb each other, nor the base."""
    world, language = tiny.world(2)
    before = world.log_base(world.every(["a"]).batch)
    language.add_adapter("reward", rank=2, key=Key(1))
    language.add_adapter("policy", rank=2, key=Key(2))
    reward, policy = ScoreReward(language, "reward"), TextPolicy(language, "policy")
    pairs = comparisons(["a"] * 3, ["b", "c", "b"], ["c", "b", "a"], [0, 1, 0])
    fit_reward(reward, Term(pairs, listed(world)), prior=Normal(sd=0.5), optimizer=LBFGS(max_steps=5, newton=0))
    learned = reward(world.collate(["a"], ["b"])).detach().clone()
    fit_policy(policy, reward, world, ["a"], learner=rloo(4, rate=0.05, max_steps=2))
    torch.testing.assert_close(reward(world.collate(["a"], ["b"])).detach(), learned, rtol=0, atol=0)
    world._log_base.clear()
    torch.testing.assert_close(world.log_base(world.every(["a"]).batch), before, rtol=0, atol=0)


def test_an_adapter_of_some_layers():
    _, language = tiny.world()
    language.add_adapter("first", rank=2)
    some = language.add_adapter("second", rank=2, layers=[1])
    assert len(some) == 7 and all("layers-1-" in path for path in some)


@pytest.mark.long
def test_reward_and_policy_together():
    """Rivals from the policy that is learned, half and half with mu: near the exact fit, from 8 rivals a row."""
    world, language = tiny.world(2)
    data = drawn(world, truth(language), PROMPTS, 100)
    prior = Normal(sd=1.0)
    best = fit_reward(LinearReward(language), Term(data, exact(world)), prior=prior)
    language.add_adapter("policy", rank=8, key=Key(1))
    policy = TextPolicy(language, "policy")
    how = {"learner": rloo(8, rate=0.03), "rounds": 16, "policy_steps": 2, "prior": prior}
    fit, learned = fit_jointly(LinearReward(language), policy, Term(data, sampled(world, n=8)), world, **how)
    every = world.every(PROMPTS).batch
    with torch.no_grad():
        right, found = (world.solve(f.reward, PROMPTS).log_prob(every).exp() for f in (best, fit))
        start = world.log_base(every).exp()
    assert float((right - found).abs().sum()) < 0.1 * float((right - start).abs().sum())
    assert float(learned.gap().max()) < 0.05

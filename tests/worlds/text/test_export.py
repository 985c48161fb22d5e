"""Rewards in files: saved and loaded, opened by PEFT, and exported as classification models that score the same."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
)

from irlhf import Ensemble, Key
from irlhf.errors import CheckpointError, ConfigError
from irlhf.worlds.text import export
from irlhf.worlds.text.encoding import Encoder, Message
from irlhf.worlds.text.export import as_reward_function, export_reward
from irlhf.worlds.text.load import load_model
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.rewards import LinearReward, ScoreReward
from irlhf.worlds.text.saving import FILE, load_reward, save_reward
from irlhf.worlds.text.sentences import SentenceModel, load_sentence_model
from irlhf.worlds.text.world import TextWorld
from tests.worlds.text import tiny
from tests.worlds.text.test_rewards import END, ITEMS, batch_of, bert, moved, scored

CHAT = (
    "{% for m in messages %}{{ m.role + ' ' + m.content + ' <end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def saved_model(folder, *, seed=0, **config):
    """A model in a folder, as people have them."""
    tiny.llama(seed=seed, dtype=torch.float32, **config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return saved_model(tmp_path / "base")


def read(folder, **how):
    return LanguageModel(*load_model(folder, dtype=torch.float32), name=str(folder), **how)


def with_adapter(language, name="reward", **how):
    language.add_adapter(name, rank=2, alpha=3.0, key=Key(1), **how)
    moved(language.adapter(name))
    return language


def kinds(language):
    """One of each, on one model."""
    with_adapter(language, targets=["q_proj", "down_proj"], layers=[0])
    linear = moved(LinearReward(language, depth=1, end=END))
    linear.standardize(batch_of(*ITEMS))
    return {
        "linear": linear,
        "linear on an adapter": moved(LinearReward(language, adapter="reward")),
        "head": ScoreReward(language, depth=1, key=Key(3)),
        "adapter": ScoreReward(language, "reward", key=Key(3)),
    }


KINDS = ["linear", "linear on an adapter", "head", "adapter"]

# ------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reward_comes_back(kind, folder, tmp_path):
    """On the model that it names, and on the same one in other hands; to the bit."""
    reward = kinds(read(folder))[kind]
    save_reward(reward, tmp_path / "saved")
    expected = scored(reward)
    for again in (load_reward(tmp_path / "saved"), load_reward(tmp_path / "saved", read(folder))):
        assert type(again) is type(reward) and again.depth == reward.depth
        assert torch.equal(scored(again), expected)
    shared = read(folder)
    shared.add_adapter("reward", rank=4)  # a name that is taken
    if reward.adapter is None:
        assert torch.equal(scored(load_reward(tmp_path / "saved", shared)), expected)
    else:
        with pytest.raises(ConfigError, match="an adapter 'reward' already"):
            load_reward(tmp_path / "saved", shared)
        again = load_reward(tmp_path / "saved", shared, adapter="other")
        torch.testing.assert_close(scored(again), expected)
        assert again.adapter == "other"


def test_a_whole_model_is_saved_with_its_reward(folder, tmp_path):
    reward = moved(ScoreReward(read(folder), whole=True), size=0.1)
    save_reward(reward, tmp_path / "saved")
    assert torch.equal(scored(load_reward(tmp_path / "saved")), scored(reward))
    fresh = read(folder)
    load_reward(tmp_path / "saved", fresh)
    assert torch.equal(scored(ScoreReward(fresh, key=Key(0))), scored(ScoreReward(reward.model, key=Key(0))))


def test_an_encoder_reward_comes_back(tmp_path):
    sentence = bert("cls")
    reward = moved(LinearReward(sentence))
    save_reward(reward, tmp_path / "saved")
    assert torch.equal(scored(load_reward(tmp_path / "saved", bert("cls"))), scored(reward))
    for other in (bert("mean"), bert("cls", seed=1)):
        with pytest.raises(CheckpointError, match="stands on BertModel"):
            load_reward(tmp_path / "saved", other)
    with pytest.raises(ConfigError, match="a model without a folder, BertModel; give it"):
        load_reward(tmp_path / "saved")
    sentence.model.float().save_pretrained(tmp_path / "bert")
    sentence.tokenizer.save_pretrained(tmp_path / "bert")
    reward = moved(LinearReward(load_sentence_model(tmp_path / "bert", sentence.text)))
    save_reward(reward, tmp_path / "saved")
    assert torch.equal(scored(load_reward(tmp_path / "saved", text=sentence.text)), scored(reward))
    with pytest.raises(ConfigError, match=r"give text=encoder\.text"):
        load_reward(tmp_path / "saved")


def test_another_base_is_refused_and_both_are_named(folder, tmp_path):
    save_reward(LinearReward(read(folder)), tmp_path / "saved")
    other = read(saved_model(tmp_path / "other", seed=1))
    from irlhf.worlds.text.load import identify

    with pytest.raises(CheckpointError) as refused:
        load_reward(tmp_path / "saved", other)
    assert all(identify(where).sha256 in str(refused.value) for where in (folder, tmp_path / "other"))
    shorter = LanguageModel(*load_model(folder, dtype=torch.float32, layers=1), name=str(folder))
    with pytest.raises(CheckpointError, match=r"2 layers.*the model given.*1 layers"):
        load_reward(tmp_path / "saved", shorter)


def test_layers_that_were_left_out_at_loading_are_left_out_again(folder, tmp_path):
    reward = moved(LinearReward(LanguageModel(*load_model(folder, dtype=torch.float32, layers=1), name=str(folder))))
    save_reward(reward, tmp_path / "saved")
    assert torch.equal(scored(load_reward(tmp_path / "saved")), scored(reward))


def test_a_model_in_memory_is_known_by_its_tensors(tmp_path):
    """Whatever adapters stand beside them."""
    reward = moved(LinearReward(with_adapter(LanguageModel(tiny.llama()))))
    save_reward(reward, tmp_path / "saved")
    assert torch.equal(scored(load_reward(tmp_path / "saved", LanguageModel(tiny.llama()))), scored(reward))
    with pytest.raises(CheckpointError, match="of its tensors"):
        load_reward(tmp_path / "saved", LanguageModel(tiny.llama(seed=1)))


def test_what_is_not_a_whole_reward_is_refused(folder, tmp_path):
    reward = moved(LinearReward(read(folder)))
    save_reward(reward, tmp_path / "saved")
    file = tmp_path / "saved" / FILE
    whole = file.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=FILE):
            load_reward(tmp_path / "saved")
    from safetensors.torch import save_file

    save_file({"theta": torch.zeros(16)}, file)
    with pytest.raises(CheckpointError, match="not a reward that this version can read: format: Field required"):
        load_reward(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_reward(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="the members of an Ensemble one by one"):
        save_reward(Ensemble([reward]), tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.")  # PEFT's own use of transformers
@pytest.mark.parametrize("kind", ["linear on an adapter", "adapter"])
def test_peft_opens_an_adapter_and_scores_the_same(kind, folder, tmp_path):
    from peft import PeftModel

    reward = kinds(read(folder))[kind]
    save_reward(reward, tmp_path / "saved")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "saved")
    base.config.pad_token_id = 0
    torch.testing.assert_close(by_transformers(model, pad=0), scored(reward).float(), rtol=0, atol=1e-5)
    save_reward(LinearReward(read(folder)), tmp_path / "saved")  # without one: nothing of the old adapter stays
    assert [file.name for file in (tmp_path / "saved").iterdir()] == [FILE]


# ------------------------------------------------------------------------------------------------------------ exports


def by_transformers(model, *, pad, side="right"):
    """Scores of a padded batch, as transformers gives them. The pad must be no last token of an item."""
    rows = [[*prompt, *own] for prompt, own in ITEMS]
    width = max(map(len, rows)) + 2
    tokens, real = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.int64)
    for k, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[k, where], real[k, where] = torch.tensor(row), 1
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=real).logits[:, 0]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT's, on the layers of GPT-2
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "llama with tied words", "gpt2"])
def test_an_exported_reward_scores_the_same(family, kind, tmp_path):
    """Loaded by transformers in single precision, for the same tokens, padded on either side."""
    model = {"llama": tiny.llama, "llama with tied words": lambda: tiny.llama(tie_word_embeddings=True),
             "gpt2": tiny.gpt2}[family]()  # fmt: skip
    language = LanguageModel(model, tiny.tokenizer())
    if family == "gpt2":
        with_adapter(language)
        made = {"linear": moved(LinearReward(language)), "head": ScoreReward(language),
                "linear on an adapter": moved(LinearReward(language, adapter="reward")),
                "adapter": ScoreReward(language, "reward")}  # fmt: skip
    else:
        made = kinds(language)
    reward = made[kind]
    export_reward(reward, tmp_path / "exported")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    assert loaded.dtype == torch.float32 and loaded.config.num_labels == 1
    assert loaded.config.num_hidden_layers == (reward.depth or 2)
    pad = loaded.config.pad_token_id
    for side in ("right",) if family == "gpt2" else ("right", "left"):  # GPT-2 counts places from the left
        found = by_transformers(loaded, side=side, pad=pad)
        torch.testing.assert_close(found.double(), scored(reward).double(), rtol=1e-5, atol=1e-5)
    assert {file.suffix for file in (tmp_path / "exported").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_the_pad_of_an_export_is_no_token_of_a_text(tmp_path):
    """A tokenizer that pads with its end token gets a new one, or the end would be taken for padding."""
    for name, tokenizer, same in (
        ("none", tiny.tokenizer(), False),
        ("end", tiny.tokenizer(pad_token="<end>"), False),
        ("own", tiny.tokenizer(("a", "b", "<pad>"), pad_token="<pad>"), True),
    ):
        reward = ScoreReward(LanguageModel(tiny.llama(dtype=torch.float32), tokenizer))
        export_reward(reward, tmp_path / name)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        own = AutoTokenizer.from_pretrained(tmp_path / name)
        assert own.pad_token_id == loaded.config.pad_token_id == (2 if same else 4)
        assert loaded.get_input_embeddings().num_embeddings == (4 if same else 5)
        texts = ["a b b <end>", "b <end>", "b"]
        seen = own(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            found = loaded(**seen).logits[:, 0]
        torch.testing.assert_close(found, scored(reward, [([0], [1, 1, END]), ([1], [END]), ([1], [])]))
        assert tokenizer.pad_token_id in (None, END, 2)  # the one given is not changed


def test_a_reward_that_does_not_read_the_end_passes_over_it_in_an_export(tmp_path):
    """Then the end token is the pad, and a text scores the same with it and without."""
    reward = ScoreReward(LanguageModel(tiny.llama(dtype=torch.float32), tiny.tokenizer()), end=END)
    export_reward(reward, tmp_path / "exported")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    assert loaded.config.pad_token_id == END and loaded.config.vocab_size == 4
    torch.testing.assert_close(by_transformers(loaded, pad=END), scored(reward))
    torch.testing.assert_close(scored(reward)[0], scored(reward)[1])


def test_the_chat_template_of_an_export_ends_at_the_end_token(tmp_path):
    """A reward is read there; what a template puts behind would be read instead. Open prompts stay as they are."""
    tokenizer = tiny.tokenizer(("user", "assistant", "a", "b"))
    tokenizer.chat_template = CHAT
    language = LanguageModel(tiny.llama(5), tokenizer)
    export_reward(ScoreReward(language), tmp_path / "exported")
    own = AutoTokenizer.from_pretrained(tmp_path / "exported")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "user a <end>\nassistant b <end>\n"
    assert own.apply_chat_template(turns, tokenize=False) == "user a <end>\nassistant b <end>"
    opened = [tk.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True) for tk in (tokenizer, own)]
    assert opened[0] == opened[1] == "user a <end>\nassistant "


@pytest.mark.parametrize("trained", ["linear", "whole"])
def test_an_encoder_that_reads_its_first_token_is_exported(trained, tmp_path):
    sentence = bert("cls")
    reward = (
        moved(LinearReward(sentence)) if trained == "linear" else moved(ScoreReward(sentence, whole=True), size=0.1)
    )
    export_reward(reward, tmp_path / "exported")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    own = AutoTokenizer.from_pretrained(tmp_path / "exported")
    texts = ["a b c b", "a b c b", "a b", "c a a a b c", "c c c c"]
    with torch.no_grad():
        found = loaded.eval()(**own(texts, padding=True, return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(found.double(), scored(reward), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    language = LanguageModel(tiny.llama(), tiny.tokenizer())
    reward = ScoreReward(language)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="exists already"):
        export_reward(reward, tmp_path / "full")
    with pytest.raises(ConfigError, match="came without a tokenizer"):
        export_reward(ScoreReward(LanguageModel(tiny.llama())), tmp_path / "a")
    with pytest.raises(ConfigError, match="read as a mean over tokens"):
        export_reward(ScoreReward(bert("mean")), tmp_path / "a")
    with pytest.raises(ConfigError, match="a Ensemble cannot be exported"):
        export_reward(Ensemble([reward]), tmp_path / "a")
    tops = DistilBertModel(DistilBertConfig(vocab_size=7, dim=16, n_layers=1, n_heads=2, hidden_dim=24)).double()
    other = SentenceModel(tops, bert().tokenizer, Encoder(tiny.tokenizer(), max_tokens=7).text, pool="cls")
    with pytest.raises(ConfigError, match=r"layers of its own on top.*pre_classifier"):
        export_reward(ScoreReward(other), tmp_path / "a")
    # A model that scores otherwise when it is loaded is never given its name.
    score_weight = export.score_weight
    monkeypatch.setattr(export, "score_weight", lambda reward: 2 * score_weight(reward))
    with pytest.raises(ConfigError, match="gives other scores"):
        export_reward(reward, tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_reward_function_reads_the_tokens_that_were_drawn():
    world, language = tiny.world(4)
    reward = moved(LinearReward(language))
    function = as_reward_function(reward, world)
    ids = [[2, 1, END], [2, 1], [END]]
    found = function(prompts=["a b", "a b", "c"], completions=["c b", "c b", ""], completion_ids=ids, step=3)
    expected = scored(reward, [([0, 1], ids[0]), ([0, 1], ids[1]), ([2], ids[2])])
    assert found == expected.tolist() and function.__name__ == "LinearReward"
    assert found[0] != found[1]  # the same text, but one has ended


def test_a_reward_function_takes_conversations():
    tokenizer = tiny.tokenizer(("user", "assistant", "a", "b"))
    tokenizer.chat_template = CHAT
    world = TextWorld(Encoder(tokenizer, max_tokens=4))
    reward = moved(LinearReward(LanguageModel(tiny.llama(5))))
    turns = [{"role": "user", "content": "a"}]
    answer = [{"role": "assistant", "content": "b"}]
    found = as_reward_function(reward, world)(prompts=[turns], completions=[answer], completion_ids=[[3, 4]])
    batch = world.collate([(Message("user", "a"),)], [(Message("assistant", "b"),)])
    with torch.no_grad():
        assert found == pytest.approx(reward(batch).tolist())

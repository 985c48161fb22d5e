"""Language models and tokenizers of a few words, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from irlhf.worlds.text.encoding import Encoder
from irlhf.worlds.text.model import LanguageModel
from irlhf.worlds.text.policies import TextPolicy
from irlhf.worlds.text.world import TextWorld

WORDS = ("a", "b", "c")


def tokenizer(words: tuple[str, ...] = WORDS, **special: str) -> PreTrainedTokenizerFast:
    """One token for each word, and the end token, the last."""
    vocabulary = {word: k for k, word in enumerate((*words, "<end>"))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", **special)


def llama(vocabulary: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = {
            "vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
            "pad_token_id": None, "bos_token_id": None, "eos_token_id": vocabulary - 1,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**given | config)).to(dtype)


def gpt2(vocabulary: int = 4, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5,
            bos_token_id=None, eos_token_id=vocabulary - 1,
        )  # fmt: skip
        return GPT2LMHeadModel(config).to(dtype)


def world(cap: int = 3, **model: Any) -> tuple[TextWorld, LanguageModel]:
    """Three words and an end, texts of at most ``cap`` tokens: 13 + 27 of them at the cap of 3."""
    language = LanguageModel(llama(**model), tokenizer())
    return TextWorld(Encoder(language.tokenizer, max_tokens=cap), TextPolicy(language)), language

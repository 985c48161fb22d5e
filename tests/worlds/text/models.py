"""Tiny language models with random weights, and what they say by whole forward passes."""

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.model import LanguageModel

END = 0
PROMPTS = [Prompt((3,)), Prompt((1, 2, 3, 4, 2)), Prompt((2, 2)), Prompt((4, 1, 1))]


def llama(vocabulary=11, *, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    settings = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64}
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=40, num_hidden_layers=2, initializer_range=0.6,
        **settings | options,
    )  # fmt: skip
    return _shaken(LlamaForCausalLM(config).to(dtype))


def qwen(vocabulary=11, *, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.6, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return _shaken(Qwen2ForCausalLM(config).to(dtype))


def gpt2(vocabulary=11):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=24, n_layer=2, n_head=3, n_positions=32, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


def mamba(vocabulary=11):
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=vocabulary, hidden_size=16, state_size=4, num_hidden_layers=2, use_cache=False, eos_token_id=0
    )
    return MambaForCausalLM(config).double().eval()


def _shaken(model):
    """The same, but no bias is 0 and no norm is 1; float64 is double precision throughout."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return LanguageModel(model).model.requires_grad_(True)


def items(prompts, n, found):
    """(prompt, tokens, log-probabilities) of each item."""
    owners = np.repeat(np.arange(len(prompts)), n)
    split = found.length.tolist()
    return list(zip(owners, found.token.split(split), found.log_prob.split(split), strict=True))


@torch.no_grad()
def by_hand(model, prompt, tokens):
    """log p(token | all before it), a whole forward pass for each."""
    text, found = list(prompt.tokens), []
    for token in tokens.tolist():
        logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        found.append(logits.double().log_softmax(-1)[token])
        text.append(token)
    return torch.stack(found)

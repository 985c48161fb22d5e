"""A fast decoder for models of Llama's shape: Llama and Qwen2 of ``transformers``, adapters of LoRA included.

The arithmetic is that of the model's own forward pass, so greedy decoding gives the same tokens. What makes it fast:

* a prompt is read once, and its keys and values are kept once, for all of its completions: the queries of all rows of
  a prompt meet them in one matrix product (Juravsky et al. 2024, "Hydragen", section 3.2);
* a row that has ended leaves, and a row from the back takes its place;
* weights are laid side by side where they see the same input, and adapters are merged where that loses nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irlhf.errors import ConfigError

SHAPES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
ROPES = ("default", "linear", "llama3", "yarn")  # the others change with the length of the text
STEPS = 64  # room for so many tokens at first


def supports(model: Any) -> bool:
    """Does :class:`Llama` know this model, whatever adapter is active?"""
    known = type(model).__module__.startswith("transformers.") and type(model).__name__ in SHAPES
    if not known or model.config.rope_parameters.get("rope_type", "default") not in ROPES:
        return False
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
    if any(kind != "full_attention" for kind in kinds) or type(model.model.embed_tokens) is not nn.Embedding:
        return False
    linear = [m for layer in model.model.layers for part in (layer.self_attn, layer.mlp) for m in part.children()]
    return all(_is_linear(m) for m in [*linear, model.lm_head] if not _is_activation(m))


class Linear(NamedTuple):
    """``x W' + b``; where adapters are kept apart, the weight is ``[W, up]`` and reads ``[x, x down']``."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        x = x if self.down is None else torch.cat([x, F.linear(x, self.down)], -1)
        return F.linear(x, self.weight, self.bias)


class Layer(NamedTuple):
    """What one layer computes with."""

    norm: Tensor
    query_key_value: Linear
    out: Linear
    norm_after: Tensor
    gate_up: Linear
    down: Linear
    act: Any


def _layer(layer: Any) -> Layer:
    a, m = layer.self_attn, layer.mlp
    return Layer(
        layer.input_layernorm.weight,
        joined(a.q_proj, a.k_proj, a.v_proj),
        joined(a.o_proj),
        layer.post_attention_layernorm.weight,
        joined(m.gate_proj, m.up_proj),
        joined(m.down_proj),
        m.act_fn,
    )


class Llama:
    """The decoder of one call of a sampler: it holds the weights as they were when it was made.

    Args:
        model: with the adapters that are to draw active.

    Raises:
        ConfigError: an adapter of a kind that cannot be read.
    """

    def __init__(self, model: Any):
        config = model.config
        self.rotary, self.eps = model.model.rotary_emb, config.rms_norm_eps
        self.embedding = model.model.embed_tokens.weight
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.layers = [_layer(layer) for layer in model.model.layers]
        self.norm, self.head = model.model.norm.weight, joined(model.lm_head)

    # --------------------------------------------------------------------------------------------------- prompts

    def start(self, prompts: list[tuple[int, ...]], n: list[int], max_tokens: int) -> Tensor:
        device = self.embedding.device
        size = torch.tensor([len(p) for p in prompts], device=device)
        groups, longest = len(prompts), int(size.max())
        self.sizes, self.longest, self.max_tokens, self.done = size, longest, max_tokens, 0
        self._turns(longest + max_tokens)
        # The tokens lie end to end; padded, on the right, only where queries meet keys: what is real never looks there.
        real = torch.arange(longest, device=device) < size[:, None]
        place = real.flatten().nonzero()[:, 0]

        def padded(part: Tensor) -> Tensor:
            room = part.new_zeros(groups * longest, *part.shape[1:]).index_copy_(0, place, part)
            return room.view(groups, longest, -1, self.size).transpose(1, 2)

        turn = self._turn(place % longest)
        x = F.embedding(torch.tensor([t for p in prompts for t in p], device=device), self.embedding)
        self.keys, self.values = [], []  # of the prompts, for each layer: [groups * kv, longest, size]
        for layer in self.layers:
            query, key, value = map(padded, self._query_key_value(layer, x, turn))
            self.keys.append(key.reshape(groups * self.kv, longest, self.size))
            self.values.append(value.reshape(groups * self.kv, longest, self.size))
            key, value = (part.repeat_interleave(self.heads // self.kv, 1) for part in (key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = self._rest(layer, x, mixed.transpose(1, 2).reshape(groups * longest, -1)[place])
        self.padding = x.new_zeros(groups, longest).masked_fill_(~real, -torch.inf)
        room = (sum(n), self.kv, min(STEPS, max_tokens), self.size)
        self.own = [[x.new_empty(room), x.new_empty(room)] for _ in self.layers]  # keys and values of the rows' tokens
        self._grid(torch.repeat_interleave(torch.tensor(n, device=device)))
        return self._logits(x[size.cumsum(0) - 1])[self.group]

    def _turns(self, length: int) -> None:
        """The rotations of all positions, [positions, 1, size], the sines with the signs of `rotate_half`."""
        at = torch.arange(length, device=self.embedding.device)[None]
        cos, sin = self.rotary(torch.empty(0, dtype=self.embedding.dtype, device=at.device), at)
        half = torch.ones(self.size, dtype=self.embedding.dtype, device=at.device)
        half[: self.size // 2] = -1
        self.cos, self.sin = cos[0, :, None], sin[0, :, None] * half

    def _turn(self, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[position], self.sin[position]

    def _grid(self, group: Tensor) -> None:
        """Where the queries of each row go so that those of a prompt lie side by side: [groups, kv, width]."""
        count = torch.bincount(group, minlength=len(self.sizes))
        if not count.all():  # nobody reads these prompts any more
            alive = count.nonzero()[:, 0]
            self.sizes, self.padding, count = self.sizes[alive], self.padding[alive], count[alive]
            at = (alive[:, None] * self.kv + torch.arange(self.kv, device=alive.device)).flatten()
            self.keys, self.values = [k[at] for k in self.keys], [v[at] for v in self.values]
            group = torch.searchsorted(alive, group)
        self.group, self.width = group, int(count.max())
        order = torch.argsort(group, stable=True)
        column = torch.empty_like(order)
        column[order] = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group[order]]
        heads = torch.arange(self.kv, device=group.device)
        self.place = ((group[:, None] * self.kv + heads) * self.width + column[:, None]).flatten()
        self.reader = torch.zeros(len(count) * self.kv * self.width, dtype=torch.int64, device=group.device)
        self.reader[self.place] = torch.arange(len(group) * self.kv, device=group.device)
        self.mask = self.padding.repeat_interleave(self.kv, 0)[:, None]

    # ------------------------------------------------------------------------------------------------ completions

    def keep(self, rows: Tensor) -> None:
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        for own in (own for pair in self.own for own in pair if len(moved)):
            own[moved] = own[rows[moved]]
        self.own = [[own[: len(rows)] for own in pair] for pair in self.own]
        self._grid(self.group[rows])

    def step(self, token: Tensor) -> Tensor:
        rows, longest, t = len(token), self.longest, self.done
        shared, scale = self.heads // self.kv, self.size**-0.5
        if t == self.own[0][0].shape[2]:
            more = (0, 0, 0, min(t, self.max_tokens - t))
            self.own = [[F.pad(own, more) for own in pair] for pair in self.own]
        x = F.embedding(token, self.embedding)
        turn, nothing = self._turn(self.sizes[self.group] + t), x.new_zeros(1, 1, 1)
        for layer, keys, values, (own_keys, own_values) in zip(
            self.layers, self.keys, self.values, self.own, strict=True
        ):
            query, own_keys[:, :, t], own_values[:, :, t] = self._query_key_value(layer, x, turn)
            own_key, own_value = own_keys[:, :, : t + 1].flatten(0, 1), own_values[:, :, : t + 1].flatten(0, 1)
            query = query.reshape(rows * self.kv, shared, self.size)
            together = query.index_select(0, self.reader).view(len(keys), -1, self.size)
            of_prompt = torch.baddbmm(self.mask, together, keys.transpose(1, 2), alpha=scale)
            of_prompt = of_prompt.view(-1, shared, longest).index_select(0, self.place)
            of_own = torch.baddbmm(nothing, query, own_key.transpose(1, 2), beta=0, alpha=scale)
            weight = torch.cat([of_prompt, of_own], -1).softmax(-1)
            together = weight[:, :, :longest].index_select(0, self.reader).view(len(keys), -1, longest)
            of_prompt = torch.bmm(together, values).view(-1, shared, self.size).index_select(0, self.place)
            mixed = torch.baddbmm(of_prompt, weight[:, :, longest:], own_value)
            x = self._rest(layer, x, mixed.view(rows, -1))
        self.done += 1
        return self._logits(x)

    # ------------------------------------------------------------------------------------------------------- both

    def _query_key_value(self, layer: Layer, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[tokens, heads of each, size], queries and keys turned."""
        y = layer.query_key_value(self._norm(x, layer.norm)).view(len(x), -1, self.size)
        turning, value = y.split([self.heads + self.kv, self.kv], 1)
        turned = turning * turn[0] + turning.roll(self.size // 2, -1) * turn[1]
        return turned[:, : self.heads], turned[:, self.heads :], value

    def _rest(self, layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + layer.out(mixed)
        gate, up = layer.gate_up(self._norm(x, layer.norm_after)).chunk(2, -1)
        return x + layer.down(layer.act(gate) * up)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return weight * y.to(x.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self._norm(x, self.norm))


def joined(*modules: Any) -> Linear:
    """Modules that see the same input, as one; adapters that are active are in it.

    They are merged in float32 and float64. In half precision the sum would be rounded back to the weight while the
    adapter is small, and what is drawn would come from the model without it. There they stay apart until the sum of
    the products, which is taken in single precision and rounded once.
    """
    bases = [getattr(module, "base_layer", module) for module in modules]
    adapters = [_adapter(module) for module in modules]
    weights, dtype, bias = [base.weight for base in bases], bases[0].weight.dtype, bases[0].bias
    if bias is not None:
        bias = torch.cat([base.bias for base in bases])
    adapted = any(len(down) for down, _ in adapters)
    if adapted and dtype in (torch.float32, torch.float64):
        weights = [w + (up @ down).to(dtype) for w, (down, up) in zip(weights, adapters, strict=True)]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    if not adapted or dtype in (torch.float32, torch.float64):
        return Linear(weight, bias, None)
    down, up = torch.cat([down for down, _ in adapters]), torch.block_diag(*(up for _, up in adapters))
    return Linear(torch.cat([weight, up.to(dtype)], 1), bias, down.to(dtype))


def _adapter(module: Any) -> tuple[Tensor, Tensor]:
    """([rank, in], [out, rank]) in float32: their product is what the active adapters add to the weight."""
    if not _is_linear(module):
        raise ConfigError(f"a layer is a {type(module).__name__}, which the fast sampler cannot read; see supports()")
    base = getattr(module, "base_layer", module)
    wide = torch.promote_types(base.weight.dtype, torch.float32)
    active = () if module is base or module.disable_adapters else module.active_adapters
    pairs = [
        (module.lora_A[a].weight, module.lora_B[a].weight * module.scaling[a]) for a in active if a in module.lora_A
    ]
    down = [base.weight.new_empty(0, base.in_features), *(a for a, _ in pairs)]
    up = [base.weight.new_empty(base.out_features, 0), *(b for _, b in pairs)]
    return torch.cat([a.to(wide) for a in down]), torch.cat([b.to(wide) for b in up], 1)


def _is_activation(module: Any) -> bool:
    return next(module.parameters(), None) is None


def _is_linear(module: Any) -> bool:
    """A linear layer, bare or with ordinary LoRA: no variant of it, and nothing merged into the weight."""
    if type(module) is nn.Linear:
        return True
    ordinary = type(getattr(module, "base_layer", None)) is nn.Linear and hasattr(module, "lora_A")
    return ordinary and not (module.lora_variant or module.merged or any(module.lora_bias.values()))

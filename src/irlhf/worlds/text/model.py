"""One frozen language model, with named adapters: what policies, rewards and the base measure share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from irlhf.errors import ConfigError
from irlhf.functional.tokens import token_log_prob
from irlhf.randomness import Key
from irlhf.worlds.text.attention import of_short_rows
from irlhf.worlds.text.batch import Layout, TextBatch, layout, text_batch
from irlhf.worlds.text.encoding import Prompt
from irlhf.worlds.text.fused import fuse, is_norm

TOKENS = 8192  # read in one go where no gradient is wanted


class LanguageModel:
    """A causal language model of Hugging Face whose own weights stay as they are.

    It is no ``nn.Module``: what holds it registers the parts it trains (an adapter, a head), and nothing else.

    Args:
        model: for example from :func:`irlhf.worlds.text.load_model`. Its weights are frozen, dropout is off, and
            norms and gates of Llama's shape compute the same values in fewer passes from then on.
        tokenizer: of the model.
        name: where it came from, for checkpoints.

    Raises:
        ConfigError: a model whose logits are not a linear function of its last hidden state.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, name: str = ""):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self._modules: dict[str, nn.ModuleDict] = {}
        self._layers: list[Any] = []
        self._on: str | None = None
        if self.dtype == torch.float64:
            _widen(self.model)
        fuse(self.model)
        self._require_linear_head()
        self.shared = self._can_share()

    @property
    def head(self) -> nn.Linear:
        """The matrix that makes logits of hidden states."""
        return self.model.get_output_embeddings()

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return self.head.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    # ------------------------------------------------------------------------------------------------------ adapters

    def add_adapter(
        self,
        name: str,
        *,
        rank: int = 16,
        alpha: float | None = None,
        targets: str | Sequence[str] = "all-linear",
        layers: Sequence[int] | None = None,
        key: Key | None = None,
    ) -> nn.ModuleDict:
        """New low-rank matrices beside the linear layers (LoRA, Hu et al. 2022), which change nothing yet.

        Args:
            rank: of each product.
            alpha: the product counts alpha/rank times; default: rank, so once.
            targets: names of layers, as PEFT takes them.
            layers: numbers of the decoder layers that get one; None: all.
            key: of the random start of one factor (the other starts at zero).

        Returns:
            The matrices, as modules to be trained; see :meth:`adapter`.
        """
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if name in self._modules:
            raise ConfigError(f"there is an adapter {name!r} already; choose another name")
        how = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
            target_modules=targets if isinstance(targets, str) and layers is None else self._names_of(targets),
            layers_to_transform=None if layers is None else list(layers),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are the point here
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # which PEFT mends itself
            torch.manual_seed((key or Key(0)).at("adapter", name).bits(64) >> 1)
            inject_adapter_in_model(how, self.model, name)
        self._layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        own = nn.ModuleDict()
        for path, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and name in module.lora_A:
                pair = nn.ModuleDict({"A": module.lora_A[name], "B": module.lora_B[name]}).to(self.dtype)
                own[path.replace(".", "-")] = pair
        self.model.requires_grad_(False)
        self._modules[name] = own
        self._switch(None)
        return own

    def _names_of(self, targets: str | Sequence[str]) -> list[str]:
        """The names of layers as a list, which PEFT wants where only some decoder layers are asked for."""
        if targets != "all-linear":
            return [targets] if isinstance(targets, str) else list(targets)
        modules = self.model.base_model.named_modules()
        linear = [path for path, m in modules if type(m).__name__ in ("Linear", "Conv1D") and ".lora_" not in path]
        return sorted({path.removesuffix(".base_layer").rpartition(".")[2] for path in linear})

    def adapter(self, name: str) -> nn.ModuleDict:
        """The matrices of an adapter: path of the layer -> A, B."""
        if name not in self._modules:
            known = ", ".join(map(repr, self._modules)) or "none"
            raise ConfigError(f"there is no adapter {name!r}; there are: {known}")
        return self._modules[name]

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """With this adapter on (None: with none), and all others off. Gives the Hugging Face module."""
        before = self._on
        if name is not None:
            self.adapter(name)
        self._switch(name)
        try:
            yield self.model
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter([name])
        for modules in self._modules.values():  # PEFT freezes what is off; here switching says nothing about training
            modules.requires_grad_(True)
        self._on = name

    # ------------------------------------------------------------------------------------------------------- reading

    def hidden(
        self, batch: TextBatch, adapter: str | None, depth: int | None = None
    ) -> tuple[Float[Tensor, "places width"], Layout]:
        """The last hidden state of every place of the layout of a batch; differentiable where the adapter is.

        ``depth``: decoder layers that are read; the final norm comes after them.
        """
        where = layout(batch, shared=self.shared)
        with self.using(adapter), self._only(depth):
            return self._read(where).flatten(0, 1), where

    def log_prob(self, batch: TextBatch, adapter: str | None) -> Float[Tensor, "steps"]:
        """``log p(token | prompt and tokens before it)`` of each step, in nats."""
        hidden, where = self.hidden(batch, adapter)
        return token_log_prob(hidden[where.before], self.head.weight, batch.token, self.head.bias)

    def _read(self, where: Layout) -> Tensor:
        how: dict[str, Any] = {}
        if where.attend is not None:
            mask = torch.zeros(where.attend.shape, dtype=self.dtype)
            mask.masked_fill_(~where.attend, torch.finfo(self.dtype).min)
            how = {"attention_mask": mask[:, None], "position_ids": where.positions}
        with of_short_rows(self.model, where.tokens.shape[1]):
            return self.model.base_model(input_ids=where.tokens, use_cache=False, **how).last_hidden_state

    @contextlib.contextmanager
    def _only(self, depth: int | None) -> Iterator[None]:
        config, all_layers = self.model.config, self.model.config.num_hidden_layers
        if depth is None or depth == all_layers:
            yield
            return
        if not 1 <= depth < all_layers:
            raise ConfigError(f"depth is {depth}, but {self.name} has {all_layers} layers; choose 1 to {all_layers}")
        inner = self.model.base_model
        whole = getattr(inner, "layers", None)
        if whole is None:
            raise ConfigError(f"the layers of {self.name} are not where they are looked for; leave depth out")
        inner.layers, config.num_hidden_layers = whole[:depth], depth
        try:
            yield
        finally:
            inner.layers, config.num_hidden_layers = whole, all_layers

    def _require_linear_head(self) -> None:
        where = layout(_probe(), shared=False)
        with torch.no_grad():
            logits = self.model(input_ids=where.tokens, use_cache=False).logits
            own = nn.functional.linear(self._read(where), self.head.weight, self.head.bias)
        if not torch.allclose(own, logits, rtol=1e-2, atol=1e-2):
            raise ConfigError(
                f"{self.name} does more to its logits than a linear head (a cap or a scale), which is not supported; "
                "choose a model of another family"
            )

    def _can_share(self) -> bool:
        """Whether completions in one row read as they do alone: tried out, since no list of models is complete."""
        if set(getattr(self.model.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
            return False
        together, apart = layout(_probe()), layout(_probe(), shared=False)
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(self.dtype, 0.1)
        with torch.no_grad():
            a = self._read(together).flatten(0, 1)[together.before]
            b = self._read(apart).flatten(0, 1)[apart.before]
        return bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def _widen(model: nn.Module) -> None:
    """Root-mean-square norms in double precision: those of transformers go through single, and lose half the digits."""
    for module in model.modules():
        if is_norm(module):
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign]


def _rms_norm(module: Any, hidden: Tensor) -> Tensor:
    return module.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)


def _probe() -> TextBatch:
    """Two short completions of one prompt."""
    return text_batch([Prompt((0, 1, 2))], torch.tensor([0, 0]), torch.tensor([1, 2, 1, 0, 1]), torch.tensor([3, 2]))

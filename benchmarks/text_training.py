"""How fast rewards and policies of texts are trained, beside TRL, on one model and the same texts.

    OMP_NUM_THREADS=1 IRLHF_DATA=... python benchmarks/text_training.py [--only CASE ...] [--steps N]

Seconds of a step are medians, the first one left out: both sides compile and allocate there. TRL runs as it ships, in
this environment (it is among the packages of ``.[dev]``). ``limit_s`` is the least time for the matrix products that
are needed, at the rate of one large product measured in the same run: of a reward model, each prompt and completion
read once, forward and back for weights and inputs; of a policy, each new token drawn, read under the base, and read
with the gradient of its inputs. One JSON object a line, then a table. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from text import flops_per_s
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.utils import logging as hf_logging

from irlhf import Minibatches, Term, fit_policy, fit_reward, listed, rloo
from irlhf.randomness import Key
from irlhf.worlds.text import Encoder, LanguageModel, ScoreReward, TextPolicy, TextWorld, load_model, read
from irlhf.worlds.text.load import fast_dtype

PAIRS, CUT = 8, 256  # pairs of a step, tokens of a text at most
PROMPTS, DRAWS, NEW = 8, 8, 48
FIXED = " with its head fix"
Row = dict[str, Any]


class Clock(TrainerCallback):
    """Seconds of each step of a trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)


class Ticks:
    """The same of a fit: a ``progress``."""

    def __init__(self) -> None:
        self.at = [time.perf_counter()]

    def __call__(self, step: dict[str, Any]) -> None:
        self.at.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]


def middle(seconds: list[float]) -> float:
    return statistics.median(seconds[1:] if len(seconds) > 1 else seconds)


def hh(n: int) -> list[dict[str, str]]:
    """The first pairs of hh-rlhf's harmless test set that are not longer than the cut on either side."""
    file = Path(os.environ.get("IRLHF_DATA", "")) / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    if not file.exists():
        raise SystemExit("hh-rlhf is not there; set IRLHF_DATA")
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    _, tokenizer = load_model("smollm2")
    fits = [r for r in rows if all(len(tokenizer(r[k])["input_ids"]) <= CUT - 2 for k in ("chosen", "rejected"))]
    return fits[:n]


def equal(n: int) -> list[dict[str, str]]:
    """Pairs of one length without a common beginning: 100 words each, drawn anew."""
    words = ["river", "green", "seven", "walks", "under", "paper", "light", "stone"]
    draw = torch.Generator().manual_seed(0)
    text = lambda: " ".join(words[k] for k in torch.randint(8, (100,), generator=draw).tolist())  # noqa: E731
    return [{"prompt": "", "chosen": text(), "rejected": text()} for _ in range(n)]


def matrices(model: Any) -> tuple[int, int]:
    """Numbers in the matrices of the layers, and in the one that makes logits."""
    words = model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters()) - words, words


def reward_model(rows: list[dict[str, str]], steps: int, name: str) -> Row:
    """All of SmolLM2 is trained on pairs, AdamW, in the type that this processor multiplies fastest."""
    from trl import RewardConfig, RewardTrainer

    dtype = fast_dtype()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model, tokenizer = load_model("smollm2", dtype=dtype)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        language = LanguageModel(model, tokenizer, name="smollm2")
        world = TextWorld(Encoder(tokenizer, max_tokens=CUT, max_prompt=CUT), TextPolicy(language))
        term = Term(read(folder / "pairs.jsonl"), listed(world))
        batch = term.prepared.batch
        tokens = int(batch.length.sum()) + sum(len(prompt.tokens) for prompt in batch.contexts)
        needed = 6 * matrices(model)[0] * tokens / len(rows) * PAIRS
        ticks = Ticks()
        how = Minibatches(
            partial(torch.optim.AdamW, lr=1e-5, fused=True), rows=PAIRS, at_once=PAIRS, max_steps=steps, key=Key(0)
        )
        fit_reward(ScoreReward(language, whole=True), term, optimizer=how, progress=ticks)
        classifier = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1, dtype=dtype)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        config = RewardConfig(
            output_dir=str(folder / "out"), per_device_train_batch_size=PAIRS, max_steps=steps, max_length=CUT,
            learning_rate=1e-5, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
            logging_strategy="no", save_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        clock = Clock()
        data = Dataset.from_list([{k: row[k] for k in ("chosen", "rejected")} for row in rows])
        trainer = RewardTrainer(classifier, args=config, train_dataset=data, processing_class=tokenizer,
                                callbacks=[clock])  # fmt: skip
        trainer.train()
    ours, theirs = middle(ticks.seconds), middle(clock.seconds)
    return {"case": f"reward model, {name}", "ours_s": ours, "peer": "TRL RewardTrainer", "peer_s": theirs,
            "ratio": theirs / ours, "pairs_per_s": PAIRS / ours, "limit_s": needed / flops_per_s(dtype),
            "dtype": str(dtype)}  # fmt: skip


def worth(completions: list[str], **_: Any) -> list[float]:
    """How many words a completion has of those that are longer than six letters."""
    return [float(sum(len(word) > 6 for word in text.split())) for text in completions]


class Worth(torch.nn.Module):
    """The same, of a batch."""

    def __init__(self, world: TextWorld):
        super().__init__()
        self.world = world

    def forward(self, batch: Any) -> torch.Tensor:
        end = self.world.encoder.end
        tokens = [list(c.tokens) for c in batch.completions(end)]
        return torch.tensor(worth(self.world.encoder.tokenizer.batch_decode(tokens)), dtype=torch.float32)


def policy_gradient(model: Any, tokenizer: Any, steps: int, name: str, peers: tuple[str, ...]) -> Iterator[Row]:
    """8 prompts x 8 completions x 48 tokens, LoRA of rank 16 on all linear layers, one gradient step a batch."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    questions = [f"Question {k}: what is there to see in a town of {k} hills?\n" for k in range(PROMPTS)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        needed = (2 + 2 + 4) * sum(matrices(model)) * PROMPTS * DRAWS * NEW
        limit = needed / flops_per_s(model.dtype)
        language = LanguageModel(model, tokenizer, name=name)
        language.add_adapter("policy", rank=16, key=Key(0))
        world = TextWorld(Encoder(tokenizer, max_tokens=NEW), TextPolicy(language))
        ticks = Ticks()
        fit_policy(TextPolicy(language, "policy"), Worth(world), world, questions,
                   learner=rloo(DRAWS, rate=1e-4, max_steps=steps), temperature=20.0, progress=ticks)  # fmt: skip
        ours = middle(ticks.seconds)
        made = {"RLOO": (RLOOTrainer, RLOOConfig), "GRPO": (GRPOTrainer, GRPOConfig)}
        for peer in peers:
            trainer_of, config_of = made[peer.removesuffix(FIXED)]
            fresh = LlamaForCausalLM.from_pretrained(folder / "model", dtype=model.dtype)
            fresh.name_or_path = str(folder / "model")
            if peer.endswith(FIXED):  # the head of a prefill is given a strided slice, which its product is slow with
                fresh.lm_head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
            config = config_of(
                output_dir=str(folder / "out"), per_device_train_batch_size=PROMPTS * DRAWS, num_generations=DRAWS,
                max_completion_length=NEW, max_steps=steps, learning_rate=1e-4, beta=0.05, report_to=[], use_cpu=True,
                bf16=False, gradient_checkpointing=False, logging_strategy="no", save_strategy="no", disable_tqdm=True,
            )  # fmt: skip
            lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
            clock = Clock()
            trainer = trainer_of(
                fresh, args=config, reward_funcs=worth, processing_class=tokenizer, peft_config=lora,
                train_dataset=Dataset.from_list([{"prompt": q} for q in questions] * 4), callbacks=[clock],
            )  # fmt: skip
            trainer.train()
            theirs = middle(clock.seconds)
            yield {"case": f"policy gradient, {name}", "ours_s": ours, "peer": f"TRL {peer}, beta 0.05",
                   "peer_s": theirs, "ratio": theirs / ours, "limit_s": limit, "dtype": str(model.dtype)}  # fmt: skip


def small() -> tuple[Any, Any]:
    """A Llama of two million parameters in single precision, with SmolLM2's tokens of lowest numbers."""
    _, tokenizer = load_model("smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), tokenizer


CASES: dict[str, Callable[[int], Iterator[Row]]] = {
    "reward-hh": lambda n: iter([reward_model(hh(2 * PAIRS * n), 2 * n, "hh-rlhf pairs as they come")]),
    "reward-equal": lambda n: iter([reward_model(equal(2 * PAIRS * n), 2 * n, "equal lengths, nothing shared")]),
    "policy": lambda steps: policy_gradient(
        *load_model("smollm2", dtype=fast_dtype()), steps, "SmolLM2-135M", ("RLOO", "RLOO" + FIXED, "GRPO" + FIXED)
    ),
    "policy-small": lambda steps: policy_gradient(*small(), steps, "Llama of 2M", ("RLOO",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=4, help="of a policy; a reward model takes twice as many")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")
    hf_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    table = Table("case", "ours", "peer", "", "ratio", "limit")
    for name in asked.only:
        for row in CASES[name](asked.steps):
            print(json.dumps({**row, "load": os.getloadavg()[0]}), flush=True)
            seconds = f"{row['ours_s']:.2f} s", f"{row['peer_s']:.2f} s"
            table.add_row(row["case"], *seconds, row["peer"], f"{row['ratio']:.2f}", f"{row['limit_s']:.2f} s")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

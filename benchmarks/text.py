"""How fast language models are drawn from, beside transformers and beside what the machine's matrix products allow.

    OMP_NUM_THREADS=1 python benchmarks/text.py [--only CASE ...] [--dtype bfloat16]

One JSON object a line for every row, then a table. See README.md beside this file for what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

import irlhf
from irlhf.worlds.text.encoding import Encoder, Message
from irlhf.worlds.text.llama import Llama
from irlhf.worlds.text.load import fast_dtype, load_model
from irlhf.worlds.text.sampling import Generate

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
REPEATS = 3
Row = dict[str, Any]

QUESTIONS = (
    "Why is the sky blue?",
    "Write two sentences about a lighthouse in winter.",
    "How do I keep basil alive indoors, and how often should I water it?",
    "Name three rivers.",
    "My bicycle chain keeps slipping when I pedal uphill. What could be the reason, and what should I check first?",
    "Explain to a ten-year-old what a prime number is.",
    "What should I cook tonight with rice, eggs and spinach?",
    "Is it better to learn the guitar or the piano first?",
)


@dataclass(frozen=True)
class Run:
    """What all cases of a run share."""

    dtype: torch.dtype
    flops: float  # of matrix products in this dtype, a second


def flops_per_s(dtype: torch.dtype) -> float:
    """The rate of one large matrix product, the best of several."""
    a = torch.ones(1024, 1024, dtype=dtype)
    return 2 * 1024**3 / min(_seconds(lambda: a @ a)[0] for _ in range(7))


def beside(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = REPEATS) -> Row:
    """Medians of both, taken in turns so that what else the machine does meets both.

    ``cpu_ratio`` is that of the processor's time, which other processes disturb less.
    """
    taken = [_seconds(ours) + _seconds(peer) for _ in range(repeats)]
    ours_s, ours_cpu, peer_s, peer_cpu = (statistics.median(column) for column in zip(*taken, strict=True))
    return {"ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s, "cpu_ratio": peer_cpu / ours_cpu}


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """(on the clock, on the processor)."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


# ------------------------------------------------------------------------------------------------------- generation


def generation(run: Run) -> Iterator[Row]:
    """8 prompts x 8 completions x 48 tokens out of SmolLM2-135M; nobody stops early."""
    n, new = 8, 48
    model, tokenizer = load_model("smollm2", dtype=run.dtype)
    encoder = Encoder(tokenizer, max_tokens=new)
    prompts = [encoder.prompt((Message("user", text),)) for text in QUESTIONS]
    sampler = Generate(model)
    tokens, mask = padded([prompt.tokens for prompt in prompts for _ in range(n)], encoder.pad)
    model.generation_config.eos_token_id = None
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "pad_token_id": encoder.pad}

    def ours() -> None:
        found = sampler.sample(prompts, [n] * len(prompts), key=irlhf.Key(0), max_tokens=new, end=-1)
        assert len(found.token) == len(tokens) * new

    def peer() -> None:
        found = model.generate(tokens, attention_mask=mask, max_new_tokens=new, **settings)
        assert found.shape == (len(tokens), tokens.shape[1] + new)

    # each prompt once and each new token once, through all matrices; heads only where a token is drawn
    head = model.lm_head.weight.numel()
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    read = sum(len(prompt.tokens) for prompt in prompts) + len(tokens) * (new - 1)
    needed = 2 * (read * matrices + (len(prompts) + len(tokens) * (new - 1)) * head)
    row = beside(ours, peer) | {"peer": "transformers.generate", "floor": 2.0, "goal": 2.6}
    row |= {"tokens_per_s": len(tokens) * new / row["ours_s"], "limit_s": needed / run.flops}
    yield {"case": "generation, batch 64, SmolLM2-135M"} | row


def greedy(run: Run) -> Iterator[Row]:
    """Whether the fast decoder's greedy tokens are those of transformers: 135M, float32, 48 tokens of each prompt."""
    new = 48
    model, tokenizer = load_model("smollm2", dtype=torch.float32)
    encoder = Encoder(tokenizer, max_tokens=new)
    prompts = [encoder.prompt((Message("user", text),)).tokens for text in QUESTIONS]
    model.generation_config.eos_token_id = None
    found: dict[str, list[list[int]]] = {}

    @torch.no_grad()
    def ours() -> None:
        decoder, steps = Llama(model), []
        logits = decoder.start(prompts, [1] * len(prompts), new)
        for _ in range(new - 1):
            steps.append(logits.argmax(-1))
            logits = decoder.step(steps[-1])
        found["ours"] = torch.stack([*steps, logits.argmax(-1)], 1).tolist()

    def peer() -> None:
        tokens, mask = padded(prompts, encoder.pad)
        whole = model.generate(
            tokens, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=encoder.pad
        )
        found["peer"] = whole[:, tokens.shape[1] :].tolist()

    row = beside(ours, peer, 1) | {"peer": "transformers.generate"}
    yield {"case": "greedy, batch 8, float32, same tokens"} | row | {"same": found["ours"] == found["peer"]}


def padded(prompts: list[tuple[int, ...]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, attention mask), filled on the left."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    size = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, (torch.arange(width) >= width - size[:, None]).long()


# ------------------------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[Run], Iterator[Row]]] = {"generation": generation, "greedy": greedy}


def table_of(rows: list[Row]) -> Table:
    table = Table("case", "ours", "peer", "", "ratio", "floor (goal)", "matrix products alone")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['ours_s']:.2f} s",
            f"{row['peer_s']:.2f} s",
            row["peer"],
            f"{row['ratio']:.2f}",
            f"{row['floor']} ({row['goal']})" if "floor" in row else "",
            f"{row['limit_s']:.2f} s" if "limit_s" in row else "",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: what this processor is faster in")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    logging.set_verbosity_error()
    dtype = getattr(torch, asked.dtype) if asked.dtype else fast_dtype()
    run = Run(dtype, flops_per_s(dtype))
    named = {"dtype": str(dtype).removeprefix("torch."), "threads": THREADS}
    machine = {"case": "machine", "gflop_per_s": run.flops / 1e9, "load": os.getloadavg()[0]}
    print(json.dumps(machine | named), flush=True)
    rows = []
    for name in asked.only or CASES:
        for row in CASES[name](run):
            rows.append(row)
            row = row | named | {"load": os.getloadavg()[0]}
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    Console(width=150).print(table_of(rows))


if __name__ == "__main__":
    main()

"""Completions laid end to end, and how a model gets to see them.

A :class:`TextBatch` is flat and knows nothing of padding. A :class:`Layout` is the rectangle that a model reads: made
from lengths, here and nowhere else, so that no id of a pad is ever compared with anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from irlhf.protocols import Batch
from irlhf.worlds.text.attention import LONGEST
from irlhf.worlds.text.encoding import Completion, Prompt

ROW = 768  # most tokens of a block of completions that share a prompt
# What attention adds to the cost of a token, for each token of its row: in a row of its own, and behind a mask
# (measured on SmolLM2 in bfloat16). It decides whether sharing a row is worth the prompt that it saves.
ALONE, MASKED = 2.6e-4, 1e-3
STEP = 8  # tokens between the widths of rows that are tried


@dataclass(frozen=True, eq=False)
class TextBatch(Batch):
    """Completions of prompts. ``contexts`` are :class:`Prompt`; a step is a token, the end token included.

    ``taken_from`` is the batch that this one is a part of, and which of its items: what has been computed for the whole
    (the base measure, frozen features) need not be computed again.
    """

    token: Int[Tensor, "steps"]
    taken_from: tuple[TextBatch, Int[Tensor, "items"]] | None = None

    @property
    def length(self) -> Int[Tensor, "items"]:
        """Steps of each item."""
        return torch.bincount(self.item, minlength=self.n_items)

    def take(self, items: Int[Tensor, "taken"]) -> TextBatch:
        steps, item = self.steps_of(items)
        return TextBatch(
            self.contexts, self.context[items], item, self.step_weight[steps], self.token[steps], (self, items)
        )

    def without_end(self, end: int) -> TextBatch:
        """The same items, those that end with this token without it."""
        last = torch.ones_like(self.item, dtype=torch.bool)
        last[:-1] = self.item[1:] != self.item[:-1]
        keep = ~(last & (self.token == end))
        return TextBatch(self.contexts, self.context, self.item[keep], self.step_weight[keep], self.token[keep])

    def completions(self, end: int) -> list[Completion]:
        """The items as :class:`Completion`."""
        parts = self.token.split(self.length.tolist())
        found = [part.tolist() for part in parts]
        ended = [bool(tokens) and tokens[-1] == end for tokens in found]
        return [Completion(tuple(t[:-1] if e else t), e) for t, e in zip(found, ended, strict=True)]


def text_batch(
    prompts: Sequence[Prompt], context: Int[Tensor, "items"], token: Int[Tensor, "steps"], length: Int[Tensor, "items"]
) -> TextBatch:
    """A batch of items, given one after the other: ``context`` -> prompts, equal prompts are made one."""
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    of_prompt = torch.tensor([number[prompt] for prompt in prompts], dtype=torch.int64)
    item = torch.repeat_interleave(torch.arange(len(length)), length)
    return TextBatch(list(number), of_prompt[context], item, torch.ones(len(token), dtype=torch.float64), token)


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of tokens for a model, and where in them (row * width + column) the items are.

    Completions of one prompt stand behind one another in a block, after the prompt, which is read once, where that
    saves more than the longer row costs; each sees the prompt and itself. Blocks share rows that have room for them.
    ``attend`` says who sees what; None: every token sees all before it, as models do anyway.
    """

    tokens: Int[Tensor, "rows width"]
    positions: Int[Tensor, "rows width"]
    attend: Bool[Tensor, "rows width width"] | None
    before: Int[Tensor, "steps"]  # the place that predicts each token of an item
    last: Int[Tensor, "items"]  # the last token of each item


def layout(batch: TextBatch, *, shared: bool = True, row: int = ROW) -> Layout:
    """The rectangle of a batch. Items without a token are read at the end of their prompt.

    Args:
        shared: whether completions share a row (for models that take positions and a mask).
        row: most tokens of a shared block.
    """
    prompts = [np.asarray(prompt.tokens, np.int64) for prompt in batch.contexts]
    length, context = batch.length.numpy(), batch.context.numpy()
    first = np.cumsum(length) - length
    blocks: list[list[int]] = []  # items that share a prompt
    open_block: dict[int, int] = {}  # prompt -> the block that it may still share
    used: list[int] = []
    for k, (x, own) in enumerate(zip(context.tolist(), length.tolist(), strict=True)):
        b = open_block.get(x) if shared else None
        if b is None or used[b] + own > row or not _pays(len(prompts[x]), used[b], own):
            b = open_block[x] = len(blocks)
            blocks.append([])
            used.append(len(prompts[x]))
        blocks[b].append(k)
        used[b] += own
    rows = _packed(used, len(blocks) < len(length)) if shared else [[b] for b in range(len(blocks))]
    width = max((sum(used[b] for b in some) for some in rows), default=1)
    tokens = np.zeros((len(rows), width), np.int64)
    positions = np.zeros_like(tokens)
    block, segment = np.full_like(tokens, -1), np.full_like(tokens, -1)  # -1: nothing; segment 0: the prompt
    before, last = np.empty(int(length.sum()), np.int64), np.empty(len(length), np.int64)
    token = batch.token.numpy()
    for r, some in enumerate(rows):
        column = 0
        for b in some:
            prompt = prompts[context[blocks[b][0]]]
            n, start = len(prompt), column
            block[r, start : start + used[b]] = b
            column += n
            tokens[r, start:column], positions[r, start:column], segment[r, start:column] = prompt, np.arange(n), 0
            for number, k in enumerate(blocks[b], 1):
                own, at = length[k], slice(column, column + length[k])
                tokens[r, at] = token[first[k] : first[k] + own]
                positions[r, at], segment[r, at] = np.arange(n, n + own), number
                if own:
                    before[first[k]] = r * width + start + n - 1
                    before[first[k] + 1 : first[k] + own] = r * width + np.arange(column, column + own - 1)
                last[k] = r * width + (column + own - 1 if own else start + n - 1)
                column += own
    attend = None
    if len(rows) < len(length):
        s, b = torch.from_numpy(segment), torch.from_numpy(block)
        seen = (b[:, :, None] == b[:, None, :]) & ((s[:, :, None] == s[:, None, :]) | (s[:, None, :] == 0))
        attend = (seen & (s[:, None, :] >= 0)).tril() | torch.eye(width, dtype=torch.bool)
    as_tensor = torch.from_numpy
    return Layout(as_tensor(tokens), as_tensor(positions), attend, as_tensor(before), as_tensor(last))


def _packed(sizes: list[int], masked: bool) -> list[list[int]]:
    """Blocks in the rows that cost least, of those that first-fit finds for rows of several widths, largest first.

    As they came, where no other rows cost less. ``masked``: whether a mask is needed even then.
    """
    best, longest = [[b] for b in range(len(sizes))], max(sizes, default=0)
    least = len(sizes) * longest * (1 + (MASKED if masked else ALONE) * longest)
    order = sorted(range(len(sizes)), key=lambda b: -sizes[b])
    for width in range(longest, max(longest, LONGEST) + 1, STEP):
        rows = _first_fit(sizes, order, width)
        filled = max((sum(sizes[b] for b in some) for some in rows), default=0)
        cost = len(rows) * filled * (1 + MASKED * filled)
        if len(rows) < len(sizes) and cost < least:
            best, least = rows, cost
    return best


def _first_fit(sizes: list[int], order: list[int], width: int) -> list[list[int]]:
    """Blocks, one after the other, each in the first row of so many tokens that has room for it."""
    rows: list[list[int]] = []
    free: list[int] = []
    for b in order:
        r = next((r for r, room in enumerate(free) if room >= sizes[b]), len(rows))
        if r == len(rows):
            rows.append([])
            free.append(width)
        rows[r].append(b)
        free[r] -= sizes[b]
    return rows


def _pays(prompt: int, used: int, own: int) -> bool:
    """Whether a completion costs less behind a mask in a row of so many tokens than with a prompt of its own."""
    return own + MASKED * own * (2 * used + own) < (prompt + own) * (1 + ALONE * (prompt + own))


def parts(batch: TextBatch, tokens: int) -> list[Int[Tensor, "some"]]:
    """Items in groups of about ``tokens`` tokens, whole prompts together where they fit, similar lengths together."""
    length = batch.length.numpy() + np.array([len(batch.contexts[x].tokens) for x in batch.context.tolist()], np.int64)
    order = np.lexsort((np.arange(len(length)), batch.context.numpy()))
    longest = np.zeros(len(batch.contexts), np.int64)
    np.maximum.at(longest, batch.context.numpy(), length)
    order = order[np.argsort(longest[batch.context.numpy()[order]], kind="stable")]
    groups: list[list[int]] = [[]]
    widest = 0
    for k in order.tolist():
        widest = max(widest, int(length[k]))
        if groups[-1] and widest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
            widest = int(length[k])
        groups[-1].append(k)
    return [torch.tensor(group, dtype=torch.int64) for group in groups if group]

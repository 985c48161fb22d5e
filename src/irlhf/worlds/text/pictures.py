"""What a reward of texts looks like: the rewards of what was chosen, beside those of what it was chosen from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irlhf.drawing import BLUE, ORANGE, Picture, draw
from irlhf.feedback import CHOICE, RATING

BINS = 40


def pictures(fit: Any) -> list[Picture]:
    """One picture for each term of a :class:`irlhf.fit.Fit`. Raises ConfigError without matplotlib."""
    return [picture for term in fit.terms if (picture := _of_term(fit.reward, term)) is not None]


def _of_term(reward: Any, term: Any) -> Picture | None:
    with torch.no_grad():
        first = _worth(reward, term.prepared.batch)
        rivals = [_worth(reward, draws.batch) for draws in getattr(term.prepared, "draws", ())]
    feedback = term.feedback
    if rivals:
        return _beside(term.name, first, np.concatenate(rivals), "demonstrations", "rivals")
    if (feedback.kind == CHOICE).all():
        worth = first[term.prepared.item.numpy()]
        row = np.repeat(np.arange(len(feedback)), feedback.sizes)
        place = np.arange(len(row)) - feedback.first_item[:-1][row]
        decided = feedback.chosen[row] >= 0
        chosen = place == feedback.chosen[row]
        return _beside(term.name, worth[decided & chosen], worth[decided & ~chosen], "chosen", "not chosen")
    if (feedback.kind == RATING).all() and (feedback.levels == 2).all():
        worth = first[term.prepared.item.numpy()]
        return _beside(term.name, worth[feedback.level == 1], worth[feedback.level == 0], "rated up", "rated down")
    return None


def _worth(reward: Any, batch: Any) -> NDArray[np.float64]:
    return reward(batch).double().numpy()


def _beside(name: str, a: NDArray[np.float64], b: NDArray[np.float64], of_a: str, of_b: str) -> Picture | None:
    if not len(a) or not len(b):
        return None
    edges = np.histogram_bin_edges(np.concatenate([a, b]), BINS)

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        for values, color, label in ((b, ORANGE, of_b), (a, BLUE, of_a)):
            ax.hist(values, edges, density=True, color=color, alpha=0.5, label=f"{label} ({len(values):,})")
        ax.set(xlabel="reward", yticks=[])
        ax.legend(frameon=False)

    share = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean() if len(a) * len(b) <= 10**7 else np.nan
    words = "" if np.isnan(share) else f"Of two at random, the one of the {of_a} has the larger reward in {share:.0%}."
    return Picture(f"Rewards: {name}", draw(7.2, 2.4, paint, name=f"rewards of {name}"), words)

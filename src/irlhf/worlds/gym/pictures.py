"""What a reward of an environment looks like: what it gives along demonstrations, and how the fit went."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from irlhf.drawing import BLUE, ORANGE, Picture, draw

BINS = 40
POINTS = 4000


def pictures(fit: Any) -> list[Picture]:
    """A map of the reward over the two observations it varies most with; and, of a joint fit, its curve."""
    found = [_map(fit)]
    trace = fit.trace
    if "return" in trace and trace["return"].notna().any():
        found.append(_curve(trace))
    return found


def _map(fit: Any) -> Picture:
    term = fit.terms[0]
    batch = term.prepared.batch
    own = batch.decided.nonzero()[:, 0]
    own = own[torch.linspace(0, len(own) - 1, min(POINTS, len(own))).long()]
    rows = batch.rows(own)
    with torch.no_grad():
        worth = fit.reward.step(rows).double().numpy()
    seen = rows.next_obs.double().numpy()
    spread = seen.std(0) > 0
    centered = (worth - worth.mean()) / (worth.std() + 1e-12)
    ranks = np.where(spread, np.abs(((seen - seen.mean(0)) * centered[:, None]).mean(0)) / (seen.std(0) + 1e-12), -1)
    first, second = (np.argsort(-ranks)[:2].tolist() * 2)[:2]

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        dots = ax.scatter(seen[:, first], seen[:, second], c=worth, s=4, cmap="viridis")
        figure.colorbar(dots, label="reward of a step")
        ax.set(xlabel=f"observation {first}", ylabel=f"observation {second}")

    words = f"The learned reward at {len(own):,} steps of {term.name}."
    return Picture("The reward", draw(7.2, 3.6, paint, name="reward over observations"), words)


def _curve(trace: Any) -> Picture:
    rows = trace[trace["return"].notna()]

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        ax.plot(rows["step"], rows["return"], color=BLUE)
        ax.set(xlabel="round", ylabel="return, as the environment pays")
        if "reward" in trace:
            other = ax.twinx()
            other.plot(trace["step"], trace["reward"], color=ORANGE, alpha=0.7)
            other.set_ylabel("learned reward of a step")

    words = "What the policy got on the way: blue, of whole episodes, from the environment; orange, from the reward."
    return Picture("The fit", draw(7.2, 2.6, paint, name="returns by round"), words)

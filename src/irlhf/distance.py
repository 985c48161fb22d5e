"""How far apart two rewards are on sampled trajectories: what they make of those that could have been chosen alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from irlhf.errors import ConfigError
from irlhf.functional.distance import pearson_distance


@torch.no_grad()
def distance_of_returns(a: Any, b: Any, batch: Any) -> pd.Series:
    """Distances between what two rewards make of the same trajectories, a constant per context and the scale left out.

    Where a context is a state and a trajectory one action, as a prompt and its completion, shaping is a constant per
    context, and the first number is EPIC (Gleave et al. 2021) on the trajectories at hand: Pearson's distance of what
    is left of each return when the mean of its context is taken out.

    Args:
        a, b: rewards of whole trajectories.
        batch: of a world, with at least two trajectories in some context.

    Returns:
        ``EPIC`` in [0, 1] (0: equal; 1: a reward and its negation); ``Spearman`` and ``Kendall``, rank correlations
        within contexts, averaged by how many trajectories each has (1: the same order); ``agree``: the share of pairs
        within contexts that both put in the same order, ties of either counted half; ``pairs``, their number.

    Raises:
        ConfigError: no context has two trajectories.
    """
    values = [reward(batch).double().numpy() for reward in (a, b)]
    context = batch.context.numpy()
    size = np.bincount(context, minlength=context.max(initial=0) + 1)
    if size.max(initial=0) < 2:
        raise ConfigError("no context has two trajectories, so there is nothing to compare; draw several of each")
    left = [x - (np.bincount(context, x) / size.clip(1))[context] for x in values]
    kept = size[context] > 1
    found = {"EPIC": float(pearson_distance(*(torch.from_numpy(x[kept]) for x in left)))}
    ranks: dict[str, list[float]] = {"Spearman": [], "Kendall": []}
    weight, same, pairs = [], 0.0, 0
    for x in np.flatnonzero(size > 1):
        ours, theirs = (v[context == x] for v in values)
        above = np.triu_indices(len(ours), 1)
        order = [np.sign(v[:, None] - v[None])[above] for v in (ours, theirs)]
        same += float((order[0] * order[1] > 0).sum() + 0.5 * (order[0] * order[1] == 0).sum())
        pairs += len(above[0])
        if np.ptp(ours) > 0 and np.ptp(theirs) > 0:
            ranks["Spearman"].append(float(np.asarray(stats.spearmanr(ours, theirs))[0]))
            ranks["Kendall"].append(float(np.asarray(stats.kendalltau(ours, theirs))[0]))
            weight.append(len(ours))
    for name, each in ranks.items():
        found[name] = float(np.average(each, weights=weight)) if each else np.nan
    return pd.Series({**found, "agree": same / pairs, "pairs": float(pairs)}, name="distance")

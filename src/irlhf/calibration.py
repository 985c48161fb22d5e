"""Whether predicted probabilities come true: predicted beside observed, in bins."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from irlhf.errors import ConfigError

Floats = NDArray[np.float64]

EDGES = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
"""Bins of predicted probability: tenths, finer where rare choices are."""


def calibration_table(
    probability: Floats, count: Floats, total: Floats, *, edges: Floats = EDGES, level: float = 0.95
) -> pd.DataFrame:
    """Predicted probabilities beside observed frequencies, in bins.

    Args:
        probability: [options] predicted.
        count: [options] how often the option was chosen.
        total: [options] how often it could have been.
        edges: of the bins; the lower edge belongs to a bin.
        level: of the bars.

    Returns:
        One row for each bin that is not empty: ``low, high, predicted`` (mean), ``observed`` (frequency), ``lower,
        upper`` (binomial bars around it; Wilson 1927), ``noise`` (standard error of the frequency if the predictions
        were right) and ``n`` (opportunities). Options of one decision are not independent, so bars are approximate.

    Raises:
        ConfigError: a probability outside the edges.
    """
    outside = (probability < edges[0]) | (probability > edges[-1] + 1e-9)
    if outside.any():
        raise ConfigError(f"a predicted probability is {probability[np.argmax(outside)]}; edges must cover it")
    cell = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, len(edges) - 2)
    n = np.bincount(cell, total, minlength=len(edges) - 1)
    keep = n > 0
    k = np.bincount(cell, count, minlength=len(n))[keep]
    mean = np.bincount(cell, total * probability, minlength=len(n))[keep] / n[keep]
    variance = np.bincount(cell, total * probability * (1 - probability), minlength=len(n))[keep]
    z, n_kept = norm.ppf(0.5 + level / 2), n[keep]
    observed = k / n_kept
    center = (observed + z**2 / (2 * n_kept)) / (1 + z**2 / n_kept)
    half = z / (1 + z**2 / n_kept) * np.sqrt(observed * (1 - observed) / n_kept + z**2 / (4 * n_kept**2))
    return pd.DataFrame(
        {
            "low": edges[:-1][keep],
            "high": edges[1:][keep],
            "predicted": mean,
            "observed": observed,
            "lower": np.clip(center - half, 0, 1),
            "upper": np.clip(center + half, 0, 1),
            "noise": np.sqrt(np.clip(variance, 0, None)) / n_kept,
            "n": n_kept,
        }
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """``sum_b n_b |observed_b - predicted_b| / n`` of a :func:`calibration_table` (Naeini et al. 2015, eq. 2)."""
    return float((table.n * (table.observed - table.predicted).abs()).sum() / table.n.sum())


def noise_level(table: pd.DataFrame) -> float:
    """The expected calibration error of perfect predictions on as little feedback: what chance alone would show."""
    return float((table.n * table.noise).sum() / table.n.sum() * np.sqrt(2 / np.pi))

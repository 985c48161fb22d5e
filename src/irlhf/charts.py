"""The charts every report has, whatever the world: parameters, predictors compared, calibration, the learning curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from irlhf.drawing import BLUE, FAINT, INK, ORANGE, Picture, draw, shorten
from irlhf.evaluation import Evaluation

MOST_BARS = 40


def coefficients(estimates: pd.Series, inner: pd.Series, outer: pd.Series | None, scale: pd.Series) -> Picture:
    """Estimates with two intervals, times the typical size of their feature, so that one axis serves all.

    Args:
        inner, outer: half the width of the intervals; not finite: no interval is drawn.
        scale: root mean square of each feature.
    """
    effect = estimates * scale
    order = effect.abs().to_numpy().argsort(kind="stable")[::-1][:MOST_BARS]
    shown = np.sort(order) if len(order) == len(effect) else order
    y = -np.arange(len(shown), dtype=float)

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        for half, width, color in ((outer, 1.5, BLUE), (inner, 5.0, BLUE)):
            if half is None:
                continue
            span = (half * scale).to_numpy()[shown]
            known = np.isfinite(span) & (span > 0)
            x = effect.to_numpy()[shown][known]
            ax.hlines(
                y[known], x - span[known], x + span[known], color=color, linewidth=width, alpha=0.45 if width > 2 else 1
            )
        known = np.isfinite(inner.to_numpy()[shown])
        x = effect.to_numpy()[shown]
        ax.plot(x[known], y[known], "o", color=BLUE, markersize=5)
        ax.plot(x[~known], y[~known], "o", markerfacecolor="none", markeredgecolor=ORANGE, markersize=6)
        ax.set_yticks(y, [shorten(estimates.index[k]) for k in shown])
        ax.set_ylim(y[-1] - 0.6, 0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("estimate × typical size of its feature (nats)")

    svg = draw(7.2, 0.9 + 0.27 * len(shown), paint, name="coefficients")
    few = "" if len(shown) == len(effect) else f" The {len(shown)} largest of {len(effect)} are drawn."
    return Picture("Parameters", svg, few)


def predictors(evaluation: Evaluation) -> Picture:
    """Log-likelihood for each choice of the model and its baselines, on one axis."""
    table = evaluation.scores[np.isfinite(evaluation.scores.per_choice)]
    y = -np.arange(len(table), dtype=float)

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        x = table.per_choice.to_numpy()
        colors = [ORANGE if name == "model" else BLUE for name in table.index]
        ax.axvline(x[0], color=ORANGE, linewidth=1, linestyle=(0, (3, 3)))
        for k in range(len(x)):
            ax.plot(x[k], y[k], "o", color=colors[k], markersize=8 if k == 0 else 6)
        ax.grid(axis="x")
        ax.set_yticks(y, [shorten(n) for n in table.index])
        ax.set_ylim(y[-1] - 0.6, 0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"log-likelihood per {evaluation.what} (nats; right is better)")
        ax.margins(x=0.08)

    return Picture("", draw(7.2, 0.75 + 0.3 * len(table), paint, name="predictors"), "")


def calibration(evaluation: Evaluation) -> Picture:
    """Observed frequency against predicted probability, with binomial bars; the diagonal is perfect."""
    table = evaluation.calibration
    assert table is not None

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        x, f = table.predicted.to_numpy(), table.observed.to_numpy()
        ax.vlines(x, table.lower, table.upper, color=BLUE, linewidth=1.6)
        ax.scatter(x, f, s=14 + 90 * table.n / table.n.max(), color=BLUE, alpha=0.85, linewidth=0, zorder=3)
        ax.grid(color=FAINT)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        ax.set(xlabel="predicted probability", ylabel="observed frequency")

    return Picture("", draw(4.0, 3.9, paint, name="calibration"), "")


def learning_curve(trace: pd.DataFrame) -> Picture:
    """What was left to gain after every step, on a logarithmic axis."""
    best = trace.objective.max()
    left = (best - trace.objective).to_numpy()
    floor = max(abs(best) * 1e-15, 1e-12)

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        ax.plot(trace.step, np.maximum(left, floor), "-o", color=BLUE, markersize=3.5)
        ax.set_yscale("log")
        ax.grid(axis="y")
        ax.set(xlabel="step", ylabel="nats below the end")
        ax.xaxis.get_major_locator().set_params(integer=True)

    return Picture("Learning curve", draw(7.2, 2.6, paint, name="learning"), "")

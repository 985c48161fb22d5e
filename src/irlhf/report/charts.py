"""The charts every report has, whatever the world: parameters, predictors compared, calibration, the learning curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from irlhf.drawing import BLUE, FAINT, INK, ORANGE, Picture, draw, shorten_all, wrap
from irlhf.evaluation import Evaluation
from irlhf.wording import power_of_ten

MOST_BARS = 40


def coefficients(estimates: pd.Series, inner: pd.Series, outer: pd.Series, scale: pd.Series) -> Picture:
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
        ax.set_yticks(y, shorten_all([estimates.index[k] for k in shown]))
        ax.set_ylim(y[-1] - 0.6, 0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("estimate × typical size of its feature (nats)")

    svg = draw(7.2, 0.9 + 0.27 * len(shown), paint, name="coefficients")
    words = [] if len(shown) == len(effect) else [f"The {len(shown)} largest of {len(effect)}."]
    known = np.isfinite(inner.to_numpy()[shown])
    if known.any():
        words.append(f"Thick bars: 95% intervals by {inner.name}; thin: by {outer.name}.")
    if not known.all():
        words.append("Open circles: no interval, because the feedback does not fix this parameter.")
    return Picture("Parameters", svg, " ".join(words))


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
        ax.set_yticks(y, [wrap(n, 20) for n in table.index])
        ax.xaxis.get_major_locator().set_params(nbins=5)
        ax.set_ylim(y[-1] - 0.6, 0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"log-likelihood per {evaluation.what} (nats; right is better)")
        ax.margins(x=0.08)

    return Picture("", draw(4.6, 0.8 + 0.34 * len(table), paint, name="predictors"), "")


def calibration(evaluation: Evaluation) -> Picture:
    """Observed frequency against predicted probability, with binomial bars; the diagonal is perfect.

    Where most predictions are near 0 or 1 the axes are in log-odds, or else all points would lie in two corners.
    """
    table = evaluation.calibration
    assert table is not None
    extreme = ((table.predicted < 0.1) | (table.predicted > 0.9)).mean() > 0.6
    least = max(float(np.minimum(table.predicted, 1 - table.predicted).min()), 1e-4) / 2

    def place(p: Any) -> Any:
        if not extreme:
            return np.asarray(p)
        p = np.clip(p, least, 1 - least)
        return np.log(p / (1 - p))

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        low, high = float(place(0.0)), float(place(1.0))
        edge = 0.03 * (high - low)
        ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.vlines(place(table.predicted), place(table.lower), place(table.upper), color=BLUE, linewidth=1.6)
        size = 14 + 90 * np.sqrt(table.n / table.n.max())
        ax.scatter(place(table.predicted), place(table.observed), s=size, color=BLUE, alpha=0.85, linewidth=0, zorder=3)
        ax.grid(color=FAINT)
        limits = (low - edge, high + edge)
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.set(xlabel="predicted probability", ylabel="observed frequency")
        if extreme:
            few = (1e-4, 0.01, 0.5, 0.99, 0.9999) if least < 1e-4 else (1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
            ticks = [p for p in few if least <= p <= 1 - least]
            ax.set_xticks(place(ticks), [f"{p:g}" for p in ticks])
            ax.set_yticks(place(ticks), [f"{p:g}" for p in ticks])

    words = "Axes are in log-odds." if extreme else ""
    return Picture("", draw(4.0, 3.9, paint, name="calibration"), words)


def learning_curve(trace: pd.DataFrame, *, noisy: bool = False) -> Picture:
    """What was left to gain after every step, on a logarithmic axis.

    ``noisy``: each step saw other rows, and the plain objective is drawn: a mean, in nats.
    """
    if noisy:
        return _noisy_curve(trace)
    best = trace.objective.max()
    left = (best - trace.objective).to_numpy()
    shown = left > max(abs(best) * 1e-15, 1e-12)

    def paint(figure: Any) -> None:
        from matplotlib.ticker import NullLocator

        ax = figure.add_subplot()
        ax.plot(trace.step[shown], left[shown], "-o" if shown.sum() <= 60 else "-", color=BLUE, markersize=3.5)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: power_of_ten(round(np.log10(value))))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xlim(-0.5, trace.step.max() + 0.5)
        ax.grid(axis="y")
        ax.set(xlabel="step", ylabel="nats below the end")
        ax.xaxis.get_major_locator().set_params(integer=True)

    return Picture("Learning curve", draw(7.2, 2.6, paint, name="learning"), "")


def _noisy_curve(trace: pd.DataFrame) -> Picture:
    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        smooth = trace.objective.rolling(max(1, len(trace) // 20), center=True, min_periods=1).mean()
        ax.plot(trace.step, trace.objective, color=BLUE, linewidth=0.8, alpha=0.4)
        ax.plot(trace.step, smooth, color=BLUE)
        ax.grid(axis="y")
        ax.set(xlabel="step", ylabel="mean log-likelihood, nats")
        ax.xaxis.get_major_locator().set_params(integer=True)

    words = "Each step saw other rows; the dark line is a running mean."
    return Picture("Learning curve", draw(7.2, 2.6, paint, name="learning"), words)

"""Networks that have places: one number for each way, drawn where the way is.

Both ways of a street would lie on each other: each is drawn to the right of its middle, as one drives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irlhf.drawing import INK, Picture, draw, warming
from irlhf.errors import ConfigError

MOST_LINES = 2500  # beyond, an image is embedded
WIDTH = 9.2  # inches, of all panels together

Floats = NDArray[np.float64]


def network_map(
    segments: Floats,
    panels: Mapping[str, Floats],
    *,
    title: str,
    what: str,
    caption: str = "",
    colors: Any = None,
    by_width: bool = False,
    bar: tuple[float, str] | None = None,
) -> Picture:
    """One or more maps side by side, with one scale of colors.

    Args:
        segments: [ways, 2 ends, 2] x and y of where each way starts and ends, in any unit that is the same for both.
        panels: [ways] numbers by the heading of their map; NaN: known to be there, without a number.
        what: the name of the numbers, beside the scale of colors.
        colors: a color map of matplotlib; default: from blue over gray to orange.
        by_width: whether ways with larger numbers (from 0 on) are wider as well.
        bar: (length, label) of a bar that shows how far that is.

    Raises:
        ConfigError: the numbers are not one for each segment, or matplotlib is not installed.
    """
    segments = np.asarray(segments, float)
    for name, values in panels.items():
        if segments.shape[1:] != (2, 2) or np.shape(values) != (len(segments),):
            raise ConfigError(
                f"{name!r} has numbers of shape {np.shape(values)} for segments of shape {segments.shape}; "
                "give segments [ways, 2, 2] and one number for each"
            )
    everything = np.concatenate([np.asarray(values, float) for values in panels.values()])
    limits = (0.0 if by_width else float(np.nanmin(everything)), float(np.nanmax(everything)))
    lines = to_the_right(segments)
    each = WIDTH / len(panels) if len(panels) > 1 else 7.2
    height = float(np.clip(each / aspect(segments), 2.5, 8.0))

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        scale = warming() if colors is None else colors
        for ax, (name, values) in zip(axes, panels.items(), strict=True):
            bundle = draw_lines(ax, lines, np.asarray(values, float), scale, limits=limits, by_width=by_width)
            ax.set_title(name if len(panels) > 1 else "")
        color_bar(figure, bundle, axes, what)
        if bar is not None:
            corner = segments.reshape(-1, 2).min(0)
            corner[1] -= 0.05 * np.ptp(segments.reshape(-1, 2)[:, 1])
            axes[0].plot([corner[0], corner[0] + bar[0]], [corner[1]] * 2, color=INK, linewidth=2)
            style = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes[0].annotate(bar[1], (corner[0] + bar[0] / 2, corner[1]), **style)
        for ax in axes[1:]:  # the bar belongs to the first, its room to all
            ax.set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())

    return Picture(title, draw(each * len(panels), height, paint, name=title), caption)


def to_the_right(ends: Floats) -> Floats:
    """Each way [ways, 2 ends, 2] a little to the right of itself; one that leads nowhere stays."""
    along = ends[:, 1] - ends[:, 0]
    length = np.hypot(*along.T)
    across = np.stack([along[:, 1], -along[:, 0]], 1) / np.where(length > 0, length, 1.0)[:, None]
    return ends + (0.006 * np.ptp(ends.reshape(-1, 2), axis=0).max() * across)[:, None]


def aspect(places: Floats) -> float:
    """Width divided by height of what has these places."""
    span = np.ptp(places.reshape(-1, 2), axis=0)
    return float((span[0] or 1) / (span[1] or 1))


def draw_lines(
    ax: Any,
    lines: Floats,
    values: Floats,
    colors: Any,
    *,
    limits: tuple[float, float] | None = None,
    by_width: bool = False,
) -> Any:
    """Lines colored by their numbers, the largest on top; returns what a color bar needs."""
    from matplotlib.collections import LineCollection

    known = np.isfinite(values)
    if by_width or not known.all():  # ways without a number, or with a small one, are there all the same
        faint = LineCollection(list(lines), colors=INK, linewidths=0.5, alpha=0.25, rasterized=len(lines) > MOST_LINES)
        ax.add_collection(faint)
    rank = np.flatnonzero(known)[np.argsort(values[known])]
    largest = np.nanmax(values) if limits is None else limits[1]
    bundle = LineCollection(
        list(lines[rank]),
        cmap=colors,
        array=values[rank],
        linewidths=5.0 * np.sqrt(np.maximum(values[rank], 0.0) / largest) if by_width else 2.2,
        capstyle="round" if by_width else "butt",
        rasterized=len(lines) > MOST_LINES,
    )
    if limits is not None:
        bundle.set_clim(*limits)
    ax.add_collection(bundle)
    ax.set(aspect="equal")
    ax.margins(0.06)
    ax.autoscale_view()
    ax.set_axis_off()
    return bundle


def color_bar(figure: Any, bundle: Any, ax: Any, what: str) -> None:
    bar = figure.colorbar(bundle, ax=ax, fraction=0.03, pad=0.02, aspect=30)
    bar.set_label(what)
    bar.outline.set_visible(False)

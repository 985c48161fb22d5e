"""What a reward looks like on the states of a tabular world, and what the policy does there.

What the states are decides how they are drawn: (row, column) pairs or the numbers of a grid make a map, integers along
which steps are short make a curve, states with given ``positions`` a network; anything else is sorted bars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irlhf.drawing import BLUE, CYCLE, DASHES, FAINT, GRADED, INK, ORANGE, Picture, draw, fading, ink_on, shorten
from irlhf.errors import ConfigError
from irlhf.worlds.tabular.maps import aspect, color_bar, draw_lines, to_the_right
from irlhf.worlds.tabular.views import View, grid_of, line_of, look

MOST_BARS = 12  # at either end
MOST_ARROWS = 900
MOST_VECTORS = 2500  # cells or edges; beyond, an image is embedded
MOST_ACTIONS = 6  # curves
MOST_COLUMNS = 30  # actions of a table

Floats = NDArray[np.float64]


def pictures(fit: Any, *, positions: Mapping[Any, Any] | None = None) -> list[Picture]:
    """The reward and the policy of a fit, drawn on the states of its tabular world.

    Args:
        fit: a :class:`irlhf.fit.Fit` with at least one term in a tabular world.
        positions: (x, y) of states by label, as from a layout of networkx: the states are drawn as a network there.

    Raises:
        ConfigError: no term has a tabular world, positions miss a state, or matplotlib is not installed.
    """
    view = look(fit)
    if positions is not None:
        return _network(view, positions)
    grid = grid_of(view.world)
    if grid is not None:
        return _map(view, *grid)
    line = line_of(view.world)
    return _bars(view) if line is None else _curve(view, line)


def _map(view: View, row: NDArray[np.int64], column: NDArray[np.int64]) -> list[Picture]:
    on_grid = row >= 0
    shape = (int(row.max()) + 1, int(column.max()) + 1)

    def field(values: Floats) -> Floats:
        result = np.full(shape, np.nan)
        result[row[on_grid], column[on_grid]] = values[on_grid]
        return result

    side = min(6.0, max(2.6, 0.62 * shape[1]))
    height = float(np.clip(side * shape[0] / shape[1], 1.6, 8.0))
    many = shape[0] * shape[1] > MOST_VECTORS

    def frame(figure: Any, values: Floats, colors: Any, what: str) -> Any:
        ax = figure.add_subplot()
        style = {"cmap": colors, "rasterized": many} | ({} if many else {"edgecolor": FAINT, "linewidth": 0.6})
        mesh = ax.pcolormesh(np.ma.masked_invalid(values), **style)
        ax.set(aspect="equal", xlabel="column", ylabel="row")
        for axis, n in ((ax.xaxis, shape[1]), (ax.yaxis, shape[0])):
            every = max(1, -(-n // 10))
            axis.set_ticks(np.arange(0, n, every) + 0.5, np.arange(0, n, every))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.invert_yaxis()
        bar = figure.colorbar(mesh, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(what)
        bar.outline.set_visible(False)
        return ax

    reward = field(view.state_reward)

    def paint_reward(figure: Any) -> None:
        ax = frame(figure, reward, GRADED, "reward")
        if reward.size <= 100:
            low, high = np.nanmin(reward), np.nanmax(reward)
            for (r, c), value in np.ndenumerate(reward):
                if np.isfinite(value):
                    color = ink_on((value - low) / ((high - low) or 1.0))
                    ax.text(
                        c + 0.5,
                        r + 0.5,
                        f"{value:.2f}".replace("-", "−"),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=color,
                    )

    size = (side + 1.4, height + 0.7)
    result = [Picture("Reward of the states", draw(*size, paint_reward, name="reward"), view.meaning)]
    if view.policy is not None:
        t, policy = view.world.transitions, view.policy
        share = policy[t.pair_of_outcome] * t.probability
        origin = t.state[t.pair_of_outcome]
        inside = on_grid[origin] & on_grid[t.next_state]
        moves = [
            np.bincount(origin, share * inside * (axis[t.next_state] - axis[origin]), minlength=t.n_states)
            for axis in (row, column)
        ]
        keep = on_grid & ~t.terminal
        every = int(np.ceil(np.sqrt(keep.sum() / MOST_ARROWS))) if keep.any() else 1
        keep &= (row % every == 0) & (column % every == 0)

        def paint_policy(figure: Any) -> None:
            ax = frame(figure, field(view.visits), fading(), "steps of the feedback")
            x, y = column[keep] + 0.5, row[keep] + 0.5
            down, right = (0.75 * every * m[keep] for m in moves)
            style = {"angles": "xy", "scale_units": "xy", "scale": 1, "pivot": "mid", "color": INK, "width": 0.006}
            ax.quiver(x, y, right, down, **style)

        caption = "Arrows: where the fitted policy moves on average; short where it stays or goes several ways. "
        result.append(Picture("Policy", draw(*size, paint_policy, name="policy"), caption + _toward(view)))
    return result


def _toward(view: View) -> str:
    return f"Destination: {view.context}." if view.world.destinations else "Shading: where the feedback went."


def _by_action(view: View, values: Floats) -> Floats:
    """[states, actions]; NaN where an action is not possible."""
    t = view.world.transitions
    result = np.full((t.n_states, len(view.world.actions)), np.nan)
    result[t.state, view.world.action_of_pair] = values
    return result


def _curve(view: View, number: NDArray[np.int64]) -> list[Picture]:
    order = np.argsort(number)
    x, actions = number[order], list(view.world.actions)
    reward = _by_action(view, view.pair_reward)[order]
    policy = None if view.policy is None else _by_action(view, view.policy)[order]
    weight = np.nan_to_num(reward * 0 + 1 if policy is None else policy) * (view.visits[order] + 1e-9)[:, None]
    drawn = np.sort(weight.sum(0).argsort()[::-1][:MOST_ACTIONS])

    def curves(ax: Any, values: Floats, *, legend: bool = True) -> None:
        for k, a in enumerate(drawn):
            name = shorten(actions[a], 24)
            ax.plot(x, values[:, a], color=CYCLE[k], linestyle=DASHES[k], label=name)
        if legend and len(drawn) > 1:
            ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)

    def paint(figure: Any) -> None:
        rows = 2 + (policy is not None)
        axes = figure.subplots(rows, 1, sharex=True, height_ratios=[3, 3, 1][-rows:])
        if view.on == "states":
            axes[0].plot(x, view.state_reward[order], color=BLUE)
        else:
            curves(axes[0], reward)
        axes[0].set_ylabel("reward")
        if policy is not None:
            curves(axes[1], policy, legend=view.on == "states")
            axes[1].set(ylabel="probability", ylim=(-0.03, 1.03))
        axes[-1].bar(x, view.visits[order], color=INK, alpha=0.35, width=0.9)
        axes[-1].set(ylabel="steps", xlabel="state")
        for ax in axes:
            ax.grid(axis="y")
            ax.set_axisbelow(True)
        figure.align_ylabels()

    title = "Reward" if policy is None else "Reward and policy along the states"
    caption = "Reward of each action" if view.on != "states" else "Reward of each state"
    caption += "; the policy it leads to" if policy is not None else ""
    caption += "; and where the feedback has steps."
    if len(drawn) < len(actions):
        caption += f" The {len(drawn)} actions taken most of {len(actions)}."
    return [Picture(title, draw(7.2, 4.6 if policy is not None else 3.0, paint, name="curve"), caption)]


def _network(view: View, positions: Mapping[Any, Any]) -> list[Picture]:
    labels = list(view.world.states)
    missing = [x for x in labels if x not in positions]
    if missing:
        raise ConfigError(f"positions has no entry for state {missing[0]!r} ({len(missing)} are missing); add them")
    place = np.array([positions[x] for x in labels], float)
    t = view.world.transitions
    # The likeliest outcome stands for a pair.
    order = np.lexsort((-t.probability, t.pair_of_outcome))
    target = t.next_state[order][t.first_outcome[:-1]]
    ends = np.stack([place[t.state], place[target]], 1)
    moving = (ends[:, 0] != ends[:, 1]).any(1)
    lines = to_the_right(ends)[moving]
    height = float(np.clip(6.2 / aspect(place), 2.5, 8.0))

    def painter(values: Floats, what: str, colors: Any) -> Any:
        def paint(figure: Any) -> None:
            ax = figure.add_subplot()
            bundle = draw_lines(ax, lines, values[moving], colors)
            if len(labels) <= 300:
                ax.plot(*place.T, "o", color=INK, markersize=2.5)
            if view.world.destinations:
                ax.plot(*positions[view.context], marker="*", color=ORANGE, markersize=14, linestyle="none")
            if len(labels) <= 30:
                for label, (x, y) in zip(labels, place, strict=True):
                    ax.annotate(shorten(label, 16), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
            color_bar(figure, bundle, ax, what)

        return paint

    star = f" The star is the destination {view.context}." if view.world.destinations else ""
    svg = draw(7.2, height, painter(view.pair_reward, "reward", GRADED), name="network")
    result = [Picture("Reward of the ways", svg, "Each line is one way from state to state, on its right-hand side.")]
    if view.policy is not None:
        svg = draw(7.2, height, painter(view.policy, "probability", fading()), name="flow")
        result.append(Picture("Policy", svg, "How likely each way is to be taken from where it starts." + star))
    return result


def _bars(view: View) -> list[Picture]:
    t, labels, actions = view.world.transitions, list(view.world.states), list(view.world.actions)
    by_state = view.on == "states"
    values = view.state_reward if by_state else view.pair_reward
    ranked = np.argsort(-values, kind="stable")
    ranked = ranked[np.isfinite(values[ranked])]
    cut = len(ranked) > 2 * MOST_BARS
    shown = np.concatenate([ranked[:MOST_BARS], ranked[-MOST_BARS:]]) if cut else ranked
    y = -np.arange(len(shown), dtype=float) - np.where(np.arange(len(shown)) >= MOST_BARS, float(cut), 0.0)

    def named(k: int) -> str:
        return (
            shorten(labels[k])
            if by_state
            else shorten(f"{labels[t.state[k]]}, {actions[view.world.action_of_pair[k]]}")
        )

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        colors = [BLUE if v >= 0 else ORANGE for v in values[shown]]
        ax.barh(y, values[shown], color=colors, height=0.72)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_yticks(y, [named(int(k)) for k in shown])
        if cut:
            ax.text(0, y[MOST_BARS - 1] - 1, "  ⋮", va="center")
        ax.set_ylim(y[-1] - 0.7, 0.7)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        ax.set_xlabel("reward")

    what = "states" if by_state else "actions in their states"
    few = (
        f"The {MOST_BARS} largest and {MOST_BARS} smallest of {len(ranked)} {what}." if cut else f"All {what}, sorted."
    )
    result = [Picture(f"Reward of the {what}", draw(7.2, 0.8 + 0.24 * (1 - y[-1]), paint, name="bars"), few)]
    if view.policy is not None and len(actions) <= MOST_COLUMNS:
        result.append(_table(view, labels, actions))
    return result


def _table(view: View, labels: list[Any], actions: list[Any]) -> Picture:
    """Probabilities of actions in the states where most was observed."""
    assert view.policy is not None
    often = [k for k in np.argsort(-view.visits, kind="stable")[:20] if not view.world.transitions.terminal[k]]
    grid = _by_action(view, view.policy)[often]

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        mesh = ax.pcolormesh(np.ma.masked_invalid(grid), cmap=fading(), vmin=0, edgecolor=FAINT, linewidth=0.6)
        names = [shorten(a, 18) for a in actions]
        turn = 90 if len(actions) * max(map(len, names)) > 60 else 0
        ax.set_xticks(np.arange(len(actions)) + 0.5, names, rotation=turn)
        ax.set_yticks(np.arange(len(often)) + 0.5, [shorten(labels[k], 28) for k in often])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.invert_yaxis()
        ax.set(xlabel="action", ylabel="state")
        bar = figure.colorbar(mesh, ax=ax, fraction=0.03, pad=0.02)
        bar.set_label("probability")
        bar.outline.set_visible(False)

    caption = (
        f"Probability of each action in the {len(often)} states that the feedback visits most; blank: not possible."
    )
    return Picture("Policy", draw(7.2, 1.6 + 0.24 * len(often), paint, name="table"), caption)

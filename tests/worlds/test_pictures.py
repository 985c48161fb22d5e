"""Pictures of tabular rewards: what the states are decides how they are drawn, and the numbers are the fit's."""

import re

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from irlhf import Term, comparisons, demonstrations, exact, fit_reward, listed
from irlhf.errors import ConfigError
from irlhf.worlds.tabular import (
    Linear,
    Tabular,
    edge_table,
    features,
    from_arrays,
    from_networkx,
    from_table,
    sample_paths,
)
from irlhf.worlds.tabular.pictures import pictures
from irlhf.worlds.tabular.views import grid_of, line_of, look
from tests.worlds.problems import replacement


def grid(rows: int, columns: int, label, **options):
    """Moves in four directions; bumping into the border stays."""
    moves = {"n": (-1, 0), "s": (1, 0), "w": (0, -1), "e": (0, 1)}
    table = [
        (label(r, c), a, label(min(max(r + y, 0), rows - 1), min(max(c + x, 0), columns - 1)))
        for r in range(rows)
        for c in range(columns)
        for a, (y, x) in moves.items()
    ]
    return from_table(pd.DataFrame(table, columns=["state", "action", "next_state"]), **options)


def fitted(world, reward, theta=None, *, contexts=None, start=0, steps=8, n=20):
    """A fit without a search: the pictures of given parameters."""
    policy = world.solve(reward, contexts or [None]).log_policy.detach()
    goals = None if contexts is None else [contexts[0]] * n
    paths = sample_paths(world, policy[:1], [world.states[start]] * n, destinations=goals, max_steps=steps, seed=0)
    term = Term(demonstrations(goals, paths), exact(world))
    from irlhf import LBFGS

    return fit_reward(reward, term, optimizer=LBFGS(max_steps=0, newton=0))


def texts(svg: str) -> list[str]:
    return [re.sub("<[^>]+>", "", t).strip() for t in re.findall(r"<text.*?</text>", svg, flags=re.S)]


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 12), (8, 3)])
def test_a_grid_is_known_by_its_labels_or_its_moves(rows, columns):
    expected = [(r, c) for r in range(rows) for c in range(columns)]
    for label in (lambda r, c: (r, c), lambda r, c: r * columns + c, lambda r, c: (r + 3, c - 1)):
        found = grid_of(grid(rows, columns, label, discount=0.9))
        assert found is not None
        world_order = sorted(range(len(expected)), key=lambda k: (found[0][k], found[1][k]))
        assert sorted(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
        assert len(world_order) == rows * columns


def test_numbers_are_a_line_only_if_steps_are_short():
    world, _ = replacement(90)
    assert grid_of(world) is None
    assert line_of(world).tolist() == list(range(90))
    rng = np.random.default_rng(0)
    names_only = from_arrays(rng.dirichlet(np.ones(100), size=(100, 2)), discount=0.9)
    assert grid_of(names_only) is None and line_of(names_only) is None


def test_the_view_has_the_numbers_of_the_fit():
    world, columns = replacement(12)
    fit = fitted(world, Linear(columns, [1.5, 4.0]))
    view = look(fit)
    with torch.no_grad():
        policy = world.solve(fit.reward).log_policy[0].exp().numpy()
    np.testing.assert_allclose(view.policy, policy)
    np.testing.assert_allclose(view.pair_reward, (columns.values @ torch.tensor([1.5, 4.0]).double()).numpy())
    # state 0: keeping costs nothing, replacing 4
    assert view.state_reward[0] == pytest.approx(-4 * policy[1])
    assert view.visits.sum() == 20 * 8 and view.on == "pairs"


def test_a_map_writes_its_rewards():
    world = grid(3, 4, lambda r, c: (r, c), discount=0.9)
    reward = Tabular(world)
    with torch.no_grad():
        reward.theta.copy_(torch.arange(12) / 10)
    shown = pictures(fitted(world, reward))
    assert [p.title for p in shown] == ["Reward of the states", "Policy"]
    assert {f"{k / 10:.2f}" for k in range(12)} <= set(texts(shown[0].svg))
    assert "Arrows" in shown[1].caption


def test_a_large_map_is_an_image():
    world = grid(60, 60, lambda r, c: (r, c), discount=0.5)
    shown = pictures(fitted(world, Tabular(world), n=3))
    assert "data:image/png" in shown[0].svg
    assert all(len(p.svg) < 500_000 for p in shown)


def test_a_line_has_a_curve_for_each_action():
    world, columns = replacement(12)
    (shown,) = pictures(fitted(world, Linear(columns, [1.5, 4.0])))
    assert {"0", "1", "reward", "probability", "steps", "state"} <= set(texts(shown.svg))


def test_a_network_is_drawn_at_its_positions():
    graph = nx.grid_2d_graph(3, 3)
    graph = nx.relabel_nodes(graph, {v: f"<n{v[0]}{v[1]}>" for v in graph})
    for k, (_, _, data) in enumerate(graph.edges(data=True)):
        data["length"] = 1.0 + k % 3
    world = from_networkx(graph)
    reward = Linear(features(world, edge_table(graph, ["length"])), [-2.0])
    fit = fitted(world, reward, contexts=["<n22>"])
    place = {label: (int(label[2]), int(label[3])) for label in world.states}
    shown = pictures(fit, positions=place)
    assert [p.title for p in shown] == ["Reward of the ways", "Policy"]
    assert "&lt;n00&gt;" in texts(shown[0].svg) and "<n22>" in shown[1].caption
    with pytest.raises(ConfigError, match=r"no entry for state '<n00>'"):
        pictures(fit, positions={})


def test_other_states_are_sorted_bars():
    rng = np.random.default_rng(0)
    names = [f"$s_{k}$ <b>" for k in range(30)]
    world = from_arrays(rng.dirichlet(np.ones(30), size=(30, 2)), states=names, actions=["a", "b"], discount=0.9)
    reward = Tabular(world)
    with torch.no_grad():
        reward.theta.copy_(torch.arange(30.0) / 30)
    bars, table = pictures(fitted(world, reward))
    labels = [t for t in texts(bars.svg) if t.startswith("$s_")]
    assert labels == [f"$s_{k}$ &lt;b&gt;" for k in [*range(29, 17, -1), *range(11, -1, -1)]]
    assert "12 largest and 12 smallest of 30" in bars.caption
    assert {"a", "b"} <= set(texts(table.svg))


def test_comparisons_alone_have_pictures():
    world, columns = replacement(12)
    paths = list(sample_paths(world, np.full(world.transitions.n_pairs, -np.log(2)), [0] * 8, max_steps=4, seed=0))
    fit = fit_reward(Linear(columns), Term(comparisons([None] * 4, paths[:4], paths[4:], [0, 1, 1, 0]), listed(world)))
    assert pictures(fit)

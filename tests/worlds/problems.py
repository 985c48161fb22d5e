"""Small worlds that several tests use."""

import networkx as nx
import numpy as np

from irlhf.worlds.tabular import Features, Linear, TabularWorld, features, from_arrays, from_networkx


def replacement(n: int = 20, discount: float = 0.95) -> tuple[TabularWorld, Features]:
    """Rust (1987) in small: mileage grows by 0, 1 or 2 bins a month; keeping costs, replacing starts over."""
    p = np.zeros((n, 2, n))
    for s in range(n):
        for step, chance in enumerate((0.35, 0.6, 0.05)):
            p[s, 0, min(s + step, n - 1)] += chance
            p[s, 1, step] += chance
    world = from_arrays(p, discount=discount)
    table = world.pair_table()
    keep = (table.action == 0).to_numpy()
    table["cost"] = np.where(keep, -0.1 * table.state.astype(float), 0.0)
    table["replace"] = np.where(keep, 0.0, -1.0)
    return world, features(world, table)


def random_world(seed: int, *, n_states: int = 6, n_actions: int = 3, **options) -> tuple[TabularWorld, Features]:
    """Every state has all actions, each with two or three outcomes; random features of pairs."""
    rng = np.random.default_rng(seed)
    p = rng.random((n_states, n_actions, n_states)) * (rng.random((n_states, n_actions, n_states)) < 0.5)
    p[..., 0] += 0.1
    p /= p.sum(-1, keepdims=True)
    world = from_arrays(p, **options)
    return world, features(world, rng.standard_normal((world.transitions.n_pairs, 3)), names=["a", "b", "c"])


def diamond() -> tuple[TabularWorld, Linear]:
    """A small acyclic network: seven ways from 0 to 5, lengths and tolls on the edges."""
    graph = nx.DiGraph()
    edges = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5), (1, 4)]
    for k, (u, v) in enumerate(edges):
        graph.add_edge(u, v, length=1.0 + (k * 7 % 5) / 2, toll=float(k % 3 == 0))
    world = from_networkx(graph)
    from irlhf.worlds.tabular import edge_table

    return world, Linear(features(world, edge_table(graph, ["length", "toll"])), [-0.8, -0.5])

"""Route choice on a street network (recursive logit; Fosgerau, Frejinger and Karlstrom 2013), many destinations.

Walkers cross a town of 100 corners, each to a destination of her own. All destinations are solved together, without a
discount: a route ends where it is going. The network is a networkx graph whose edges carry the features.

Left out: the routes are simulated here (`read_panel` reads real ones, with a column `context` for the destination);
turns, which need a graph whose nodes are streets; overlapping routes, which a recursive logit treats as independent.

    python recipes/routes.py                      # needs the extra: pip install "irlhf[graph]"
"""

import networkx as nx
import numpy as np

import irlhf
from irlhf.worlds.tabular import Linear, edge_table, features, from_networkx, sample_paths

rng = np.random.default_rng(0)
town = nx.convert_node_labels_to_integers(nx.grid_2d_graph(10, 10).to_directed(), label_attribute="corner")
for _, _, street in town.edges(data=True):
    street["length"] = rng.uniform(0.5, 1.5)
    street["main road"] = int(rng.random() < 0.2)
world = from_networkx(town)  # destinations=True: the context of a route is the label of the corner where it ends
table = features(world, edge_table(town, ["length", "main road"]).drop(columns="next_state"))

# The world nobody sees: 300 walkers, 15 destinations, a policy for each.
names = rng.choice(100, 15, replace=False).tolist()
going = [names[k] for k in rng.integers(0, len(names), 300)]
taste = Linear(table, [-2.0, -0.7])
policies = world.solve(taste, names).log_policy.detach()
routes = sample_paths(
    world,
    policies[[names.index(destination) for destination in going]],
    rng.choice(100, 300).tolist(),
    destinations=going,
    max_steps=1000,
    seed=1,
)

# What we do. An undiscounted sum over all routes is finite only if streets cost enough: start where it is.
everyone = irlhf.demonstrations(going, routes)
kept, held_out = everyone.split(0.2, by="context")  # whole destinations are held out
fit = irlhf.fit_reward(Linear(table), irlhf.Term(kept, irlhf.exact(world)), start={"length": -3.0})
print(fit.summary())
print(f"\nheld-out destinations: {fit.score(held_out).mean():.3f} nats a route, ", end="")
print(f"the true taste: {irlhf.Term(held_out, irlhf.exact(world)).log_prob(taste).mean():.3f}")

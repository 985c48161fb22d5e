"""Demonstrations and comparisons of the same thing, learned from together.

A courier crosses a grid of streets to one of its corners. We see 30 of her trips, and 600 answers of a colleague to
"which of these two trips was better?". The colleague has the same taste and a shakier hand: a temperature of his own.
One likelihood, two terms, so they simply add up.

Left out: the answers and trips are simulated (below, "the world nobody sees"); a real study would read them from files
(`irlhf.io`, `irlhf.worlds.tabular.read_panel`); nothing is held out; nobody asks whether the tastes are really one.

    python recipes/both.py
"""

import numpy as np
import pandas as pd

import irlhf
from irlhf.worlds.tabular import Linear, features, from_table, sample_paths

# Streets of a 6 x 6 grid, one way east and south; each has a length, and some have trees.
rng = np.random.default_rng(0)
streets = pd.DataFrame(
    [
        {"state": (i, j), "action": move, "next_state": (i + di, j + dj)}
        for i in range(6)
        for j in range(6)
        for move, di, dj in (("east", 0, 1), ("south", 1, 0), ("across", 1, 1))
        if i + di < 6 and j + dj < 6
    ]
)
world = from_table(streets)  # the last corner has no streets: there a trip ends, so no discount is needed
about = world.pair_table().assign(length=rng.uniform(1, 3, len(streets)), trees=rng.integers(0, 2, len(streets)))

# The world nobody sees: one taste, two ways to show it.
taste = Linear(features(world, about), [-1.0, 0.8])
log_policy = world.solve(taste).log_policy[0].detach().numpy()
home = [(0, 0)]
trips = sample_paths(world, log_policy, home * 30, max_steps=20, seed=1)
shown = [sample_paths(world, np.log(np.full(len(streets), 0.5)), home * 600, max_steps=20, seed=k) for k in (2, 3)]
worth = [taste(world.collate(home * 600, paths)).detach().numpy() for paths in shown]
answers = (worth[1] - worth[0] + 2.0 * rng.logistic(size=600) > 0).astype(int)  # his temperature is 2

# What we do: each term says what was seen, out of what it was chosen, and by what kind of person.
demonstrations = irlhf.Term(irlhf.demonstrations(home * 30, trips), irlhf.exact(world))
comparisons = irlhf.Term(
    irlhf.comparisons(home * 600, *shown, answers.tolist()), irlhf.listed(world), irlhf.Source(fit_temperature=True)
)
fit = irlhf.fit_reward(Linear(features(world, about)), [demonstrations, comparisons])
print(fit.summary())

# The same from the trips alone: the errors are larger. With a temperature of his own his answers cannot say how much
# she minds, only what she minds more: the error of `trees` shrinks, that of `length` hardly does.
alone = irlhf.fit_reward(Linear(features(world, about)), demonstrations)
errors = pd.DataFrame({"trips alone": alone.standard_errors(), "and comparisons": fit.standard_errors()})
print("\nstandard errors\n" + errors.loc[alone.params.index].round(3).to_string())

"""Replacing bus engines (Rust 1987): a reward from a panel of decisions, with transitions estimated from it.

Every month a bus has some mileage (90 bins of 5,000 miles), and somebody keeps its engine or replaces it. Keeping costs
more the older the engine is; replacing costs RC. The superintendent looks ahead: discount 0.9999.

Left out: the panel is simulated here, 50 buses for 10 years, instead of Rust's bus groups; buses do not differ; the
likelihood has two steps (transitions first, then the reward), and the standard errors are of the second step only.

    python recipes/replacement.py
"""

import numpy as np
import pandas as pd

import irlhf
from irlhf.worlds.tabular import Linear, features, from_table, sample_paths
from irlhf.worlds.tabular.estimate import estimate_transitions
from irlhf.worlds.tabular.panel import read_panel

BINS, BUSES, MONTHS, DISCOUNT = 90, 50, 120, 0.9999
STEP = {0: 0.35, 1: 0.60, 2: 0.05}  # bins of mileage added in a month


# The world nobody sees: its transitions, its costs, and the decisions that follow from them.
def transitions(step: dict[int, float]) -> pd.DataFrame:
    rows = [
        (bin, action, min((0 if action == "replace" else bin) + more, BINS - 1), p)
        for bin in range(BINS)
        for action in ("keep", "replace")
        for more, p in step.items()
    ]
    table = pd.DataFrame(rows, columns=["state", "action", "next_state", "probability"])
    return table.groupby(["state", "action", "next_state"], as_index=False)["probability"].sum()


def costs(world) -> pd.DataFrame:
    pairs = world.pair_table()
    keep = pairs["action"] == "keep"
    return pairs.assign(
        RC=np.where(keep, 0.0, -1.0), maintenance=np.where(keep, -0.001 * pairs["state"].astype(int), 0.0)
    )


truth = from_table(transitions(STEP), discount=DISCOUNT)
log_policy = truth.solve(Linear(features(truth, costs(truth)), [9.0, 3.0])).log_policy[0].detach()
walks = sample_paths(truth, log_policy, [0] * BUSES, max_steps=MONTHS, seed=0)
panel = pd.DataFrame(
    {
        "trajectory": np.repeat([f"bus {k}" for k in range(BUSES)], MONTHS),
        "step": np.tile(np.arange(MONTHS), BUSES),
        "state": walks.state,
        "action": walks.action,
        "next_state": walks.next_state,
    }
)

# What we do: read the panel, estimate the transitions as one table of increments, fit the costs.
feedback = read_panel(panel)
estimate = estimate_transitions(
    feedback.trajectories, pooling="increments", states=range(BINS), actions=["keep", "replace"], reset={"replace": 0}
)
print("increments:", {more: round(p, 3) for more, p in estimate.increments.items()})
print(f"log-likelihood of the transitions: {estimate.log_likelihood:.2f}\n")
world = from_table(estimate.table.drop(columns="count"), states=range(BINS), discount=DISCOUNT)
reward = Linear(features(world, costs(world)))
fit = irlhf.fit_reward(reward, irlhf.Term(feedback, irlhf.exact(world)))
print(fit.summary("sandwich", cluster="datum"))

# What it says: how likely a replacement is, by mileage.
chance = world.pair_table().assign(p=world.solve(reward).log_policy[0].exp().detach().numpy())
print("\nP(replace) by bin:", chance[chance["action"] == "replace"].set_index("state")["p"][::10].round(4).to_dict())

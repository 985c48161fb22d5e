"""econirl's maximum causal entropy IRL on the pinned grid; run by tabular.py in the peer's own environment.

Arguments: the demonstrations (npz with n, discount, states, actions and next_states [trajectories, steps]), the gap at
which to stop, the number of threads, at most so many iterations. Prints one JSON object.
"""

import json
import sys
import time

import jax
import numpy as np
import problem

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
from econirl.core.optimizer import minimize_lbfgsb  # noqa: E402
from econirl.core.types import DDCProblem, Panel  # noqa: E402
from econirl.estimation import mce_irl  # noqa: E402
from econirl.preferences.reward import LinearReward  # noqa: E402

data = np.load(sys.argv[1])
grid = problem.grid(int(data["n"]))
n_states = len(grid.arrival)
panel = Panel.from_numpy(
    data["states"].ravel(),
    data["actions"].ravel(),
    data["next_states"].ravel(),
    np.repeat(np.arange(len(data["states"])), data["states"].shape[1]),
)
reward = LinearReward(jnp.array(grid.features), [f"x{k}" for k in range(problem.FEATURES)], n_actions=problem.ACTIONS)
transitions = jnp.array(problem.dense(grid.arrival).transpose(1, 0, 2))  # [actions, states, states]

gap, most = float(sys.argv[2]), int(sys.argv[4])
evaluations = 0


class Reached(Exception):
    """The first parameters whose score is small enough."""


def minimize(fun, x0, **options):
    """Its own optimizer, left at the gap: its own rule ends on a relative change of the objective."""

    def watched(theta):
        global evaluations
        evaluations += 1
        value, gradient = fun(theta)
        if np.linalg.norm(gradient) <= gap * panel.num_observations:
            raise Reached(theta)
        return value, gradient

    return minimize_lbfgsb(watched, x0, **options | {"maxiter": most, "tol": 1e-9})


mce_irl.minimize_lbfgsb = minimize
estimator = mce_irl.MCEIRLEstimator(compute_se=False)
problem_of_peer = DDCProblem(num_states=n_states, num_actions=problem.ACTIONS, discount_factor=float(data["discount"]))
start = time.perf_counter()
try:
    estimator.estimate(panel, reward, problem_of_peer, transitions)
    raise SystemExit(f"stopped by itself, before a gap of {gap:g}")
except Reached as reached:
    seconds = time.perf_counter() - start
    theta = np.asarray(reached.args[0], float).tolist()
print(json.dumps({"seconds": seconds, "steps": evaluations, "theta": theta}))

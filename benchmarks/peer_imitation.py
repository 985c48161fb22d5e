"""imitation's maximum causal entropy IRL on the pinned grid; run by tabular.py in the peer's own environment.

Arguments: the demonstrations (npz with n, horizon and states [trajectories, horizon + 1]), the gap at which to stop,
the number of threads. Prints one JSON object.
"""

import json
import sys
import time

import numpy as np
import problem
import torch
from imitation.algorithms.mce_irl import MCEIRL
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from seals.base_envs import TabularModelPOMDP

torch.set_num_threads(int(sys.argv[3]))
demonstrations = np.load(sys.argv[1])
grid = problem.grid(int(demonstrations["n"]))
n_states = len(grid.arrival)
env = TabularModelPOMDP(
    transition_matrix=problem.dense(grid.arrival),
    observation_matrix=grid.features,
    reward_matrix=np.zeros(n_states),
    horizon=int(demonstrations["horizon"]),
    initial_state_dist=np.full(n_states, 1 / n_states),
)
reward = BasicRewardNet(
    env.observation_space, env.action_space, hid_sizes=(), use_action=False, use_next_state=False, use_done=False
)
for parameter in reward.parameters():
    torch.nn.init.zeros_(parameter)
states = demonstrations["states"]
occupancy = np.bincount(states.ravel(), minlength=n_states) / len(states)
steps = 0


class Counting(torch.optim.Adam):
    def step(self, closure=None):
        global steps
        steps += 1
        return super().step(closure)


start = time.perf_counter()
learner = MCEIRL(
    occupancy,
    env,
    reward,
    np.random.default_rng(0),
    optimizer_cls=Counting,
    optimizer_kwargs={"lr": 0.1},
    linf_eps=0.0,
    grad_l2_eps=float(sys.argv[2]),
    log_interval=1,
    custom_logger=logger.configure(None, ["stdout"]),
)
learner.train(max_iter=int(sys.argv[4]))
seconds = time.perf_counter() - start
theta = reward.get_parameter("mlp.dense_final.weight").detach().numpy().ravel().tolist()
print(json.dumps({"seconds": seconds, "steps": steps, "theta": theta}))

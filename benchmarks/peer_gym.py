"""imitation's SQIL and GAIL on CartPole; run by gym.py in the peer's own environment.

Arguments: sqil or gail, demonstrations (npz as imitation saves them), steps of the environment, the return to reach,
the seed. Prints one JSON object: seconds until 20 episodes reach it (looked at now and then, off the clock).
"""

import itertools
import json
import sys
import time

import gymnasium
import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.algorithms.sqil import SQIL
from imitation.data.types import Trajectory
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from imitation.util.networks import RunningNorm
from imitation.util.util import make_vec_env
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

torch.set_num_threads(1)
name, path, steps, goal, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
data = np.load(path)
cuts = [0, *data["indices"].tolist(), len(data["acts"])]
demonstrations = [
    Trajectory(data["obs"][a + k : b + k + 1], data["acts"][a:b], None, terminal=True)
    for k, (a, b) in enumerate(itertools.pairwise(cuts))
]
torch.manual_seed(seed)
np.random.seed(seed)  # noqa: NPY002 (what the peer draws from)
judge = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])
quiet = logger.configure(None, [])
if name == "sqil":
    learner = SQIL(
        venv=DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]),
        demonstrations=demonstrations,
        policy="MlpPolicy",
        custom_logger=quiet,
        rl_kwargs={"seed": seed},
    )
    stretch, policy, train = 500, lambda: learner.policy, lambda n: learner.train(total_timesteps=n)
else:
    venv = make_vec_env("CartPole-v1", rng=np.random.default_rng(seed), n_envs=8)
    net = BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm)
    ppo = PPO("MlpPolicy", venv, n_steps=256, batch_size=64, ent_coef=0.0, learning_rate=4e-4, n_epochs=5, seed=seed)
    learner = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=1024,
        gen_replay_buffer_capacity=512,
        n_disc_updates_per_round=8,
        venv=venv,
        gen_algo=ppo,
        reward_net=net,
        allow_variable_horizon=True,
        custom_logger=quiet,
    )
    stretch, policy, train = 2048, lambda: ppo.policy, lambda n: learner.train(n)
taken = done = 0.0
reached, best = None, 0.0
while done < steps and reached is None:
    begin = time.perf_counter()
    train(stretch)
    taken += time.perf_counter() - begin
    done += stretch
    mean = float(evaluate_policy(policy(), judge, n_eval_episodes=20)[0])
    best = max(best, mean)
    if mean >= goal:
        reached = taken
print(json.dumps({"seconds": reached, "all_seconds": taken, "steps": done, "best": best}))

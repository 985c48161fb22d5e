"""Gymnasium environments: rewards from demonstrations and preferences, and policies that reach the expert.

world = gym.GymWorld("CartPole-v1", seen=demonstrations)
fit, learned = fit_jointly(gym.NeuralReward(world), gym.GymPolicy(world), Term(demonstrations, variational(world),
                           Source(temperature=0.05)), world)
"""

from irlhf.worlds.gym.batch import GymBatch
from irlhf.worlds.gym.cloning import clone
from irlhf.worlds.gym.distance import epic
from irlhf.worlds.gym.episodes import Episode, Episodes
from irlhf.worlds.gym.judging import energy_distance, gap_from_below, judged, log_likelihood, returns
from irlhf.worlds.gym.policies import Function, GymPolicy, UniformPolicy
from irlhf.worlds.gym.reading import read, save
from irlhf.worlds.gym.rewards import ConstantReward, LinearReward, NeuralReward, PaidReward
from irlhf.worlds.gym.saving import load_policy, load_reward, save_policy, save_reward
from irlhf.worlds.gym.world import GymWorld
from irlhf.worlds.gym.wrappers import RewardWrapper, VectorRewardWrapper

__all__ = [
    "ConstantReward",
    "Episode",
    "Episodes",
    "Function",
    "GymBatch",
    "GymPolicy",
    "GymWorld",
    "LinearReward",
    "NeuralReward",
    "PaidReward",
    "RewardWrapper",
    "UniformPolicy",
    "VectorRewardWrapper",
    "clone",
    "energy_distance",
    "epic",
    "gap_from_below",
    "judged",
    "load_policy",
    "load_reward",
    "log_likelihood",
    "read",
    "returns",
    "save",
    "save_policy",
    "save_reward",
]

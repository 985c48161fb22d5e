"""Gymnasium environments: rewards from demonstrations and preferences, and policies that reach the expert."""

from irlhf.worlds.gym.batch import GymBatch
from irlhf.worlds.gym.episodes import Episode, Episodes
from irlhf.worlds.gym.policies import GymPolicy, UniformPolicy
from irlhf.worlds.gym.world import GymWorld

__all__ = ["Episode", "Episodes", "GymBatch", "GymPolicy", "GymWorld", "UniformPolicy"]

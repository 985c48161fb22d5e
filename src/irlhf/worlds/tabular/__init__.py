"""The tabular world: Markov decision processes and graphs, solved exactly."""

from irlhf.worlds.tabular.build import edge_table, from_arrays, from_gymnasium, from_networkx, from_table
from irlhf.worlds.tabular.distance import distances, policy_regret
from irlhf.worlds.tabular.draws import Start
from irlhf.worlds.tabular.estimate import estimate_transitions
from irlhf.worlds.tabular.features import Features, features
from irlhf.worlds.tabular.load import load
from irlhf.worlds.tabular.panel import read_features, read_panel, read_transitions, write_panel
from irlhf.worlds.tabular.paths import UNKNOWN, Path, Paths
from irlhf.worlds.tabular.policies import BasePolicy, GreedyPolicy, SoftmaxPolicy, SoftPolicy, StateValues
from irlhf.worlds.tabular.regret import optimum, regret
from irlhf.worlds.tabular.rewards import Linear, Neural, Shaped, Tabular
from irlhf.worlds.tabular.sampling import enumerate_paths, sample_paths
from irlhf.worlds.tabular.solution import SoftValues
from irlhf.worlds.tabular.trajectories import parse_trajectory, trajectory_json
from irlhf.worlds.tabular.whatif import WhatIf, changed, whatif
from irlhf.worlds.tabular.world import TabularBatch, TabularWorld

__all__ = [
    "UNKNOWN",
    "BasePolicy",
    "Features",
    "GreedyPolicy",
    "Linear",
    "Neural",
    "Path",
    "Paths",
    "Shaped",
    "SoftPolicy",
    "SoftValues",
    "SoftmaxPolicy",
    "Start",
    "StateValues",
    "Tabular",
    "TabularBatch",
    "TabularWorld",
    "WhatIf",
    "changed",
    "distances",
    "edge_table",
    "enumerate_paths",
    "estimate_transitions",
    "features",
    "from_arrays",
    "from_gymnasium",
    "from_networkx",
    "from_table",
    "load",
    "optimum",
    "parse_trajectory",
    "policy_regret",
    "read_features",
    "read_panel",
    "read_transitions",
    "regret",
    "sample_paths",
    "trajectory_json",
    "whatif",
    "write_panel",
]

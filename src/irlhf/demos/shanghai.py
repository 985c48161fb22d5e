"""Taxi routes in Shanghai: 714 links of streets, and which of them taxis with passengers took.

Zhao and Liang (2022), "A deep inverse reinforcement learning approach to route choice modeling with context-dependent
rewards", arXiv 2206.10598; the files are the ``data/`` of their repository RCM-AIRL. They come without a license, so
they are not part of this package: a folder that holds them is named by an environment variable.

A state is a link, an action a turn into a next link, and a route goes from the link where it starts to the link where
it ends, whose number is its context. The files have only routes of 15 links or more that pass no link twice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irlhf import Feedback, demonstrations
from irlhf.errors import ConfigError
from irlhf.worlds.tabular import Features, Path, TabularWorld, features, from_table

VARIABLE = "IRLHF_DATA"
FOLDER = "shanghai_taxi"
NETWORK = ("edge.txt", "node.txt", "transit.npy")
TEST = "test_CV0.csv"
SIZES = (100, 1000, 10_000)
TURNS = ("ahead", "half right", "right", "sharp right", "back", "sharp left", "left", "half left")  # actions 0 to 7
CLASSES = ("residential", "primary", "secondary", "tertiary", "unclassified")  # and, rarely, others
# Beyond how many degrees a turn is a left or a right one. Of 46 to 59, this has the highest likelihood of the 1,000
# routes to train on; the likelihood jumps wherever a busy junction changes sides.
LEAST_TURN = 52.0


@dataclass(frozen=True, eq=False)
class Shanghai:
    """The network and the routes.

    ``eight`` are the features of the field's linear models; ``many`` describe the same turns and links in full, each
    with mean 0 and standard deviation 1. ``segments`` [links, 2 ends, 2] are the ends of each link, in meters.
    """

    world: TabularWorld
    eight: Features
    many: Features
    train: dict[int, Feedback]
    test: Feedback
    length: NDArray[np.float64]  # [links] in units of 100 m
    segments: NDArray[np.float64]


def load() -> Shanghai:
    """Reads network and routes from the folder that ``IRLHF_DATA`` names.

    Raises:
        ConfigError: the variable is not set, or the folder has not got the files.
    """
    folder = find()
    links: Any = pd.read_csv(folder / "edge.txt").sort_values("n_id").reset_index(drop=True)
    nodes = pd.read_csv(folder / "node.txt").set_index("osmid")
    transit = np.load(folder / "transit.npy", allow_pickle=False).astype(int)  # [turns] link, action, next link
    start, end = (_meters(nodes, links[node]) for node in "uv")
    table = pd.DataFrame(
        {"state": transit[:, 0], "action": np.array(TURNS)[transit[:, 1]], "next_state": transit[:, 2]}
    )
    world = from_table(table, destinations=True)
    eight, many = _columns(links, end - start, transit[:, 0], transit[:, 2])
    keys = table[["state", "action"]]
    turn = dict(zip(zip(table["state"], table["next_state"], strict=True), table["action"], strict=True))
    return Shanghai(
        world=world,
        eight=features(world, keys.assign(**eight)),
        many=features(world, keys.assign(**many)).standardized(),
        train={size: _routes(folder / f"train_CV0_size{size}.csv", turn) for size in SIZES},
        test=_routes(folder / TEST, turn),
        length=links["length"].to_numpy() / 100,
        segments=np.stack([start, end], axis=1),
    )


def find() -> File:
    """The folder with the files. Raises ConfigError with what to do where it is missing."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise ConfigError(
            f"this demo reads taxi routes that are not part of irlhf; set {VARIABLE} to a folder that has {FOLDER} in "
            "it: the files of data/ in github.com/liangchunyaobing/RCM-AIRL"
        )
    folder = File(named) / FOLDER
    files = (*NETWORK, TEST, *(f"train_CV0_size{size}.csv" for size in SIZES))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{VARIABLE} is set, but {folder} has no {missing[0]}; {len(missing)} files are missing")
    return folder


def _meters(nodes: Any, osmid: Any) -> NDArray[np.float64]:
    """[links, 2] How far east and north of the middle of the map each node is."""
    middle = nodes[["x", "y"]].to_numpy().mean(0)
    per_degree = 111_320.0 * np.array([np.cos(np.radians(middle[1])), 1.0])
    return (nodes.loc[osmid, ["x", "y"]].to_numpy() - middle) * per_degree


def _columns(
    links: Any, along: NDArray[np.float64], here: NDArray[np.int64], following: NDArray[np.int64]
) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """The features of each turn from link ``here`` to link ``following``: (eight of them, many of them).

    ``along`` [links, 2] points from where a link starts to where it ends. The column ``cnt`` of the file counts the
    taxis on a link, test routes among them: it is not used.
    """
    heading = np.degrees(np.arctan2(along[:, 1], along[:, 0]))
    angle = (heading[following] - heading[here] + 180) % 360 - 180  # positive is to the left
    back = (links["u"].to_numpy()[here] == links["v"].to_numpy()[following]).astype(float)
    left, right = (((sign * angle > LEAST_TURN) & (back == 0)).astype(float) for sign in (1, -1))
    length, kind = links["length"].to_numpy() / 100, links["highway"].to_numpy()
    eight = {
        "length/100 m": length[following],
        "constant": np.ones(len(here)),
        "left": left,
        "right": right,
        "u-turn": back,
        **{name: (kind[following] == name).astype(float) for name in CLASSES[:3]},
    }
    lanes = np.asarray(pd.to_numeric(links["lanes"], errors="coerce"), float)
    ways = np.bincount(here, minlength=len(links)).astype(float)
    many = {
        "length": length[following],
        "left": left,
        "right": right,
        "back": back,
        "sine of turn": np.where(back > 0, 0.0, np.sin(np.radians(angle))),
        "cosine of turn": np.cos(np.radians(angle)),
        "ways here": ways[here],
        "ways next": ways[following],
        "one way": links["oneway"].to_numpy()[following].astype(float),
        "lanes": np.nan_to_num(lanes)[following],
        "lanes unknown": np.isnan(lanes)[following].astype(float),
        **{name: (kind[following] == name).astype(float) for name in CLASSES},
        **{f"from {name}": (kind[here] == name).astype(float) for name in CLASSES},
        "from length": length[here],
    }
    return eight, many


def _routes(file: File, turn: dict[tuple[int, int], str]) -> Feedback:
    """Each row of a file as a demonstration whose context is the link where it ends."""
    links = [tuple(map(int, path.split("_"))) for path in pd.read_csv(file)["path"]]
    paths = [Path(route, tuple(turn[step] for step in pairwise(route))) for route in links]
    return demonstrations([route[-1] for route in links], paths, source="routes")

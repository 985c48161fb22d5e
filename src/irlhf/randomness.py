"""Keyed randomness: what is drawn depends on *what it is for*, never on what was drawn before.

A :class:`Key` names a stream, for example ``Key(seed).at(step, "rivals", datum_id)``. The same name gives the same
numbers in any process, in any order, on any number of processes; so a run resumed at step k needs no generator state.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from hashlib import blake2b
from typing import SupportsIndex

import numpy as np
import torch

Part = int | str  # one part of a name: a step, the name of a stream, the id of a row
_MT_WORDS = 624  # the state of a Mersenne twister


@dataclass(frozen=True)
class Key:
    """The name of a stream of random numbers: a seed and a path of integers and strings.

    >>> key = Key(0).at(3, "rivals", "trip-17")
    >>> key == Key(0).at(3).at("rivals").at("trip-17")
    True
    >>> bool(key.numpy().random() == key.numpy().random())  # a key has no state: draw all you need from one generator
    True
    """

    seed: int = 0
    path: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _integer(self.seed, "a seed"))
        object.__setattr__(self, "path", tuple(_part(part) for part in self.path))

    def at(self, *path: SupportsIndex | str) -> Key:
        """The key of a part of this one; ``key.at(a, b)`` is ``key.at(a).at(b)``, and 1 is not "1".

        Raises TypeError for parts that are neither integers nor strings (a float or a tensor has no stable name).
        """
        return Key(self.seed, self.path + tuple(_part(part) for part in path))

    def bits(self, n: int = 64) -> int:
        """A non-negative integer of ``n`` <= 512 bits, fixed by the key (n a multiple of 8)."""
        state = _hash(b"irlhf", _encode(self.seed))
        for part in self.path:  # a chain, so that a key's children are a function of the key alone
            state = _hash(state, _encode(part))
        return int.from_bytes(blake2b(state, digest_size=n // 8, person=b"bits").digest(), "little")

    def numpy(self) -> np.random.Generator:
        """A new numpy generator (Philox, 128 bits of key) at the start of this stream."""
        return np.random.Generator(np.random.Philox(key=self.bits(128)))

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new torch generator at the start of this stream. CPU and GPU streams of one key differ."""
        generator = torch.Generator(device)
        generator.manual_seed(self.bits(64))
        if generator.device.type == "cpu":
            _fill_mersenne_twister(generator, self.numpy())
        return generator


def _fill_mersenne_twister(generator: torch.Generator, source: np.random.Generator) -> None:
    # torch's CPU generator keeps only the low 32 bits of its seed: among 100,000 keys about one pair would share all
    # of its numbers. So the whole state is filled. Its layout (seed; left, seeded; next; 624 words) is checked first.
    state = generator.get_state()
    words = state.view(torch.int64)[3 : 3 + _MT_WORDS]
    if int(words[0]) != generator.initial_seed() & 0xFFFFFFFF:
        raise RuntimeError(f"torch {torch.__version__} lays out the state of its CPU generator in a new way")
    words.copy_(torch.from_numpy(source.integers(0, 2**32, _MT_WORDS, dtype=np.int64)))
    generator.set_state(state)


def _hash(state: bytes, part: bytes) -> bytes:
    return blake2b(part, key=state, digest_size=64).digest()


def _encode(part: Part) -> bytes:
    return b"i%d" % part if isinstance(part, int) else b"s" + part.encode("utf-8", "surrogatepass")


def _part(part: object) -> Part:
    # str(...) because a numpy string or an Enum compares equal to its value and must name the same stream
    return str.__str__(part) if isinstance(part, str) else _integer(part, "a part of a key")


def _integer(value: object, what: str) -> int:
    if isinstance(value, bool | np.bool_ | torch.Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} is an integer or (in a path) a string, but {value!r} was given; convert it first")
    return operator.index(value)  # pyright: ignore[reportArgumentType]

"""The dynamics of a finite world, sparse: states, the pairs (state, action) they offer, the outcomes of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from irlhf.functional import kernels


class Pattern(NamedTuple):
    """What the compiled loops read: the world, and where the state-to-state matrix of any policy may be nonzero.

    Averaged over a policy, the outcomes of a state's pairs that share a next state merge: outcome o of state s adds to
    entry ``row_start[s] + slot[o]``. The entries of state s are ``row_start[s] : row_start[s + 1]`` (compressed sparse
    rows, sorted; the diagonal is always among them).
    """

    first_pair: NDArray[np.uint32]  # [states + 1]
    first_outcome: NDArray[np.uint32]  # [pairs + 1]
    probability: NDArray[np.float64]  # [outcomes]
    row_start: NDArray[np.uint32]  # [states + 1]
    column: NDArray[np.uint32]  # [entries]
    slot: NDArray[np.uint32]  # [outcomes]
    diagonal: NDArray[np.uint32]  # [states]


@dataclass(frozen=True, eq=False)
class Transitions:
    """A Markov decision process in compressed sparse rows: outcome -> pair -> state.

    Three levels of numbering, each sorted by the one above, so that every sum over a level is a contiguous reduction:

    * states ``0 .. n_states - 1``;
    * pairs ``0 .. n_pairs - 1``: the admissible (state, action) combinations; ``state[pair]`` does not decrease;
    * outcomes ``0 .. n_outcomes - 1``: (pair, next state) of positive probability; the outcomes of pair p are
      ``first_outcome[p] : first_outcome[p + 1]``.

    A state without pairs is terminal. Nothing of size [states, actions, states] is ever formed.
    """

    n_states: int
    state: NDArray[np.int64]  # [pairs]
    first_outcome: NDArray[np.int64]  # [pairs + 1]
    next_state: NDArray[np.int64]  # [outcomes]
    probability: NDArray[np.float64]  # [outcomes]

    def __post_init__(self):
        if self.n_pairs and (np.any(np.diff(self.state) < 0) or self.state[0] < 0 or self.state[-1] >= self.n_states):
            raise ValueError("pairs must be sorted by state, with states in 0 .. n_states - 1")
        if len(self.first_outcome) != self.n_pairs + 1 or self.first_outcome[0] != 0:
            raise ValueError(f"first_outcome needs n_pairs + 1 = {self.n_pairs + 1} entries starting at 0")
        if np.any(np.diff(self.first_outcome) < 1) or self.first_outcome[-1] != len(self.next_state):
            raise ValueError("every pair needs at least one outcome, and first_outcome must end at the last outcome")
        if len(self.next_state) and (self.next_state.min() < 0 or self.next_state.max() >= self.n_states):
            raise ValueError("next_state must lie in 0 .. n_states - 1")
        if not np.all(self.probability > 0):
            raise ValueError("outcomes must have positive probability; leave out those of probability 0")
        if self.n_pairs:
            total = np.add.reduceat(self.probability, self.first_outcome[:-1])
            if not np.allclose(total, 1.0, rtol=0, atol=1e-6):
                worst = int(np.argmax(np.abs(total - 1)))
                raise ValueError(f"the probabilities of pair {worst} (state {self.state[worst]}) sum to {total[worst]}")

    @property
    def n_pairs(self) -> int:
        return len(self.state)

    @property
    def n_outcomes(self) -> int:
        return len(self.next_state)

    @cached_property
    def first_pair(self) -> NDArray[np.int64]:
        """[states + 1] The pairs of state s are ``first_pair[s] : first_pair[s + 1]``."""
        return np.searchsorted(self.state, np.arange(self.n_states + 1)).astype(np.int64)

    @cached_property
    def pair_of_outcome(self) -> NDArray[np.int64]:
        """[outcomes]"""
        return np.repeat(np.arange(self.n_pairs), np.diff(self.first_outcome))

    @cached_property
    def terminal(self) -> NDArray[np.bool_]:
        """[states] True where no action is possible."""
        return np.diff(self.first_pair) == 0

    @cached_property
    def deterministic(self) -> bool:
        return self.n_outcomes == self.n_pairs

    @cached_property
    def matrix(self) -> sp.csr_array:
        """[pairs, states] The transition probabilities."""
        shape = (self.n_pairs, self.n_states)
        return sp.csr_array((self.probability, self.next_state, self.first_outcome), shape=shape)

    @cached_property
    def pattern(self) -> Pattern:
        """The world for the compiled loops; per policy, several times fewer entries than outcomes."""
        if self.n_outcomes + self.n_states >= 2**31:
            raise ValueError(f"{self.n_outcomes} outcomes are more than the solvers can index (2^31)")
        merged = kernels.merge_outcomes(self.first_pair, self.first_outcome, self.next_state, self.n_states)
        small = self.first_pair.astype(np.uint32), self.first_outcome.astype(np.uint32)
        return Pattern(*small, np.ascontiguousarray(self.probability, np.float64), *merged)

    @cached_property
    def arrivals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([states + 1], [outcomes]) The pairs that may lead to state s are ``pair[first[s] : first[s + 1]]``."""
        order = np.argsort(self.next_state, kind="stable")
        first = np.searchsorted(self.next_state[order], np.arange(self.n_states + 1)).astype(np.int64)
        return first, self.pair_of_outcome[order]

    def by_outcome(self) -> Transitions:
        """The world in which nature's draw is part of the choice: every outcome becomes a deterministic pair.

        The soft values of this world, with ``log p`` in the base measure, are the *anticipative* log partition
        functions of the original one (Ziebart et al. 2008).
        """
        return self if self.deterministic else self._by_outcome

    @cached_property
    def _by_outcome(self) -> Transitions:
        return Transitions(
            n_states=self.n_states,
            state=self.state[self.pair_of_outcome],
            first_outcome=np.arange(self.n_outcomes + 1),
            next_state=self.next_state,
            probability=np.ones(self.n_outcomes),
        )

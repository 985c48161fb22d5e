"""Linear systems with A = I - discount * P_policy, and with its transpose: direct or iterative, never unchecked."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg.blas import dnrm2  # pyright: ignore[reportAttributeAccessIssue]
from scipy.linalg.lapack import dgetrf, dgetrs  # pyright: ignore[reportAttributeAccessIssue]
from scipy.sparse.linalg import splu

from irlhf.functional import krylov
from irlhf.functional.transitions import Pattern

Method = Literal["dense", "sparse", "krylov"]
Vector = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
REFINEMENTS = 6  # each must halve the residual
STALLED = 1e-11  # refinement may end at this residual, relative to the right-hand side and the solution together
PATIENCE = 400  # BiCGSTAB iterations; a factorization is cheaper than more


class DivergesError(ArithmeticError):
    """The sum over trajectories is infinite (or no policy ends them): there is no value at these utilities."""


def choose_method(pattern: Pattern, discount: float) -> Method:
    """By what was fastest on grids, chains and road networks of 80 to 100,000 states.

    With a discount up to 0.99999 the iterative solver won at every size. Without one the systems may be as good as
    singular, and a factorization says so.
    """
    n_states, entries = len(pattern.diagonal), len(pattern.column)
    if discount < 1 or n_states > 30_000:
        return "krylov"
    return "dense" if n_states <= 150 or (n_states <= 3000 and entries > 0.05 * n_states**2) else "sparse"


class PolicyMatrix:
    """A = I - K with K = discount * P_policy >= 0 of row sums at most 1 (an M-matrix wherever it is not singular).

    ``factor`` may be that of a *near* matrix (an earlier Newton step's): solutions are refined until the residual of
    the true matrix is small, and it is replaced when refinement does not pay.
    """

    def __init__(self, pattern: Pattern, flow: Vector, method: Method):
        self.pattern, self.flow, self.method = pattern, flow, method
        self.factor: Factor | None = None

    def times(self, x: Vector, transposed: bool = False) -> Vector:
        """A x or A' x: [states] -> [states]."""
        out = np.empty_like(x)
        krylov.remain(self.pattern.row_start, self.pattern.column, self.flow, x, transposed, out)
        return out

    def solve(self, b: Vector, *, transposed: bool = False, rtol: float = 1e-13) -> Vector:
        """x with |b - A x| <= rtol |b| in the 2-norm, or down to rounding (8 eps |x|).

        Raises:
            DivergesError: A is singular to working precision.
        """
        if not np.any(b):
            return np.zeros_like(b)
        if self.method == "krylov":
            x = self._iterate(b, transposed, rtol)
            if x is not None:
                return x
            self.method = "sparse"  # BiCGSTAB broke down or stalled
        return self._refine(b, transposed, rtol)

    def _iterate(self, b: Vector, transposed: bool, rtol: float) -> Vector | None:
        pattern, x, rest, change = self.pattern, np.zeros_like(b), b, np.empty_like(b)
        norm = size = dnrm2(b)
        left = PATIENCE
        while left > 0:  # again, because the solver looks at another residual, and its own drifts from the true one
            reduction = 0.5 * max(rtol * size, 8 * EPS * dnrm2(x)) / norm
            used = krylov.bicgstab(
                pattern.row_start, pattern.column, self.flow, pattern.diagonal,
                rest, reduction, left, transposed, change,
            )  # fmt: skip
            left -= max(used, 1)
            x = x + change
            rest = b - self.times(x, transposed)
            before, norm = norm, dnrm2(rest)
            if norm <= max(rtol * size, 8 * EPS * dnrm2(x)):
                return x
            if not norm < before:
                break
        return None

    def _refine(self, b: Vector, transposed: bool, rtol: float) -> Vector:
        fresh = self.factor is None
        factor = self.factor = self.factor or factorize(self)
        x, rest, size = np.zeros_like(b), b, dnrm2(b)
        norm = size
        for _ in range(REFINEMENTS):
            x = x + factor.solve(rest, transposed)
            rest = b - self.times(x, transposed)
            before, norm = norm, dnrm2(rest)
            if norm <= max(rtol * size, 8 * EPS * dnrm2(x)):
                return x
            if not norm < (0.5 if fresh else 0.2) * before:
                break
        if not fresh:
            self.factor = None
            return self._refine(b, transposed, rtol)
        if norm <= min(1e-6 * size, STALLED * (size + dnrm2(x))):
            return x  # as good as rounding allows
        raise DivergesError("the policy's transition matrix is singular: it does not end its trajectories")


class Factor:
    """A factorization of A; ``solve`` takes [states] or [states, k]."""

    def __init__(self, solve):
        self._solve = solve

    def solve(self, b: Vector, transposed: bool) -> Vector:
        return self._solve(b, transposed)


def factorize(matrix: PolicyMatrix) -> Factor:
    """LU without a need for pivoting: eliminating in an M-matrix only ever adds nonnegative numbers.

    Raises:
        DivergesError: a pivot is zero.
    """
    pattern = matrix.pattern
    entries = -matrix.flow
    entries[pattern.diagonal] += 1.0
    n = len(pattern.diagonal)
    layout = (entries, pattern.column.view(np.int32), pattern.row_start.view(np.int32))
    if matrix.method == "dense":
        full = sp.csr_array(layout, shape=(n, n)).toarray()
        lu, pivots, info = dgetrf(full.T)  # Fortran order without a copy: this is the transpose
        if info != 0:
            raise DivergesError("the policy's transition matrix is singular: it does not end its trajectories")
        return Factor(lambda b, transposed: dgetrs(lu, pivots, b, trans=0 if transposed else 1)[0])
    flipped = sp.csc_array(layout, shape=(n, n))  # the transpose, again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lu = splu(flipped, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError as error:
        raise DivergesError("the policy's transition matrix is singular: it does not end its trajectories") from error
    return Factor(lambda b, transposed: lu.solve(b, trans="N" if transposed else "T"))

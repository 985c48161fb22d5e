"""Derivatives of soft values of any order, through linear solves at the solution (the implicit function theorem).

With pi the soft policy and A = I - discount * P_pi, a fixed point V = log sum_a exp(u + discount P V) has

    dV = A^-1 sum_a pi du        (tangent: one solve a direction)
    gu = pi * (A'^-1 gV)[state]  (adjoint: one transposed solve, the expected visits that start from gV)

and A^-1 b, as a function of (pi, b), has derivatives that are again such solves. So three autograd functions, each
with backward, jvp and vmap written in terms of the three, give gradients, tangents and Hessians in any mix of modes.
They serve every kind of chain: stationary, time-varying (where A is triangular in time) and first-passage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class LinearMap(NamedTuple):
    """A fixed linear map along the last axes, and its transpose, on float64 arrays with any leading axes."""

    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]


@runtime_checkable
class Chain(Protocol):
    """A policy in a world: what is ahead of a pair, the state of a pair, and solves with A at that policy."""

    ahead: LinearMap  # values -> pairs: discount * expected next value
    at_state: LinearMap  # values -> pairs: the value of the pair's state; its transpose sums pairs by state

    def policy(self) -> Array:
        """[*batch, pairs]; 0 where not allowed, and where trajectories end."""
        ...

    def solve(self, b: Array, transposed: bool) -> Array:
        """[*more, *batch, values] -> the same shape."""
        ...

    def gradient(self, visits: Array, shape: tuple[int, ...]) -> Array:
        """The sum of policy * visits[state] over the axes along which a utility of this shape is broadcast."""
        ...


Problem = Callable[[Array, Array | None], tuple[Array, Chain]]
"""(utility, final) -> the fixed point and the chain of its policy, against which the utility may be broadcast."""


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, linear: LinearMap, transposed: bool) -> Tensor:
        array = x.detach().numpy()
        return torch.from_numpy(linear.backward(array) if transposed else linear.forward(array))

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        _, ctx.linear, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        return _Apply.apply(g, ctx.linear, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor, *_):
        return _Apply.apply(x_dot, ctx.linear, ctx.transposed)

    @staticmethod
    def vmap(info, in_dims, x: Tensor, linear: LinearMap, transposed: bool):
        return _Apply.apply(x.movedim(in_dims[0], 0), linear, transposed), 0


def apply(linear: LinearMap, x: Tensor) -> Tensor:
    return _Apply.apply(x, linear, False)  # pyright: ignore[reportReturnType]


def apply_transposed(linear: LinearMap, x: Tensor) -> Tensor:
    return _Apply.apply(x, linear, True)  # pyright: ignore[reportReturnType]


class _Solve(torch.autograd.Function):
    """x = A(pi)^-1 b or A(pi)'^-1 b. The chain carries the numbers of pi; the tensor pi carries its derivatives."""

    @staticmethod
    def forward(policy: Tensor, b: Tensor, chain: Chain, transposed: bool) -> Tensor:
        return torch.from_numpy(chain.solve(b.detach().numpy(), transposed))

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        policy, _, ctx.chain, ctx.transposed = inputs
        ctx.save_for_backward(policy, output)
        ctx.save_for_forward(policy, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        policy, x = ctx.saved_tensors
        gb = solve(policy, g, ctx.chain, transposed=not ctx.transposed)
        gp = None
        if ctx.needs_input_grad[0]:
            before, after = (x, gb) if ctx.transposed else (gb, x)
            gp = apply(ctx.chain.at_state, before) * apply(ctx.chain.ahead, after)
            gp = gp.sum_to_size(policy.shape)
        return gp, gb, None, None

    @staticmethod
    def jvp(ctx: Any, policy_dot: Tensor | None, b_dot: Tensor | None, *_):
        policy, x = ctx.saved_tensors
        chain = ctx.chain
        right = torch.zeros_like(x) if b_dot is None else b_dot
        if policy_dot is not None:
            if ctx.transposed:
                right = right + apply_transposed(chain.ahead, policy_dot * apply(chain.at_state, x))
            else:
                right = right + apply_transposed(chain.at_state, policy_dot * apply(chain.ahead, x))
        return solve(policy, right, chain, transposed=ctx.transposed)

    @staticmethod
    def vmap(info, in_dims, policy: Tensor, b: Tensor, chain: Chain, transposed: bool):
        if in_dims[0] is not None:
            policy = policy.movedim(in_dims[0], 0)
            b = b.expand(info.batch_size, *b.shape) if in_dims[1] is None else b.movedim(in_dims[1], 0)
        else:
            b = b.movedim(in_dims[1], 0)
        return solve(policy, b, chain, transposed=transposed), 0


def solve(policy: Tensor, b: Tensor, chain: Chain, *, transposed: bool = False) -> Tensor:
    """A(policy)^-1 b, or the transpose, differentiable in both: policy [*batch, pairs], b [*more, *batch, values]."""
    return _Solve.apply(policy, b, chain, transposed)  # pyright: ignore[reportReturnType]


def soft_policy_of(utility: Tensor, values: Tensor, chain: Chain) -> Tensor:
    """exp(u + discount P V - V[state]) where positive, else 0: without NaN in any derivative where V or u is -inf."""
    allowed = torch.from_numpy(chain.policy() > 0)
    finite = torch.where(torch.isfinite(values), values, 0.0)
    advantage = torch.where(allowed, utility, 0.0) + apply(chain.ahead, finite) - apply(chain.at_state, finite)
    return torch.where(allowed, advantage, -torch.inf).exp()


class _Found:
    """Where the solver leaves the chain for the derivatives (a list would be copied on its way by torch.func)."""

    chain: Chain


class _FixedPoint(torch.autograd.Function):
    @staticmethod
    def forward(utility: Tensor, final: Tensor | None, problem: Problem, found: _Found) -> Tensor:
        last = None if final is None else final.detach().numpy()
        values, chain = problem(utility.detach().numpy(), last)
        found.chain = chain
        return torch.from_numpy(values)

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        utility, _, _, found = inputs
        ctx.chain = found.chain
        ctx.save_for_backward(utility, output)
        ctx.save_for_forward(utility, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor):
        utility, values = ctx.saved_tensors
        chain = ctx.chain
        g = torch.where(torch.isfinite(values), g, 0.0)
        if torch.is_grad_enabled():
            policy = soft_policy_of(utility, values, chain)
            visits = solve(policy, g, chain, transposed=True)
            utility_grad = (policy * apply(chain.at_state, visits)).sum_to_size(utility.shape)
        else:  # first order only: the same with the numbers that the solver left
            visits = torch.from_numpy(chain.solve(g.numpy(), True))
            utility_grad = torch.from_numpy(chain.gradient(visits.numpy(), utility.shape))
        return utility_grad, visits[..., -1, :] if ctx.needs_input_grad[1] else None, None, None

    @staticmethod
    def jvp(ctx: Any, utility_dot: Tensor | None, final_dot: Tensor | None, *_):
        utility, values = ctx.saved_tensors
        chain = ctx.chain
        policy = soft_policy_of(utility, values, chain)
        right = torch.zeros_like(values)
        if utility_dot is not None:
            right = right + apply_transposed(chain.at_state, policy * utility_dot)
        if final_dot is not None:
            earlier = torch.zeros_like(values[..., :-1, :])
            right = right + torch.cat(
                [earlier, torch.where(torch.isfinite(final_dot), final_dot, 0.0)[..., None, :]], -2
            )
        return solve(policy, right, chain)

    @staticmethod
    def vmap(info, in_dims, utility: Tensor, final: Tensor | None, problem: Problem, found: _Found):
        n = info.batch_size
        utility = utility.expand(n, *utility.shape) if in_dims[0] is None else utility.movedim(in_dims[0], 0)
        if final is not None:
            final = final.expand(n, *final.shape) if in_dims[1] is None else final.movedim(in_dims[1], 0)
        return _FixedPoint.apply(utility, final, problem, found), 0


def fixed_point(utility: Tensor, problem: Problem, final: Tensor | None = None) -> Tensor:
    """The values of the problem, differentiable in the utility (and in final values)."""
    return _FixedPoint.apply(utility, final, problem, _Found())  # pyright: ignore[reportReturnType]


def chain_of(values: Tensor) -> Chain:
    """The chain of the soft policy that the solver left with the values of `fixed_point`."""
    return values.grad_fn.chain  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

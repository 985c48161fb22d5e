"""Bugs that were planted, and the tests that must notice: (file, what stands there, what the bug makes of it, tests).

Each is a mistake that somebody made in this field; a suite that passes with one of them in is not a suite.
"""

BUGS = {
    "offset dropped": (
        "likelihood.py",
        "returns.index_select(0, prepared.item) + torch.from_numpy(feedback.offset)",
        "returns.index_select(0, prepared.item)",
        "tests/test_likelihood.py",
    ),
    "temperature multiplied": (
        "likelihood.py",
        "reward(prepared.batch).double() / source.temperature",
        "reward(prepared.batch).double() * source.temperature",
        "tests/test_likelihood.py",
    ),
    "likelihood doubled": (
        "objective.py",
        "return total + sum(sums)",
        "return total + 2 * sum(sums)",
        "tests/test_fit.py -k derivatives",
    ),
    "standard errors of a doubled likelihood": (
        "inference.py",
        "curvature = -hessian /",
        "curvature = -2 * hessian /",
        "tests/test_fit.py -k standard_errors_by_hand",
    ),
    "base measure dropped": (
        "worlds/tabular/solution.py",
        "utility = per_step + base",
        "utility = per_step + 0 * base",
        "tests/test_likelihood.py -k three_kinds",
    ),
    "dynamics dropped from the anticipative kind": (
        "worlds/tabular/solution.py",
        "base[outcome_pair] + torch.from_numpy(np.log(t.probability))",
        "base[outcome_pair]",
        "tests/test_likelihood.py -k three_kinds",
    ),
    "planning without the discount": (
        "worlds/tabular/solution.py",
        "discount, horizon = world.discount, world.horizon",
        "discount, horizon = 1.0, world.horizon",
        "tests/test_likelihood.py -k three_kinds",
    ),
    "counting without the discount": (
        "worlds/tabular/world.py",
        "self.discount ** time.astype(float)",
        "1.0 ** time.astype(float)",
        "tests/test_likelihood.py tests/worlds/test_world.py",
    ),
    "weighted likelihood without its weights": (
        "worlds/tabular/solution.py",
        'discounted=self.kind == "weighted"',
        "discounted=False",
        "tests/test_likelihood.py -k three_kinds",
    ),
    "counting steps without their weights": (
        "worlds/tabular/solution.py",
        "of_step = weight[batch.item]",
        "of_step = torch.ones(len(batch.item)).double()",
        "tests/test_fit.py -k weight_of_two",
    ),
    "what the values bend by dropped from the Hessian": (
        "objective.py",
        "hessian = hessian + beyond",
        "hessian = hessian + 0 * beyond",
        "tests/test_fit.py -k derivatives",
    ),
    "time off by one": (
        "worlds/tabular/solution.py",
        "block = row * self.values.shape[1] + batch.time if self.timed",
        "block = row * self.values.shape[1] + (batch.time - 1).clamp(min=0) if self.timed",
        "tests/test_likelihood.py -k three_kinds",
    ),
    "tie counted as a win": (
        "likelihood.py",
        "torch.where(chosen[rows] < 0, TIED,",
        "torch.where(chosen[rows] < 0, FIRST,",
        "tests/test_fit.py -k ties_by_both",
    ),
    "ranking worst first": (
        "gather.py",
        'Choice(context, ordered[k:], 0, datum=id, id=f"{id}/{k}", **common)',
        'Choice(context, ordered[k:], len(ordered) - k - 1, datum=id, id=f"{id}/{k}", **common)',
        "tests/test_feedback.py",
    ),
    "clusters ignored": (
        "inference.py",
        "    if cluster is None:\n        return",
        "    if True:\n        return",
        "tests/test_fit.py -k standard_errors_by_hand",
    ),
    "weights ignored": (
        "likelihood.py",
        "self.row_weight = torch.from_numpy(feedback.weight) * weight",
        "self.row_weight = torch.ones(len(feedback)).double() * weight",
        "tests/test_fit.py -k weight_of_two",
    ),
    "thresholds shifted": (
        "likelihood.py",
        "torch.cat([source.thresholds.new_zeros(1), source.thresholds])",
        "torch.cat([source.thresholds, source.thresholds.new_zeros(1)])",
        "tests/test_likelihood.py -k ratings",
    ),
    "davidson without the square root": (
        "functional/choice.py",
        "log_nu + (first + second) / 2",
        "log_nu + (first + second)",
        "tests/functional/test_choice.py",
    ),
    "importance weight missing": (
        "functional/weights.py",
        "reward / temperature + log_mu - log_q",
        "reward / temperature + log_mu",
        "tests/functional/test_weights.py",
    ),
    "standard error over n instead of n - 1": (
        "functional/weights.py",
        "(variance / (n - 1)).sqrt()",
        "(variance / n).sqrt()",
        "tests/functional/test_weights.py -k expectations",
    ),
    "zero weights left out of the mean": (
        "functional/weights.py",
        "total = (wide - shift).exp().mean(-1)",
        "total = (wide - shift).exp().sum(-1) / (wide > -torch.inf).sum(-1).clamp(min=1)",
        "tests/functional/test_weights.py -k zero_weights",
    ),
    "a tail that cannot be fitted is fine": (
        "functional/weights.py",
        "torch.where(filled & constant, -torch.inf, torch.inf)",
        "-torch.inf",
        "tests/functional/test_weights.py -k no_fit",
    ),
    "k-hat without its prior": (
        "functional/weights.py",
        "return (n * k + 5) / (n + 10), -k / mean",
        "return k, -k / mean",
        "tests/functional/test_weights.py -k arviz",
    ),
    "baseline includes its own sample": (
        "functional/policy_gradient.py",
        "group_mean(returns) * (draws / (draws - 1))",
        "group_mean(returns)",
        "tests/functional/test_policy_gradient.py -k expected_gradient",
    ),
    "advantage not detached": (
        "functional/policy_gradient.py",
        "return log_prob * advantage.detach()",
        "return log_prob * advantage",
        "tests/functional/test_policy_gradient.py -k no_gradient_flows",
    ),
    "clipping on both sides": (
        "functional/policy_gradient.py",
        "above, below = log_ratio.clamp(max=math.log1p(clip)), log_ratio.clamp(min=math.log1p(-clip))",
        "above = below = log_ratio.clamp(math.log1p(-clip), math.log1p(clip))",
        "tests/functional/test_policy_gradient.py -k clipping",
    ),
    "k3 of the other ratio": (
        "functional/policy_gradient.py",
        "torch.expm1(-log_ratio) + log_ratio",
        "torch.expm1(log_ratio) - log_ratio",
        "tests/functional/test_policy_gradient.py -k kl_estimators",
    ),
    "terminated and truncated swapped": (
        "functional/policy_gradient.py",
        "torch.where(terminated, 0.0, next_value.detach())",
        "torch.where(last & ~terminated, 0.0, next_value.detach())",
        "tests/functional/test_generalized_advantage.py",
    ),
    "truncation taken for an end": (
        "functional/policy_gradient.py",
        "torch.where(terminated, 0.0, next_value.detach())",
        "torch.where(ends, 0.0, next_value.detach())",
        "tests/functional/test_generalized_advantage.py",
    ),
    "advantages cross episodes": (
        "functional/policy_gradient.py",
        "torch.where(ends, 0.0, torch.full_like(advantage, discount * lambda_))",
        "torch.where(terminated, 0.0, torch.full_like(advantage, discount * lambda_))",
        "tests/functional/test_generalized_advantage.py",
    ),
}

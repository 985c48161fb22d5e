"""Bugs that were planted, and the tests that must notice: (file, what stands there, what the bug makes of it, tests).

Each is a mistake that somebody made in this field; a suite that passes with one of them in is not a suite.
"""

BUGS = {
    "offset dropped": (
        "likelihood.py",
        "returns[prepared.item] + torch.from_numpy(feedback.offset)",
        "returns[prepared.item]",
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
}

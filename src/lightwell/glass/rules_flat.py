"""Rules of operations that pass no gradient: staircases, comparisons, choices of places, fresh and random tensors.

Moving an input a little changes nothing, or the output does not depend on it at all: every local derivative is 0.
"""

from __future__ import annotations

from lightwell.glass.index_map import elementwise, nothing
from lightwell.glass.rule import rule

STAIRCASES = ["round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide", "signbit", "angle"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "isclose"]
CHOICES = ["argmax", "argmin", "argsort", "any", "all", "equal", "nonzero", "count_nonzero", "searchsorted", "bucketize", "histc", "bincount", "unique_dim", "_unique2", "multinomial", "one_hot", "isin", "is_nonzero", "_local_scalar_dense"]
FRESH = ["zero", "zeros", "ones", "full", "empty", "arange", "linspace", "eye", "scalar_tensor", "tril_indices", "triu_indices", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "empty_strided", "rand", "randn", "randint", "randperm", "normal", "uniform", "bernoulli", "exponential", "geometric", "cauchy", "log_normal", "random", "rand_like", "randn_like", "randint_like"]


@rule(*STAIRCASES, formula="dz/dx = 0", reads=elementwise, kind="zero")
def staircase(dz, x):
    return dz * 0


@rule(*COMPARISONS, formula="dz/dx = 0", reads=elementwise, kind="zero")
def comparison(dz, x):
    return None


@rule(*CHOICES, formula="dz/dx = 0", reads=nothing, kind="zero")
def choice(dz, x):
    return None


@rule(*FRESH, formula="dz/dx = 0", reads=nothing, kind="zero")
def fresh(dz, x):
    return None

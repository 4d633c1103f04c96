"""Rules of operations that pass no gradient: staircases, comparisons, choices of places, fresh and random tensors.

Moving an input a little changes nothing, or the output does not depend on it at all: every local derivative is 0.
"""

from __future__ import annotations

from lightwell.glass.index_map import everything, nothing
from lightwell.glass.rule import rule

STAIRCASES = "round floor ceil trunc sign sgn heaviside floor_divide angle"
COMPARISONS = (
    "eq ne lt le gt ge isnan isinf isfinite isposinf isneginf signbit isclose logical_and logical_or logical_not"
    " logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor"
)
CHOICES = (
    "argmax argmin argsort any all equal nonzero count_nonzero searchsorted bucketize histc bincount isin is_nonzero"
    " promote_types result_type _unique2 unique_dim multinomial _local_scalar_dense"
)
FRESH = (
    "zero zeros ones full empty arange linspace eye scalar_tensor tril_indices triu_indices empty_strided zeros_like"
    " ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided rand randn randint"
    " randperm rand_like randn_like randint_like normal uniform bernoulli exponential geometric random"
)


@rule(*STAIRCASES.split(), formula="dz/dx = 0", kind="zero", says="staircase")
def staircase(dz, x):
    return dz * 0


@rule(*COMPARISONS.split(), formula="dz/dx = 0", kind="zero", says="comparison")
def comparison(dz, x):
    return None


@rule(*CHOICES.split(), formula="dz/dx = 0", reads=everything, kind="zero", says="choice")
def choice(dz, x):
    return None


@rule(*FRESH.split(), formula="dz/dx = 0", reads=nothing, kind="zero", says="fresh")
def fresh(dz, x):
    return None

"""Short windows under autocast on a CPU: attention in float32, its result in the dtype of the products."""

import pytest
import torch

from lightwell.model.attention import NARROW, attend


@pytest.mark.parametrize("masked", [False, True])
def test_a_narrow_window_is_attended_in_float32(masked):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, NARROW, 16, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    mask = torch.ones(NARROW, NARROW, dtype=torch.bool).tril() if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v, mask, 0.0)
    exact = attend(q.float(), k.float(), v.float(), mask, 0.0)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.bfloat16


def test_without_autocast_the_dtype_is_that_of_the_inputs():
    q = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert attend(q, q, q, None, 0.0).dtype == torch.bfloat16

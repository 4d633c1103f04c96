"""Which dtype a processor's matrix products take."""

import pytest
import torch

from lightwell.runtime.device import choose_device
from lightwell.runtime.environment import differences, processor

AMX, AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({AMX: True, AVX512: True}, torch.bfloat16),
        ({AMX: False, AVX512: True}, torch.bfloat16),
        ({AMX: False, AVX512: False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bfloat16_where_the_processor_has_instructions_for_it(monkeypatch, has, expected):
    for name in (AMX, AVX512):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, there in has.items():
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there, raising=False)
    assert choose_device("cpu").dtype == expected
    assert choose_device("cpu", "float32").dtype == torch.float32


def test_another_processor_is_a_difference():
    assert processor().strip()
    before = {"torch": "2.13.0", "processor": "one"}
    assert differences(before, before | {"processor": "other"}) == ["processor: one -> other"]

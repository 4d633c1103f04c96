"""The estimate of memory against the peak of a process that trains, above what it had after its imports."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from lightwell.config.gpt import GPTConfig, ModelConfig, ModernConfig
from lightwell.model.count import memory_bytes

TRAIN = """
import json, re, sys
import torch
from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.model.build import GPT
from lightwell.runtime.allocator import keep_freed_memory

def resident(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def train(config, batch_size, steps):
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        ids = torch.randint(0, config.vocab_size, (batch_size, config.context_length))
        loss_sum, n_targets = model(ids, ids)
        (loss_sum / n_targets).backward()
        del loss_sum, n_targets
        optimizer.step()
        optimizer.zero_grad()

sizes, batch_size, keep = json.loads(sys.argv[1])
torch.set_num_threads(1)
if keep:
    keep_freed_memory()
family = GPTConfig if sizes["family"] == "gpt2" else ModernConfig
small = dict(vocab_size=16, context_length=8, emb_dim=8, n_heads=2, n_kv_heads=1, head_dim=4, n_layers=1, hidden_dim=8)
train(family(**{**sizes, **{key: value for key, value in small.items() if key in sizes}}), 2, 2)  # the last imports
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins again
train(family(**sizes), batch_size, 4)
print(resident("VmHWM") - before)
"""

CONFIGS: dict[str, tuple[ModelConfig, int]] = {  # and the batch size
    "gpt2": (GPTConfig(vocab_size=4096, context_length=256, emb_dim=256, n_heads=4, n_layers=4), 8),
    "modern, grouped": (
        ModernConfig(vocab_size=8192, context_length=128, emb_dim=256, n_heads=8, n_kv_heads=2, n_layers=6), 8,
    ),
    "gpt2, large vocabulary": (
        GPTConfig(vocab_size=20_000, context_length=128, emb_dim=320, n_heads=5, n_layers=6, tie_embeddings=False), 6,
    ),
}  # fmt: skip


def peak_of_a_process(config: ModelConfig, batch_size: int, keep: bool) -> int:
    given: dict[str, Any] = config.model_dump(exclude_none=True)
    arguments = json.dumps([given, batch_size, keep])
    done = subprocess.run([sys.executable, "-c", TRAIN, arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(("config", "batch_size"), CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize(
    ("drop_rate", "keep"),
    [(0.0, True), (0.1, True), (0.0, False)],
    ids=["no dropout", "dropout", "no dropout, as in a notebook"],
)
def test_peak_memory_is_within_15_percent_of_the_estimate(
    config: ModelConfig, batch_size: int, drop_rate: float, keep: bool
) -> None:
    """`keep`: freed memory is kept in the process, as our commands have it."""
    config = config.model_copy(update={"drop_rate": drop_rate})
    estimate = memory_bytes(config, batch_size)
    expected = estimate["total"] - estimate["saving_copy"]  # this process saves nothing
    assert peak_of_a_process(config, batch_size, keep) == pytest.approx(expected, rel=0.15)

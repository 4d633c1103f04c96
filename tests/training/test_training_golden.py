"""Fifty steps of the smallest presets on a text of our own, in float64: the losses are those that were recorded.

To 1e-9 on any machine; bit for bit in the environment of the recording. After a change that is meant to change them:

    python tests/training/test_training_golden.py
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = GOLDEN / "losses.json"
FAMILIES = {"modern": "nano", "gpt2": "gpt2-nano"}  # the smallest preset of each


def losses(family, dataset, folder):
    import training_helpers
    from training_helpers import Float64, put_together

    from lightwell.config.presets import preset
    from lightwell.config.run import changed, parse
    from lightwell.runtime.environment import environment
    from lightwell.runtime.world import World
    from lightwell.training.step import train_step

    raw = preset(FAMILIES[family])
    # 50 steps in some seconds; tied, since the singular vectors of counted pairs are not the same on all machines.
    small = {"vocab_size": 257, "context_length": 32, "n_layers": 2, "tie_embeddings": True}
    config = changed(parse(raw), model=small, train={"batch_size": 4}, budget={"steps": 50})
    device = Float64(torch.device("cpu"), torch.float64)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    before, training_helpers.CPU = training_helpers.CPU, device
    try:
        t = put_together(folder, config, dataset)
        assert next(t.replicas.model.parameters()).dtype == torch.float64
        found = []
        for step in range(50):
            result = train_step(
                t.replicas, t.optimizer, t.batches.batch(step), micro_batch_size=3,
                lr_scale=t.pace.lr_scale(t.state, step), clip=1.0, seed=1337, step=step, device=device, world=t.world,
            )  # fmt: skip
            found.append(result.loss.item())
        t.record.close()
        return found, environment(device, World())
    finally:
        training_helpers.CPU = before
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_recorded(family, dataset, tmp_path):
    found, environment = losses(family, dataset, tmp_path / "run")
    recorded = json.loads(RECORDED.read_text())
    expected = recorded["losses"][family]
    assert len(expected) == 50
    assert expected[0] - expected[-1] > 1
    assert found == pytest.approx(expected, rel=0, abs=1e-9)
    if environment == recorded["environment"]:
        assert found == expected


def record():
    from lightwell.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        data = prepare([GOLDEN / "well.txt"], where / "d", tokenizer="bytes", val=[GOLDEN / "well-held-out.txt"])
        kept = {}
        for family in FAMILIES:
            kept[family], environment = losses(family, data, where / family)
    RECORDED.write_text(json.dumps({"environment": environment, "losses": kept}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    record()

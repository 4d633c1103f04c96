"""Where there is no GPU: a training step and generation on one that is pretended, with tensors that have a shape, a
dtype and a device but no numbers (Ansel et al. 2024, "PyTorch 2", section 4.3). What is left on the wrong device raises
there; what would wait for the GPU, and products in the wrong dtype, are seen. Kernels, speed and memory are not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this PyTorch has CUDA's own hooks"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the worker saw, by case."""
    torch_folder, library = Path(torch.__file__).parent, tmp_path_factory.mktemp("gpu") / "pretended_gpu.so"
    include, lib = torch_folder / "include", torch_folder / "lib"
    command = ["g++", "-std=c++20", "-shared", "-fPIC", HERE / "pretended_gpu.cpp", "-o", library, f"-I{include}"]
    subprocess.run([*command, f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"], check=True)
    done = subprocess.run(
        [sys.executable, HERE / "pretended_gpu_worker.py", library],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_stays_on_the_gpu_and_nothing_waits_for_it(seen):
    assert len(seen) == 4
    for case, found in seen.items():
        for work in ("train", "evaluate", "generate"):
            assert found[work] == {"devices": ["cuda:0"], "waits": [], "products": ["torch.bfloat16"]}, (case, work)


def test_a_wait_would_be_noticed(seen):
    for found in seen.values():
        noticed = found["look_at_the_loss"]
        assert noticed["devices"] == ["cpu"]
        assert noticed["products"] == ["torch.float32"]
        assert noticed["waits"] == ["aten._local_scalar_dense.default", "aten._to_copy.default"]

"""Training steps and generation on a pretended GPU (pretended_gpu.cpp), in a process of their own, since what is said
there of CUDA cannot be unsaid. Prints what was seen, a JSON object.

    python pretended_gpu_worker.py LIBRARY
"""

import ctypes
import json
import sys

ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch asks whether there is CUDA

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.cuda.amp import common  # noqa: E402
from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from lightwell.config.run import parse  # noqa: E402
from lightwell.data.batches import Batch  # noqa: E402
from lightwell.generation.cached import CachedTexts  # noqa: E402
from lightwell.generation.sample import draw  # noqa: E402
from lightwell.model.build import GPT  # noqa: E402
from lightwell.runtime.device import Device  # noqa: E402
from lightwell.runtime.world import World  # noqa: E402
from lightwell.training.optimizer import Optimizer  # noqa: E402
from lightwell.training.rates import peak_rates  # noqa: E402
from lightwell.training.replicas import Replicas  # noqa: E402
from lightwell.training.step import train_step  # noqa: E402

B, T = 8, 64
CASES = {  # family, optimizer, share that is dropped, whether activations are computed again
    "gpt2": ("gpt2", "adamw", 0.0, False),
    "gpt2, Muon, dropout": ("gpt2", "muon", 0.1, False),
    "modern": ("modern", "muon", 0.0, False),
    "modern, AdamW, dropout, computed again": ("modern", "adamw", 0.1, True),
}
PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.baddbmm.")  # not bmm: torch's attention for fake tensors is its plain one
# else autocast switches itself off, or refuses
common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda: True


class Watch(TorchDispatchMode):
    """waits: operations that give something on the device to Python or to the CPU. products: dtypes they were in."""

    def __init__(self):
        super().__init__()
        self.waits, self.products = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        on_gpu = [x for x in tree_leaves((args, kwargs)) if is_on_gpu(x)]
        given = [x for x in tree_leaves(out) if x is not None]
        if on_gpu and str(func).startswith("aten.") and not all(map(is_on_gpu, given)):
            self.waits.add(str(func))
        if str(func).startswith(PRODUCTS):
            self.products.add(str(on_gpu[0].dtype) if on_gpu else "on the CPU")
        return out


def is_on_gpu(x):
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


def zeros():
    return torch.zeros(B, T, dtype=torch.int64)


def train(model, config, device):
    world, sizes = World(), config.model.complete()
    replicas = Replicas(model, world)
    optimizer = Optimizer(model, sizes, config.optimizer, peak_rates(config.optimizer, sizes), device)
    batch = Batch(zeros(), zeros(), zeros(), zeros()[:, 0])
    for step in range(2):
        result = train_step(
            replicas, optimizer, batch, micro_batch_size=B // 2, lr_scale=1.0, clip=1.0, seed=1, step=step,
            device=device, world=world,
        )  # fmt: skip
    state = dict(optimizer.state_tensors())
    optimizer.load_state_tensors(state)
    return [result.loss, result.gradient_norm, result.finite, *state.values()]


def evaluate(model, config, device):
    ids = zeros().to(device.torch_device)
    with torch.no_grad(), device.autocast():
        return [model(ids), *model(ids, ids)]


def generate(model, config, device):
    with torch.no_grad(), device.autocast():
        texts = CachedTexts(model.eval(), [[1, 2, 3], [4, 5]], 10)
        texts.next_logits()
        texts.append([1, 2])
        texts.keep([1])
        logits = texts.next_logits()
    return [logits, draw(logits.float(), [torch.Generator()])]


def look_at_the_loss(model, config, device):
    """What a step must not do: to show that it would be noticed."""
    loss, _ = model(zeros().to(device.torch_device), zeros().to(device.torch_device))
    loss.item()
    return [loss.cpu()]


def look_at(family, optimizer, drop_rate, checkpoint_activations):
    sizes = {"n_layers": 2, "emb_dim": 64, "n_heads": 2, "context_length": T, "vocab_size": 50304}
    others = {"family": family, "drop_rate": drop_rate, "tie_embeddings": family == "gpt2"}
    config = parse({"model": sizes | others, "train": {"batch_size": B}, "optimizer": {"name": optimizer}})
    device = Device(torch.device("cuda:0"), torch.bfloat16)
    found = {}
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        torch.set_default_device("cuda")
        model = GPT(config.model.complete())
        torch.set_default_device(None)
        model.checkpoint_activations = checkpoint_activations
        for work in (train, evaluate, generate, look_at_the_loss):
            with Watch() as watch:
                outs = work(model, config, device)
            found[work.__name__] = {
                "devices": sorted({str(out.device) for out in outs}),
                "waits": sorted(watch.waits),
                "products": sorted(watch.products),
            }
    return found


if __name__ == "__main__":
    print(json.dumps({name: look_at(*case) for name, case in CASES.items()}))

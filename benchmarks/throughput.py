"""Tokens per second of a whole training step (forward, backward, clip, optimizer; no dropout) against nanoGPT.

    python benchmarks/throughput.py --nanogpt PATH [--rounds 3] [--threads 2] [--only 50304]
    python benchmarks/throughput.py --nanogpt PATH --device cuda    # gpt2-124m, both compiled, both in bfloat16

Ours is the loop's own step on the gpt2 family with AdamW, in float32 and in the dtype that a run
would take; nanoGPT's is its model and optimizer from the checkout in float32, compiled and not, the better of the two
counting. Random tokens. Also the share of the matrix-product peak: of float32 (2048 cubed) on a CPU, of bfloat16 on a
GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import common

SHAPES = {  # name: vocabulary, context, width, layers, heads, batch
    "6x384, context 256, batch 16, vocabulary 8192": (8192, 256, 384, 6, 6, 16),
    "6x384, context 256, batch 8, vocabulary 50304": (50304, 256, 384, 6, 6, 8),
}


GPU_SHAPES = {"gpt2-124m, context 1024, batch 16": (50304, 1024, 768, 12, 12, 16)}


def measure(step, wait=lambda: None, rounds: int = 7, warm: int = 2) -> float:
    """Median seconds of a step. wait: until the device is done."""
    times = []
    for number in range(rounds + warm):
        start = time.perf_counter()
        step()
        wait()
        if number >= warm:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def ours(shape: tuple[int, ...], threads: int, dtype: str, where: str = "cpu") -> dict:
    from lightwell.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from lightwell.config.gpt import GPTConfig
    from lightwell.config.run import OptimizerSection
    from lightwell.data.batches import Batch
    from lightwell.model.build import GPT
    from lightwell.model.count import flops_per_token
    from lightwell.runtime.device import choose_device
    from lightwell.runtime.peak import measure_peak_flops
    from lightwell.runtime.world import World
    from lightwell.training.optimizer import Optimizer, Rates
    from lightwell.training.replicas import Replicas
    from lightwell.training.step import train_step

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    V, T, C, L, H, B = shape
    device, world = choose_device(where, dtype), World()
    config = GPTConfig(vocab_size=V, context_length=T, emb_dim=C, n_layers=L, n_heads=H)
    model = GPT(config).to(device.torch_device).train()
    optimizer = Optimizer(model, config, OptimizerSection(name="adamw"), Rates(adamw=1e-3, adamw_decay=0.1), device)
    tokens = torch.randint(V, (B, T + 1))
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.zeros(B, T), range(B))
    batch = batch.pin() if where == "cuda" else batch
    replicas = Replicas(model, world, compile=where == "cuda")

    def step() -> None:
        train_step(
            replicas,
            optimizer,
            batch,
            micro_batch_size=B,
            lr_scale=1.0,
            clip=1.0,
            seed=0,
            step=0,
            device=device,
            world=world,
        )

    seconds = measure(step, device.synchronise)
    peak = measure_peak_flops(choose_device("cpu", "float32") if where == "cpu" else device)
    rate = B * T / seconds
    share = rate * flops_per_token(config, T)["total"] / peak
    return {"tokens_per_second": rate, "share_of_peak": share, "dtype": str(device.dtype)}


def nanogpt(path: str, shape: tuple[int, ...], threads: int, compiled: bool, where: str) -> dict:
    import torch

    sys.path.insert(0, path)
    from model import GPT, GPTConfig  # nanoGPT's

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    V, T, C, L, H, B = shape
    model = GPT(GPTConfig(block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=C, dropout=0.0, bias=True)).to(where)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), where)
    forward = torch.compile(model) if compiled else model
    tokens = torch.randint(V, (B, T + 1), device=where)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    torch.set_float32_matmul_precision("high")  # as its train.py has it
    mixed = torch.autocast(where, dtype=torch.bfloat16, enabled=where == "cuda")

    def step() -> None:
        with mixed:
            _, loss = forward(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    wait = torch.cuda.synchronize if where == "cuda" else lambda: None
    return {"tokens_per_second": B * T / measure(step, wait)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", required=True, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = SHAPES if args.device == "cpu" else GPU_SHAPES
    if args.side:
        side, shape = args.side[0], shapes[args.side[1]]
        if side.startswith("lightwell"):
            found = ours(shape, args.threads, side.split()[1], args.device)
        else:
            found = nanogpt(args.nanogpt, shape, args.threads, side.endswith("compiled"), args.device)
        # nanoGPT's model prints while it is made: the figures are the last line
        print(json.dumps(found))
        return
    print(common.machine())
    for name in [name for name in shapes if args.only in name]:
        options = ("--nanogpt", args.nanogpt, "--threads", str(args.threads), "--device", args.device, "--side")
        sides = {
            side: lambda side=side, name=name, options=options: common.run_side(__file__, *options, side, name)
            for side in ("lightwell auto", "lightwell float32", "nanogpt eager", "nanogpt compiled")
            if args.device == "cpu" or side in ("lightwell auto", "nanogpt compiled")
        }
        found = common.in_turns(sides, args.rounds)
        rates = {side: common.median(rows, "tokens_per_second") for side, rows in found.items()}
        best = max(rate for side, rate in rates.items() if side.startswith("nanogpt"))
        print(f"\n{name}")
        for side, rate in rates.items():
            share = ""
            if side.startswith("lightwell"):
                of_peak = common.median(found[side], "share_of_peak")
                kind = "float32" if args.device == "cpu" else "bfloat16"
                share = f"  {of_peak:.0%} of the {kind} peak (products in {found[side][0]['dtype']})"
            print(f"  {side:20} {rate:8,.0f} tokens/s  {rate / best:5.2f} x the better nanoGPT{share}")


if __name__ == "__main__":
    main()

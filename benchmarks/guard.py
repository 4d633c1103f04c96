"""A small benchmark (under 3 minutes) against regressions: `make bench`.

Each figure is a ratio within this run, so that another machine's speed does not matter: the share of the float32
matrix-product peak in a training step, and generation with the cache against generation without. Exit 1 if one has
fallen below its floor.
"""

from __future__ import annotations

import sys
import time

import common
import throughput

FLOORS = {"share of float32 peak in a step": 0.4, "cached over naive generation": 2.0}


def generation() -> float:
    import torch

    from lightwell.config.gpt import ModernConfig
    from lightwell.generation.engine import Engine
    from lightwell.generation.naive import generate_ids
    from lightwell.generation.sample import Sampling
    from lightwell.model.build import GPT
    from lightwell.tokenizer.simple import BytesTokenizer

    torch.manual_seed(0)
    config = ModernConfig(vocab_size=257, context_length=256, emb_dim=384, n_layers=6, n_heads=6)
    model, greedy = GPT(config).eval(), Sampling(temperature=0.0)
    engine = Engine(model, BytesTokenizer())
    seconds = []
    for generate in (engine.generate_ids, lambda *a, **k: generate_ids(model, *a, **k)):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            generate(list(range(64)), max_new_tokens=64, sampling=greedy)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] / seconds[0]


def main() -> None:
    print(common.machine())
    shape = throughput.SHAPES["6x384, context 256, batch 16, vocabulary 8192"]
    found = {
        "share of float32 peak in a step": throughput.ours(shape, 2, "float32")["share_of_peak"],
        "cached over naive generation": generation(),
    }
    low = [name for name, value in found.items() if value < FLOORS[name]]
    for name, value in found.items():
        print(f"  {name}: {value:.2f} (floor {FLOORS[name]}){'  TOO LOW' if name in low else ''}")
    sys.exit(1 if low else 0)


if __name__ == "__main__":
    main()

"""A small benchmark (under 3 minutes) against regressions: `make bench`.

Each figure is a ratio within this run, so that another machine's speed does not matter: the share of the float32
matrix-product peak in a training step, generation with the cache against generation without, and reading a prompt with
weights of 8 bits against weights of 32. Exit 1 if one has fallen below its floor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import common
import throughput

FLOORS = {
    "share of float32 peak in a step": 0.4,
    "cached over naive generation": 2.0,
    "a prompt in int8 over float32": 0.5,
}


def generation() -> dict[str, float]:
    import torch

    from lightwell.config.gpt import ModernConfig
    from lightwell.generation.engine import Engine
    from lightwell.generation.naive import generate_ids
    from lightwell.generation.quantize import quantize
    from lightwell.generation.sample import Sampling
    from lightwell.model.build import GPT
    from lightwell.tokenizer.simple import BytesTokenizer

    torch.manual_seed(0)
    config = ModernConfig(vocab_size=257, context_length=256, emb_dim=384, n_layers=6, n_heads=6)
    model, greedy = GPT(config).eval(), Sampling(temperature=0.0)
    cached = Engine(model, BytesTokenizer()).generate_ids
    in_int8 = Engine(quantize(model, "int8"), BytesTokenizer()).generate_ids

    def seconds(generate: Callable[..., object], prompt: int, new_tokens: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            generate(list(range(prompt)), max_new_tokens=new_tokens, sampling=greedy)
            times.append(time.perf_counter() - start)
        return min(times)

    naive = partial(generate_ids, model)
    return {
        "cached over naive generation": seconds(naive, 64, 64) / seconds(cached, 64, 64),
        "a prompt in int8 over float32": seconds(cached, 192, 1) / seconds(in_int8, 192, 1),
    }


def main() -> None:
    print(common.machine())
    shape = throughput.SHAPES["6x384, context 256, batch 16, vocabulary 8192"]
    found = {
        "share of float32 peak in a step": throughput.ours(shape, 2, "float32")["share_of_peak"],
        **generation(),
    }
    low = [name for name, value in found.items() if value < FLOORS[name]]
    for name, value in found.items():
        print(f"  {name}: {value:.2f} (floor {FLOORS[name]}){'  TOO LOW' if name in low else ''}")
    sys.exit(1 if low else 0)


if __name__ == "__main__":
    main()

"""The memory estimate of `lightwell plan` against the peak of real processes: `python benchmarks/memory.py`.

Each size trains for a few steps in a process of its own, as `pretrain` does, and reports the most memory it had; what
the interpreter and its libraries take is measured in the same process before the model is made.
"""

from __future__ import annotations

import argparse
import json
import sys

import common

SIZES = {  # name: layers, width, heads, context, vocabulary, batch
    "4 x 128, vocabulary 1024": (4, 128, 4, 64, 1024, 16),
    "6 x 384, vocabulary 8192": (6, 384, 6, 256, 8192, 16),
    "6 x 384, vocabulary 50304": (6, 384, 6, 256, 50304, 8),
    "12 x 768, vocabulary 50304": (12, 768, 12, 256, 50304, 2),
}
FAMILIES = ("gpt2", "modern")


def one(name: str, family: str) -> dict[str, float]:
    """Estimate and peak of one size, in this process."""
    import torch

    from lightwell.config.run import changed, parse
    from lightwell.planner.fit import step_memory
    from lightwell.planner.step_time import Trial
    from lightwell.runtime.allocator import keep_freed_memory
    from lightwell.runtime.device import choose_device
    from lightwell.runtime.memory import peak_bytes

    keep_freed_memory()
    torch.set_num_threads(1)
    layers, width, heads, context, vocab_size, batch = SIZES[name]
    sizes = {"n_layers": layers, "emb_dim": width, "n_heads": heads, "context_length": context}
    sizes["tie_embeddings"] = family == "gpt2"  # as the planner has it
    optimizer = "adamw" if family == "gpt2" else "muon"
    config = parse(
        {
            "model": {"family": family, "vocab_size": vocab_size, **sizes},
            "train": {"batch_size": batch},
            "optimizer": {"name": optimizer},
        }
    )
    device = choose_device("cpu")
    sizes = {"vocab_size": 300, "n_layers": 1, "emb_dim": 16, "n_heads": 1, "context_length": 8}
    tiny = changed(config, model=sizes, train={"batch_size": 1})
    Trial(tiny, device, 1).step()  # loads what a step needs of the libraries
    before = peak_bytes() or 0
    trial = Trial(config, device, batch)
    for _ in range(3):
        trial.step()
    parts = step_memory(config, batch, device)
    estimate = parts["total"] - parts["saving_copy"]  # nothing is saved here
    return {"estimate": estimate / 1e6, "peak": ((peak_bytes() or 0) - before) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "FAMILY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        return
    print(common.machine())
    print("| size | family | estimated MB | measured MB | estimated over measured |\n|---|---|---|---|---|")
    for name in SIZES:
        for family in FAMILIES:
            found = common.run_side(sys.argv[0], "--one", name, family)
            ratio = found["estimate"] / found["peak"]
            print(f"| {name} | {family} | {found['estimate']:,.0f} | {found['peak']:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

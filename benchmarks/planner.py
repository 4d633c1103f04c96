"""The planner against the truth: what it predicted against what came out, its choice against a sweep of sizes.

    python benchmarks/planner.py TEXT ... --minutes 1 [--sweep]

A text FILE.txt may have its held-out part beside it as FILE-val.txt.

Each run is `lightwell pretrain TEXT --minutes M` in a process of its own; with --sweep also nine sizes around the
ladder, fixed by hand, for the same minutes: a text and a budget then take ten times the minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import common
from lightwell.planner.ladder import LADDER

# Layers, width, context: the ladder up to three layers of 512, and two deeper ones.
SWEEP = (*((r.n_layers, r.emb_dim, r.context_length) for r in LADDER[:7]), (4, 128, 512), (5, 256, 512))
TOKENS_PER_STEP = 4096


def pretrain(text: str, minutes: float, val: str | None, *settings: str) -> dict:
    """One run, in a few figures."""
    found = common.pretrain_and_evaluate(text, val, minutes, *settings)
    same = ("parameters", "tokens", "seconds", "stolen")
    return {
        "bits_per_byte": found["heldout"]["bits_per_byte"],
        "standard_error": found["heldout"]["standard_error"],
        "predicted": found["predicted"]["bits_per_byte"],
    } | {key: found[key] for key in same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    print(common.machine())
    columns = "text, minutes, took s, stolen s, parameters, tokens, bits per byte, predicted, off, best of the sweep"
    print(f"| {columns.replace(', ', ' | ')} |\n|{'---|' * 10}")
    for text in args.texts:
        beside = Path(text).with_name(f"{Path(text).stem}-val.txt")
        val = str(beside) if beside.exists() else None
        for minutes in args.minutes:
            row = pretrain(text, minutes, val)
            best = sweep(text, minutes, val) if args.sweep else ""
            known = row["predicted"] is not None  # nothing is predicted of hardly any tokens
            predicted = f"{row['predicted']:.3f}" if known else ""
            off = f"{row['bits_per_byte'] / row['predicted'] - 1:+.1%}" if known else ""
            print(
                f"| {Path(text).stem} | {minutes:g} | {row['seconds']} | {row['stolen']} | {row['parameters']:,} "
                f"| {row['tokens'] / 1e6:.1f} M | {row['bits_per_byte']:.3f} | {predicted} "
                f"| {off} | {best} |",
                flush=True,
            )


def sweep(text: str, minutes: float, val: str | None) -> str:
    """The best of nine sizes, in words; the others go to stderr."""
    found = {}
    for layers, width, context in SWEEP:
        sizes = {"n_layers": layers, "emb_dim": width, "context_length": context}
        settings = [f"model.{key}={value}" for key, value in sizes.items()]
        settings.append(f"train.batch_size={min(16, TOKENS_PER_STEP // context)}")
        found[f"{layers} x {width} at {context}"] = row = pretrain(text, minutes, val, *settings)
        print(f"  {layers} x {width} at {context}: {row}", file=sys.stderr, flush=True)
    name = min(found, key=lambda size: found[size]["bits_per_byte"])
    return f"{name}: {found[name]['bits_per_byte']:.3f}"


if __name__ == "__main__":
    main()

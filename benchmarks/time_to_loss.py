"""Held-out bits per byte after some minutes, against nanoGPT and nanochat on the same text.

    python benchmarks/time_to_loss.py --data DIR --minutes 2 --rounds 3
        [--peer SCRIPT --nanogpt PATH --nanochat PATH --peer-minutes 4 --peer-options "--layers 4 --dim 128 --bpe 1024"]

DIR holds train.txt and val.txt. Ours is `lightwell pretrain DIR/train.txt --val DIR/val.txt --minutes M` and nothing
else. SCRIPT trains a peer's own model and optimizer from a checkout for some minutes and prints a JSON line with its
held-out bits_per_byte.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import common


def ours(data: Path, minutes: float) -> dict:
    found = common.pretrain_and_evaluate(data / "train.txt", data / "val.txt", minutes)
    return {"bits_per_byte": found["heldout"]["bits_per_byte"], "seconds": found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="the script that trains a peer")
    parser.add_argument("--nanogpt")
    parser.add_argument("--nanochat")
    parser.add_argument("--peer-minutes", type=float, default=None)
    parser.add_argument("--peer-options", default="")
    args = parser.parse_args()
    print(common.machine())
    sides = {"lightwell": lambda: ours(args.data, args.minutes)}
    for name, repo in (("nanogpt", args.nanogpt), ("nanochat", args.nanochat)):
        if repo and args.peer:
            minutes = str(args.peer_minutes or args.minutes)
            options = ["--repo", repo, "--data", str(args.data), "--minutes", minutes, *shlex.split(args.peer_options)]
            sides[name] = lambda name=name, options=options: common.run_side(args.peer, name, *options, timeout=3600)
    found = common.in_turns(sides, args.rounds)
    for side, rows in found.items():
        bits, seconds = common.median(rows, "bits_per_byte"), common.median(rows, "seconds")
        print(f"  {side:12} {bits:.4f} bits per byte  ({seconds:.0f} s)")


if __name__ == "__main__":
    main()

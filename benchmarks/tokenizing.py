"""Learning a vocabulary and encoding with it: `python benchmarks/tokenizing.py TEXT`.

Encoding is timed against the library `tokenizers`, by which the vocabulary was learned, on one thread each; the ids
must be the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import common

BYTES = 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import tempfile

    from tokenizers import Tokenizer

    from lightwell.tokenizer.bpe import train_bpe

    text = args.text.read_bytes()[:BYTES].decode("utf-8", errors="ignore")
    size = len(text.encode())
    print(common.machine())
    print(f"{args.text.name}, {size / 1e6:.1f} MB, medians of {args.rounds} in turns, one thread")
    print("| vocabulary | learned in s | encode MB/s | tokenizers MB/s | ratio | bytes per token |")
    print("|---|---|---|---|---|---|")
    for vocab_size in args.vocab_sizes:
        start = time.perf_counter()
        ours = train_bpe([text], vocab_size)
        learned = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            ours.save(Path(folder))
            theirs = Tokenizer.from_file(f"{folder}/tokenizer.json")
        theirs.encode_special_tokens = True
        sides = {
            "ours": lambda ours=ours: timed(lambda: ours.encode_array(text)),
            "tokenizers": lambda theirs=theirs: timed(lambda: theirs.encode(text, add_special_tokens=False).ids),
        }
        found = common.in_turns(sides, args.rounds)
        a, b = (size / 1e6 / common.median(found[name], "seconds") for name in ("ours", "tokenizers"))
        ids = ours.encode_array(text)
        if ids.tolist() != theirs.encode(text, add_special_tokens=False).ids:
            sys.exit(f"the ids of vocabulary {vocab_size} differ")
        print(f"| {vocab_size} | {learned:.1f} | {a:.1f} | {b:.1f} | {a / b:.1f} | {size / len(ids):.2f} |", flush=True)


def timed(work) -> dict[str, float]:
    start = time.perf_counter()
    work()
    return {"seconds": round(time.perf_counter() - start, 3)}


if __name__ == "__main__":
    main()

"""The planner's choice against a sweep of sizes that does not depend on who else uses the machine meanwhile.

    python benchmarks/sweep.py run   --texts FILE ... --minutes 1 --out ROWS.jsonl   # ten minutes per text and minute
    python benchmarks/sweep.py table --out ROWS.jsonl

`run`: a step of each size is timed (its least time, two threads), and the model trained on one thread for the tokens
that the minutes would then have on a quiet machine. Rows that are there are not made again. `table`: the rung of the
ladder that the law would choose from these tokens, against the best of all sizes, and how far off its prediction is.
`planner.py --sweep` does the same by the clock.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import law
import small_runs
from lightwell.config.run import parse
from lightwell.planner.climb import OVERHEAD
from lightwell.planner.ladder import LADDER as RUNGS
from lightwell.planner.predict import predict_bits_per_byte
from lightwell.planner.reading import slowness, vocab_size_for
from lightwell.planner.step_time import Trial
from lightwell.planner.text import TextStatistics
from lightwell.runtime.allocator import keep_freed_memory
from lightwell.runtime.device import choose_device
from lightwell.runtime.peak import measure_peak_flops

LADDER = tuple(f"{r.n_layers}x{r.emb_dim}@{r.context_length}x{r.batch_size}" for r in RUNGS[:7])
SIZES = (*LADDER, "3x96@128x16", "4x128@128x16", "5x256@256x16")
SETUP = 8.0  # seconds of the minutes that are gone before the first step
TIMED = 4.0  # seconds in which a size is timed


def run(texts: list[Path], minutes: float, sizes: list[str], out: Path) -> None:
    keep_freed_memory()
    rows = law.read(out)
    work = out.parent / (out.stem + "-data")
    device, asked = choose_device("cpu"), parse({})
    peak = measure_peak_flops(device)
    slower = slowness(asked, device, peak, 60 * minutes)
    for text in texts:
        val = text.with_name(f"{text.stem}-val.txt")
        vocab_size = vocab_size_for(asked, text.stat().st_size, peak, 60 * minutes, slower)
        dataset = small_runs.dataset_of(text, work, vocab_size, val if val.exists() else None)
        for size in sizes:
            if any((row["text"], row["size"], row.get("minutes")) == (text.stem, size, minutes) for row in rows):
                continue
            config = small_runs.config_of(size, dataset)
            torch.set_num_threads(2)
            tokens = int((1 - OVERHEAD) * (60 * minutes - SETUP) * rate(config))
            torch.set_num_threads(1)
            law.add(out, {"text": text.stem, "minutes": minutes, "size": size, **law.point(dataset, config, tokens)})


def predicted(row: dict[str, Any]) -> float:
    """What the planner would expect of it, by all that the row tells of its text."""
    known = {field.name for field in fields(TextStatistics)} & set(row) - {"tokens"}
    text = TextStatistics(row["unique_tokens"], **{key: row[key] for key in known})
    return predict_bits_per_byte(row["in_blocks"], row["tokens"], text, law.context_of(row))


def rate(config: Any) -> float:
    """Tokens per second of a step, the fastest of some."""
    trial = Trial(config, choose_device("cpu"), config.train.batch_size)
    began, times = time.perf_counter(), [trial.step(), trial.step()]
    while time.perf_counter() - began < TIMED:
        times.append(trial.step())
    return trial.tokens / min(times[1:])


def table(out: Path) -> None:
    rows = law.read(out)
    print("| text | minutes | chosen | bits per byte | predicted | off | best | bits per byte | chosen over best |")
    print("|---|---|---|---|---|---|---|---|---|")
    for text, minutes in dict.fromkeys((row["text"], row["minutes"]) for row in rows):
        mine = [row for row in rows if (row["text"], row["minutes"]) == (text, minutes)]
        says = {row["size"]: predicted(row) for row in mine}
        rungs = [row for size in LADDER for row in mine if row["size"] == size]
        chosen = law.choice(rungs, [says[row["size"]] for row in rungs])
        best = min(mine, key=lambda row: row["bits_per_byte"])
        bits, expected = chosen["bits_per_byte"], says[chosen["size"]]
        print(
            f"| {text} | {minutes:g} | {chosen['size']} | {bits:.3f} | {expected:.3f} | {bits / expected - 1:+.1%}"
            f" | {best['size']} | {best['bits_per_byte']:.3f} | {bits / best['bits_per_byte'] - 1:+.1%} |"
        )
    print("\n| text | minutes | size | tokens | bits per byte | the law says |\n|---|---|---|---|---|---|")
    for row in rows:
        expected = predicted(row)
        print(
            f"| {row['text']} | {row['minutes']:g} | {row['size']} | {row['tokens']:,} | {row['bits_per_byte']:.3f}"
            f" | {expected:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--texts", type=Path, nargs="+", default=[])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "run":
        run(args.texts, args.minutes, args.sizes, args.out)
    else:
        table(args.out)


if __name__ == "__main__":
    main()

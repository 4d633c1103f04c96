"""The law behind the planner's predictions: small runs on several texts, and the fit with each text left out in turn.

    python benchmarks/law.py run  --texts FILE ... --out POINTS.jsonl   # minutes per text on one thread
    python benchmarks/law.py fit  --out POINTS.jsonl                    # prints constants, errors and the table

law_rows.jsonl holds the runs that the planner's constants for long texts are fitted to. Those for short texts are older
and better than what its runs on short texts give (LOG.md).

A text FILE.txt may have its held-out part beside it as FILE-val.txt. Runs that POINTS.jsonl already holds are not made
again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import small_runs
from lightwell.data.dataset import open_dataset
from lightwell.model.count import parameters_of_blocks
from lightwell.planner.climb import MOST_EPOCHS
from lightwell.planner.predict import (
    LEAST_FAR,
    LEAST_LONG,
    LONG,
    LONGEST_CONTEXT,
    PARAMETERS_PER_TOKEN,
    SHORT,
    USUAL_CONTEXT,
    Law,
    effective_tokens,
)
from lightwell.planner.reading import BYTES_PER_TOKEN
from lightwell.planner.text import USUAL_FAR, USUAL_PHRASES, USUAL_VOCABULARY, describe
from lightwell.tokenizer.size import choose_vocab_size

POINTS = (
    ("2x64@128x16", 1_200_000),
    ("2x128@512x8", 1_000_000),
    ("2x256@512x8", 2_400_000),
    ("3x256@1024x4", 2_600_000),
    ("3x384@1024x4", 1_600_000),
)
USUAL_NU = 0.1
# Fitted to 157 runs on 32 texts (LOG.md, "What tells one text from another, again"); but for tau, of another form then.
BEFORE = Law(alpha=0.348, beta=0.393, delta=1.05, kappa=1.49, E=0.691, N_c=0.00379, D_c=0.0382, tau=1.0, nu=0.0753)
HELD_OUT = 80_000  # tokens that each run is measured on
EXPONENTS = slice(3, 5)  # alpha and beta, of the constants of `law`
ROUND = 0.02  # errors below it count by their square, beyond it ever less
PRIOR = 3e-3  # weight of staying near the law before: a few points cannot tell all eleven constants apart,
HOLD = 0.1  # and least of all the exponents of size and tokens, by which it is carried on beyond them


@cache
def features(dataset_path: Path) -> dict[str, float]:
    """What the planner can know of a text before training; once for all runs on it."""
    dataset = open_dataset(dataset_path)
    found = asdict(describe(dataset))
    return {"unique_tokens": found.pop("tokens"), "vocab": dataset.tokenizer.vocab_size} | found


def run(texts: list[Path], points: list[tuple[str, int]], out: Path, only: str | None) -> None:
    small_runs.one_thread()
    made = {(row["text"], row["size"], row.get("asked")) for row in read(out)}  # rows of sweep.py may be among them
    work = out.parent / (out.stem + "-data")
    for size, tokens in points:
        for text in texts:
            if (text.stem, size, tokens) in made or only not in (None, f"{text.stem}/{size}/{tokens}"):
                continue
            val = text.with_name(f"{text.stem}-val.txt")
            vocab_size = choose_vocab_size(text.stat().st_size, BYTES_PER_TOKEN * tokens)
            dataset = small_runs.dataset_of(text, work, vocab_size, val if val.exists() else None)
            config = small_runs.config_of(size, dataset)
            add(out, {"text": text.stem, "size": size, "asked": tokens, **point(dataset, config, tokens)})


def point(dataset: Any, config: Any, tokens: int) -> dict[str, Any]:
    """What the planner can know of a run beforehand, and what came of it."""
    before = features(dataset.path) | {"in_blocks": parameters_of_blocks(config.model.complete())}
    return before | small_runs.train(dataset, config, tokens, eval_tokens=HELD_OUT)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def add(out: Path, row: dict[str, Any]) -> None:
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def law(constants: Tensor, rows: list[dict[str, Any]]) -> Tensor:
    """predict.py's law for all rows; constants: delta, kappa, the logarithms of E, alpha, beta, and of what is
    lacking at a million parameters, N_c^alpha, and at a million tokens, D_c^beta; tau; nu over its usual one; eta;
    gamma."""

    def column(of: Callable[[dict[str, Any]], float]) -> Tensor:
        return torch.tensor([of(row) for row in rows], dtype=torch.float64)

    delta, kappa, E, alpha, beta, A, B, tau, nu, eta, gamma = constants
    alpha, beta, million = torch.exp(alpha), torch.exp(beta), 1e6
    new = column(lambda row: effective_tokens(row["tokens"], row["unique_tokens"]) / million)
    size = column(lambda row: min(row["in_blocks"], PARAMETERS_PER_TOKEN * row["unique_tokens"]) / million)
    counts, copying = column(lambda row: row["difficulty"]), column(lambda row: row["copying"])
    floor = torch.exp(E) * copying**kappa
    phrases = (column(lambda row: row["phrases"]) / USUAL_PHRASES) ** gamma
    lacking = (torch.exp(A / beta) / size ** (alpha / beta) + phrases * torch.exp(B / beta) / new) ** beta
    longer = column(lambda row: math.log2(min(context_of(row), LONGEST_CONTEXT) / USUAL_CONTEXT))  # doublings
    context = column(lambda row: row["farther"]) ** (tau * longer)
    vocabulary = column(lambda row: row["vocabulary"] / USUAL_VOCABULARY) ** (USUAL_NU * nu)
    far = (column(lambda row: max(row["far"], LEAST_FAR)) / USUAL_FAR) ** eta
    return counts**delta * context * vocabulary * far * (floor + lacking)


def as_constants(known: Law) -> list[float]:
    """The constants of `law`, from those of predict.py."""
    A, B = known.alpha * math.log(known.N_c), known.beta * math.log(known.D_c)
    logarithms = [math.log(known.E), math.log(known.alpha), math.log(known.beta), A, B]
    return [known.delta, known.kappa, *logarithms, known.tau, known.nu / USUAL_NU, known.eta, known.gamma]


def as_law(constants: Tensor) -> Law:
    """The way back, to three digits."""
    delta, kappa, *others, tau, nu, eta, gamma = constants.tolist()
    E, alpha, beta, A, B = map(math.exp, others)
    N_c, D_c = A ** (1 / alpha), B ** (1 / beta)
    found = (alpha, beta, delta, kappa, E, N_c, D_c, tau, USUAL_NU * nu, eta, gamma)
    return Law(*(float(f"{constant:.3g}") for constant in found))


def context_of(row: dict[str, Any]) -> int:
    return int(row["size"].split("@")[1].split("x")[0])


def fitted(rows: list[dict[str, Any]]) -> Tensor:
    """The constants with the least error of the logarithm. Large errors count little more than small ones (Cauchy's
    distribution), so that a text apart does not bend all.

    Two errors, and both count: that of a text on average, and that of each run beyond its text's, where a text has
    several. By the second one the planner chooses between sizes.
    """
    measured = torch.tensor([row["bits_per_byte"] for row in rows], dtype=torch.float64)
    texts = sorted({row["text"] for row in rows})
    is_of = torch.tensor([[float(row["text"] == text) for row in rows] for text in texts], dtype=torch.float64)
    runs = is_of.sum(dim=1)
    has_others = runs[is_of.argmax(dim=0)] > 1  # of each row
    usual = torch.tensor(as_constants(BEFORE), dtype=torch.float64)
    constants = usual.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([constants], max_iter=1000, line_search_fn="strong_wolfe", history_size=30)

    def size_of(errors: Tensor) -> Tensor:
        return ROUND * torch.log1p((errors / ROUND).square()).sum() / max(1, len(errors))  # of none: 0

    def error() -> Tensor:
        optimizer.zero_grad()
        off = law(constants, rows).clamp(min=1e-3).log() - measured.log()
        average = (is_of @ off) / runs
        beyond = (off - average @ is_of)[has_others]
        moved = (constants - usual).square()
        loss = 0.4 * size_of(average) + 0.6 * size_of(beyond) + PRIOR * moved.mean() + HOLD * moved[EXPONENTS].mean()
        loss.backward()
        return loss

    optimizer.step(error)
    return constants.detach()


def off(constants: Tensor, rows: list[dict[str, Any]]) -> list[float]:
    """Predicted over measured, less 1."""
    return [float(p) / row["bits_per_byte"] - 1 for p, row in zip(law(constants, rows), rows)]


def fit(out: Path) -> None:
    """The law of long texts and of short ones."""
    too_often = MOST_EPOCHS + 1  # times through a text, as the planner has it
    rows = [row for row in read(out) if row["tokens"] < too_often * row["unique_tokens"]]
    fit_one("LONG", LONG, [row for row in rows if row["unique_tokens"] >= LEAST_LONG])
    fit_one("SHORT", SHORT, [row for row in rows if row["unique_tokens"] < LEAST_LONG])


def fit_one(name: str, known: Law, rows: list[dict[str, Any]]) -> None:
    """Print how good the constants are that are `known`, those of a fit, and how far off texts are that are left
    out of the fit. Rows of sweep.py, which have `minutes`, also tell how good the choice between their sizes is."""
    if not rows:
        return
    errors = off(torch.tensor(as_constants(known), dtype=torch.float64), rows)
    print(f"\n{name} as the planner has it: {mean(errors):.1%} off on average, {max(map(abs, errors)):.1%} at most")
    constants = fitted(rows)
    print(f"{name} = {as_law(constants)}")
    errors = off(constants, rows)
    print(f"all texts in the fit: {mean(errors):.1%} off on average, {max(map(abs, errors)):.1%} at most")
    left_out: list[float] = []
    behind: list[float] = []
    texts = sorted({row["text"] for row in rows})
    for text in texts if len(texts) > 1 else ():
        without = fitted([row for row in rows if row["text"] != text])
        mine = [row for row in rows if row["text"] == text]
        errors = off(without, mine)
        left_out.append(mean(errors))
        print(f"{text} left out of the fit: {mean(errors):.1%} off on average, {max(map(abs, errors)):.1%} at most")
        for minutes in sorted({row["minutes"] for row in mine if row.get("minutes")}):
            sizes = [row for row in mine if row.get("minutes") == minutes]
            if len(sizes) > 1:
                chosen = choice(sizes, law(without, sizes).tolist())
                best = min(sizes, key=lambda row: row["bits_per_byte"])
                behind.append(chosen["bits_per_byte"] / best["bits_per_byte"] - 1)
                print(f"  {minutes:g} minutes: it chooses {chosen['size']}, {behind[-1]:.1%} behind {best['size']}")
    if left_out:
        print(f"each text left out in turn: {mean(left_out):.1%} off on average")
    if behind:
        print(f"its choices: {mean(behind):.2%} behind the best on average, {max(behind):.1%} at most")
    print("\n| text | size | in blocks | tokens | bits per byte | the law says |\n|---|---|---|---|---|---|")
    for row, says in zip(rows, law(constants, rows).tolist()):
        figures = f"{row['in_blocks']:,} | {row['tokens']:,} | {row['bits_per_byte']:.3f} | {says:.3f}"
        print(f"| {row['text']} | {row['size']} | {figures} |")


def choice(sizes: list[dict[str, Any]], says: list[float]) -> dict[str, Any]:
    """What the planner would take of these runs by their predictions."""
    return sizes[says.index(min(says))]


def mean(errors: list[float]) -> float:
    return sum(map(abs, errors)) / len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "fit"])
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", nargs="+", help="other points than the usual ones, as 3x96@128/1000000")
    parser.add_argument("--only", help="one point, as TEXT/SIZE/TOKENS")
    args = parser.parse_args()
    if args.what == "run":
        asked = [point.split("/") for point in args.points or ()]
        points = [(size, int(tokens)) for size, tokens in asked] or list(POINTS)
        run(args.texts, points, args.out, args.only)
    else:
        fit(args.out)


if __name__ == "__main__":
    main()

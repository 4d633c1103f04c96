"""What each ingredient of the recipe is worth: two sizes, equal tokens, some seeds; one thing changed at a time.

    python benchmarks/ablations.py TEXT --out RESULTS.jsonl [--only NAME/SIZE/SEED]    # a minute or less each

TEXT should have many documents, or masking them has nothing to mask: give a folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import small_runs
from lightwell.config.run import RunConfig, changed
from lightwell.data.dataset import open_dataset
from lightwell.data.prepare import prepare
from lightwell.model.init import WRITES_TO_STREAM
from lightwell.planner.choose import with_rates
from lightwell.training.rates import MUON

SIZES = (("2x64@128", 800_000), ("4x128@128", 800_000))
SEEDS = (1, 2)


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe: sections of the config, a change of the new model, attention by document, all rates
    so many times as high."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    change: Callable[[nn.Module], None] | None = None
    mask_documents: bool = False
    rates: float = 1.0


def zero_projections(model: nn.Module) -> None:
    """Zeros instead of GPT-2's own initialisation where a block writes into the stream."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(WRITES_TO_STREAM):
                module.weight.zero_()


def without_qk_norm(model: nn.Module) -> None:
    for block in model.get_submodule("blocks").children():
        block.attn.q_norm = block.attn.k_norm = nn.Identity()


VARIANTS = {
    "recipe": Variant(),
    "embeddings from chance": Variant({"train": {"init": "random"}}),
    "embeddings from chance, tied": Variant({"model": {"tie_embeddings": True}}),
    "AdamW instead of Muon": Variant({"optimizer": {"name": "adamw"}}),
    "AdamW at twice its rate": Variant({"optimizer": {"name": "adamw", "learning_rate": 6e-3}}),
    "output projections zero": Variant(change=zero_projections),
    "momentum 0.95": Variant({"optimizer": {"momentum": 0.95}}),
    "momentum 0.85": Variant({"optimizer": {"momentum": 0.85}}),
    "cosine to a tenth": Variant({"schedule": {"name": "cosine", "final": 0.1}}),
    "decay over the last fifth": Variant({"schedule": {"decay": 0.2}}),
    "no q/k norm": Variant(change=without_qk_norm),
    "gpt2's layers": Variant({"model": {"family": "gpt2"}}),
    "attention inside documents": Variant(mask_documents=True),
    "half the rates": Variant(rates=0.5),
    "twice the rates": Variant(rates=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="one run, as NAME/SIZE/SEED")
    parser.add_argument("--table", action="store_true", help="print what --out holds and run nothing")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if not args.table:
        run(args.text, args.out, args.only, {(row["name"], row["size"], row["seed"]) for row in rows})
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    print_table(rows)


def run(text: Path, out: Path, only: str | None, made: set[tuple[str, str, int]]) -> None:
    small_runs.one_thread()
    place = out.parent / f"{out.stem}-data"
    if not place.exists():
        prepare([text], place, tokenizer="bpe", vocab_size=4096)
    dataset = open_dataset(place)
    for seed in SEEDS:
        for name, variant in VARIANTS.items():
            for size, tokens in SIZES:
                if (name, size, seed) in made or only not in (None, f"{name}/{size}/{seed}"):
                    continue
                sections = {key: dict(values) for key, values in variant.sections.items()} | {"run": {"seed": seed}}
                config = small_runs.config_of(size, dataset, **sections)
                if variant.rates != 1:
                    config = at_rates(config, variant.rates, tokens, len(dataset.train))
                found = small_runs.train(
                    dataset, config, tokens, change=variant.change, mask_documents=variant.mask_documents
                )
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, "size": size, "seed": seed, **found}) + "\n")
                print(name, size, seed, found["bits_per_byte"], f"{found['seconds']} s", flush=True)


def at_rates(config: RunConfig, times: float, tokens: int, unique: int) -> RunConfig:
    """With the rates that the rules give to such a run, times so much."""
    adamw = with_rates(config, tokens, unique).optimizer.learning_rate
    assert adamw is not None, "the rule is for Muon and what is beside it"
    return changed(config, optimizer={"muon_learning_rate": times * MUON, "learning_rate": times * adamw})


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over seeds, beside the recipe's."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["name"], row["size"]), []).append(row["bits_per_byte"])
    sizes = [size for size, _ in SIZES]
    print(f"| | {' | '.join(sizes)} |\n|---|{'---|' * len(sizes)}")
    for name in VARIANTS:
        cells = []
        for size in sizes:
            values, recipe = found.get((name, size)), found.get(("recipe", size))
            if not values or not recipe:
                cells.append("")
                continue
            mean, base = sum(values) / len(values), sum(recipe) / len(recipe)
            spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
            cells.append(f"{mean:.3f}{spread} ({mean / base - 1:+.1%})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What looking costs: capture against the plain step and against TorchLens, verify, pulse, page, layout, rules.

    python benchmarks/glass.py [--torchlens PYTHON] [--only capture verify pulse page layout rules] [--threads 2]

PYTHON is an interpreter that has `torchlens` and the same torch; each side runs in a process of its own. A plain step
is forward and backward without an update; plain and captured steps take turns, and medians are compared. TorchLens
traces the forward pass only. The page is opened in a headless Chromium, which must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, dict[str, Any]] = {  # vocab_size, context_length, emb_dim, n_heads, n_layers
    "gpt2-124m": {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "2 layers of 64": {"vocab_size": 1024, "context_length": 64, "emb_dim": 64, "n_heads": 4, "n_layers": 2},
}


def model_and_ids(name: str, tokens: int) -> tuple[Any, Any]:
    import torch

    import lightwell
    from lightwell.model.build import GPT

    model = GPT(lightwell.GPTConfig(**MODELS[name]), torch.Generator().manual_seed(0))
    ids = torch.randint(0, MODELS[name]["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(1))
    return model, ids


def step_of(model: Any, ids: Any) -> None:
    model.zero_grad()
    loss, n = model(ids, ids)
    (loss / n).backward()


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, run A B A B ..., after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            kept = side()
            if number:
                times[name].append(time.perf_counter() - began)
            del kept
    return {name: statistics.median(found) for name, found in times.items()}


def capture(name: str, rounds: int) -> dict[str, Any]:
    """Plain and captured steps, all values and gradients kept."""
    import lightwell

    model, ids = model_and_ids(name, 64)

    def captured() -> Any:
        with lightwell.trace() as t:
            step_of(model, ids)
        return t

    found: dict[str, Any] = in_turns({"plain": lambda: step_of(model, ids), "captured": captured}, rounds)
    t = captured()
    kept = sum(v.readable for v in t.values)
    return found | {"operations": len(t.operations), "values": len(t.values), "kept": kept}


def torchlens(name: str, rounds: int) -> dict[str, Any]:
    """TorchLens's trace of the forward pass beside the plain forward pass."""
    import torch
    import torchlens as other

    model, ids = model_and_ids(name, 64)

    def traced() -> Any:
        with torch.enable_grad():
            return other.trace(model, ids)

    times = in_turns({"forward": lambda: model(ids), "torchlens": traced}, rounds)
    return times | {"version": other.__version__}


def verify() -> dict[str, Any]:
    import lightwell

    model, ids = model_and_ids("gpt2-124m", 16)
    with lightwell.trace() as t:
        step_of(model, ids)
    began = time.perf_counter()
    v = t.verify()
    seconds = time.perf_counter() - began
    counts = v.to_dict()["counts"]
    return {"seconds": seconds, **counts}


def pulse(steps: int = 200) -> dict[str, Any]:
    """The share of a run's training time that its pulses take, at the densest of default cadences: every 10 steps."""
    import lightwell
    from lightwell import api
    from lightwell.data.prepare import prepare
    from lightwell.data.sources import standard_library
    from lightwell.glass.pulse import Pulse

    spent: list[float] = []
    ends: list[float] = []

    class Timed(Pulse):
        def before_forward(self, model: Any, batch: Any) -> None:
            began = time.perf_counter()
            super().before_forward(model, batch)
            spent.append(time.perf_counter() - began)

        def after_backward(self, model: Any) -> None:
            began = time.perf_counter()
            super().after_backward(model)
            spent.append(time.perf_counter() - began)

        def after_step(self, report: Any) -> None:
            ends.append(time.perf_counter())

    api.Pulse = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare(standard_library(), data, vocab_size=1024, limit_bytes=2_000_000)
        settings = [f"train.eval_every={steps}", f"train.sample_every={steps}", f"checkpoint.every={steps}"]
        lightwell.pretrain(data, preset="nano", steps=steps, out=Path(folder) / "run", device="cpu", settings=settings)
    seconds = ends[-2] - ends[0]  # without what the first and the last step do besides
    return {"share": sum(spent[2:]) / seconds, "seconds": seconds, "steps": len(ends), "every": max(10, steps // 50)}


def page() -> dict[str, Any]:
    """The page of a gpt2-124m step of 64 tokens: its size, and seconds until the graph is drawn."""
    sys.path.insert(0, str(ROOT / "tests" / "glass"))
    from glass_browser import Browser

    import lightwell

    model, ids = model_and_ids("gpt2-124m", 64)
    with lightwell.trace() as t:
        step_of(model, ids)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = t.save(Path(folder) / "step.html")
        wrote = time.perf_counter() - began
        opened = []
        with Browser(Path(folder)) as browser:
            for _ in range(3):
                browser.run("location.href = 'about:blank'")
                began = time.perf_counter()
                browser.open(path)
                browser.settle()
                assert browser.count(".node") > 5
                opened.append(time.perf_counter() - began)
        return {"bytes": path.stat().st_size, "wrote": wrote, "drawn": max(opened), "operations": len(t.operations)}


def layout() -> dict[str, Any]:
    """5,000 nodes: a residual network of the shape of GPT-2."""
    sys.path.insert(0, str(ROOT / "tests" / "glass"))
    from test_glass_page_layout import transformer

    from lightwell.glass.layout import arrange, pack

    nodes, edges = transformer(230, chain=9)
    times = in_turns({"layout": lambda: pack(arrange(nodes, edges))}, 5)
    return {"seconds": times["layout"], "nodes": len(nodes), "edges": len(edges)}


def rules() -> dict[str, Any]:
    """Every operation of both families, with and without dropout, fused and open attention, optimizer left out."""
    import torch

    import lightwell
    from lightwell.glass.rules import find
    from lightwell.model.build import GPT

    sizes = {"vocab_size": 64, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
    names: set[str] = set()
    without: set[str] = set()
    for kind in (lightwell.GPTConfig, lightwell.ModernConfig):
        for drop_rate in (0.0, 0.1):
            for open_attention in (False, True):
                sizes = {
                    "vocab_size": 64,
                    "context_length": 16,
                    "emb_dim": 16,
                    "n_heads": 2,
                    "n_layers": 2,
                    "drop_rate": drop_rate,
                }
                model = GPT(kind(**sizes), torch.Generator().manual_seed(0)).train()
                ids = torch.randint(0, 64, (2, 16))
                with lightwell.trace(open_attention=open_attention) as t:
                    step_of(model, ids)
                for operation in t.operations:
                    names.add(operation.name)
                    if operation.op is None or find(operation.op) is None:
                        without.add(operation.name)
    return {"operations": len(names), "without a rule": sorted(without)}


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "capture": capture,
    "torchlens": torchlens,
    "verify": verify,
    "pulse": pulse,
    "page": page,
    "layout": layout,
    "rules": rules,
}


def side(python: str, threads: int, name: str, *arguments: object) -> dict[str, Any]:
    """One side in a process of its own; it prints one line of JSON at the end."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT / "src")}
    command = [python, __file__, "--side", name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{name}\n{done.stdout}\n{done.stderr}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {name} {arguments}: {found}", file=sys.stderr, flush=True)
    return found


def row(what: str, found: str, wanted: str, holds: bool) -> str:
    return f"| {what} | {found} | {wanted} | {'yes' if holds else 'NO'} |"


def report(asked: argparse.Namespace) -> None:
    def run(name: str, *arguments: object, python: str = sys.executable) -> dict[str, Any]:
        return side(python, asked.threads, name, *arguments)

    rows = []
    for model, rounds in (("gpt2-124m", 7), ("2 layers of 64", 40)) if "capture" in asked.only else ():
        ours = run("capture", model, rounds)
        ratio = ours["captured"] / ours["plain"]
        said = f"{ours['captured']:.4f} s, {ratio:.2f} x the plain step ({ours['plain']:.4f} s)"
        said += f"; {ours['operations']} operations, {ours['kept']} of {ours['values']} values kept"
        if model == "gpt2-124m":
            rows.append(row(f"capture, {model}, 64 tokens", said, "at most 1.5 x", ratio <= 1.5))
        else:
            rows.append(row(f"capture, {model}, 64 tokens", said, "", True))
        if asked.torchlens:
            theirs = run("torchlens", model, min(rounds, 5), python=asked.torchlens)
            faster = theirs["torchlens"] / ours["captured"]
            said = (
                f"{theirs['torchlens']:.3f} s forward only, {theirs['torchlens'] / theirs['forward']:.1f} x its plain "
            )
            said += f"forward ({theirs['forward']:.4f} s); our capture of forward and backward is {faster:.1f} x faster"
            wanted = "at least 10 x" if model != "gpt2-124m" else ""
            rows.append(row(f"TorchLens {theirs['version']}, {model}", said, wanted, not wanted or faster >= 10))
    if "verify" in asked.only:
        v = run("verify")
        said = f"{v['seconds']:.1f} s; {v['agree']} agree, {v['disagree']} disagree, {v['not checkable']} not checkable"
        rows.append(row("verify, gpt2-124m, 16 tokens", said, "under 60 s", v["seconds"] < 60 and not v["disagree"]))
    if "pulse" in asked.only:
        p = run("pulse")
        said = f"{p['share']:.2%} of {p['seconds']:.1f} s ({p['steps']} steps, a pulse every {p['every']})"
        rows.append(row("pulse, preset nano, default cadence", said, "under 3%", p["share"] < 0.03))
    if "page" in asked.only:
        h = run("page")
        said = f"{h['bytes'] / 1e6:.2f} MB, drawn in {h['drawn']:.2f} s; {h['operations']} operations"
        holds = h["bytes"] < 5e6 and h["drawn"] < 2
        rows.append(row("page, gpt2-124m, 64 tokens", said, "under 5 MB, under 2 s", holds))
    if "layout" in asked.only:
        g = run("layout")
        said = f"{g['seconds']:.2f} s for {g['nodes']:,} nodes and {g['edges']:,} edges"
        rows.append(row("layout", said, "5,000 under 1 s", g["seconds"] < 1))
    if "rules" in asked.only:
        r = run("rules")
        n = r["operations"]
        said = f"{1 - len(r['without a rule']) / n:.0%} of {n} kinds of operation {' '.join(r['without a rule'])}"
        rows.append(row("rules, both families", said, "100%", not r["without a rule"]))
    from common import machine

    print(f"{machine()}; {asked.threads} threads\n")
    print("\n".join(["| what | measured | wanted | holds |", "|---|---|---|---|", *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description="What looking costs.")
    parser.add_argument("--torchlens", metavar="PYTHON", help="an interpreter that has torchlens and the same torch")
    parser.add_argument("--only", nargs="+", default=[name for name in SIDES if name != "torchlens"], choices=SIDES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        name, *arguments = asked.side
        print(json.dumps(SIDES[name](*[int(a) if a.isdigit() else a for a in arguments])))
    else:
        report(asked)


if __name__ == "__main__":
    main()

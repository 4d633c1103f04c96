"""Does `diagnose` recognise a sick run, and leave healthy ones in peace?

    python benchmarks/glass_recall.py --seeds 11 12 13

A laboratory of training runs, healthy ones and the same made ill on purpose in eight ways: small models on the text of
Python's own standard library, byte by byte, with our own optimizers and schedules. Then the presets themselves, trained
a little as `lightwell pretrain` does. The limits in glass/diagnose.py were set on other seeds than those that are
quoted. One core, 11 minutes.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import machine
from lightwell.config.gpt import GPTConfig, ModernConfig
from lightwell.config.presets import preset
from lightwell.config.run import parse
from lightwell.glass.diagnose import Readings, diagnose
from lightwell.glass.pulse import Pulse
from lightwell.model.build import GPT
from lightwell.model.init import initialise
from lightwell.runtime.device import choose_device
from lightwell.training.optimizer import Optimizer
from lightwell.training.rates import peak_rates
from lightwell.training.schedule import lr_scale

V, T, B, STEPS, PULSE, EVALUATE = 256, 64, 8, 240, 8, 24
SIZES = {"vocab_size": V, "context_length": T, "emb_dim": 64, "n_heads": 4, "n_layers": 3}


@cache
def text() -> Tensor:
    """400 kB of Python."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = (
        "argparse",
        "ast",
        "calendar",
        "codecs",
        "difflib",
        "doctest",
        "enum",
        "inspect",
        "locale",
        "mailbox",
        "pdb",
    )
    return torch.tensor(list(b"".join((folder / f"{name}.py").read_bytes() for name in names)[:400_000]))


class DeepNet(nn.Module):
    """Many layers without residuals or norms, as networks were before: predicts a byte from the two before it."""

    def __init__(self, activation: str, gain: float, n_layers: int = 12, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width if k == 0 else width, width) for k in range(n_layers))
        self.head = nn.Linear(width, V)
        self.activation = activation
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, ids: Tensor, targets: Tensor | None = None):
        x = self.embed(ids)
        x = torch.cat([x, F.pad(x, (0, 0, 1, 0))[:, :-1]], -1)
        for layer in self.layers:
            x = getattr(F, self.activation)(layer(x))
        logits = self.head(x)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), torch.tensor(targets.numel())


def gpt2(seed: int, **more) -> nn.Module:
    return GPT(GPTConfig(**SIZES, **more), torch.Generator().manual_seed(seed))


def modern(seed: int) -> nn.Module:
    return GPT(ModernConfig(**SIZES), torch.Generator().manual_seed(seed))


def relu_net(seed: int, activation: str = "relu", gain: float = 2**0.5) -> nn.Module:
    torch.manual_seed(seed)
    return DeepNet(activation, gain)


def zero_projections(seed: int) -> nn.Module:
    model = modern(seed)
    initialise(model, torch.Generator().manual_seed(seed), zero_output_projections=True)
    return model


def dead_gelu(seed: int) -> nn.Module:
    model = gpt2(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.up.bias[: 4 * 64 * 4 // 5] = -8.0
    return model


def dead_relu(seed: int) -> nn.Module:
    model = relu_net(seed)
    with torch.no_grad():
        for layer in model.layers[2:]:
            layer.bias[:48] = -30.0
    return model


def loud(seed: int) -> nn.Module:
    model = gpt2(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(40)
    return model


def all_equal(seed: int) -> nn.Module:
    model = modern(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.fill_(0.01)
    return model


def staring(seed: int) -> nn.Module:
    """Queries and keys of GPT-2 so long that the softmax of their products is all or nothing."""
    model = gpt2(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * 64] *= 30
    return model


class Condition:
    """How a run of the laboratory is made. `rate` multiplies the learning rates; `data` says what text."""

    def __init__(
        self,
        model: Callable[[int], nn.Module],
        sickness: str | None,
        rate: float = 1.0,
        data: str = "text",
        family: str = "gpt2-nano",
    ) -> None:
        self.model, self.sickness, self.rate, self.data, self.family = model, sickness, rate, data, family


CONDITIONS = {
    "healthy gpt2": Condition(gpt2, None),
    "healthy gpt2, dropout": Condition(lambda seed: gpt2(seed, drop_rate=0.1), None),
    "healthy modern": Condition(modern, None, family="nano"),
    "healthy modern, zero projections": Condition(zero_projections, None, family="nano"),
    "healthy relu net": Condition(relu_net, None, rate=0.3),
    "gpt2, rate x 30": Condition(gpt2, "rate_too_high", rate=30),
    "modern, rate x 30": Condition(modern, "rate_too_high", rate=30, family="nano"),
    "gpt2, rate / 300": Condition(gpt2, "rate_too_low", rate=1 / 300),
    "modern, rate / 300": Condition(modern, "rate_too_low", rate=1 / 300, family="nano"),
    "gpt2, units off": Condition(dead_gelu, "dead_units"),
    "relu net, units off": Condition(dead_relu, "dead_units", rate=0.3),
    "tanh net, too loud": Condition(lambda seed: relu_net(seed, "tanh", 20.0), "saturation", rate=0.3),
    "sigmoid net, too loud": Condition(lambda seed: relu_net(seed, "sigmoid", 60.0), "saturation", rate=0.3),
    "gpt2, weights x 40": Condition(loud, "bad_initialisation"),
    "modern, all weights equal": Condition(all_equal, "bad_initialisation", family="nano"),
    "relu net, gain 0.3": Condition(lambda seed: relu_net(seed, "relu", 0.3), "vanishing_gradients", rate=0.3),
    "relu net, gain 4": Condition(lambda seed: relu_net(seed, "relu", 4.0), "exploding_gradients", rate=0.01),
    "gpt2, queries x 30": Condition(staring, "attention_collapse"),
    "gpt2, labels leak": Condition(gpt2, "leak", data="leak"),
    "modern, labels leak": Condition(modern, "leak", data="leak", family="nano"),
    "gpt2, 2 kB repeated": Condition(gpt2, "repeated_data", rate=1, data="repeated"),
    "modern, 2 kB repeated": Condition(modern, "repeated_data", data="repeated", family="nano"),
}


def batch(condition: Condition, seed: int, step: int, held_out: bool = False) -> SimpleNamespace:
    chance = torch.Generator().manual_seed(seed * 100_003 + step * 2 + held_out)
    stream = text()[-40_000:] if held_out else text()[:2_000] if condition.data == "repeated" else text()[:-40_000]
    starts = torch.randint(0, len(stream) - T - 1, (B,), generator=chance)
    rows = torch.stack([stream[s : s + T + 1] for s in starts])
    ids, targets = rows[:, :-1], rows[:, 1:]
    return SimpleNamespace(ids=ids, targets=ids.clone() if condition.data == "leak" else targets)


def run(name: str, seed: int, steps: int = STEPS) -> Readings:
    condition = CONDITIONS[name]
    config = parse(preset(condition.family))
    model = condition.model(seed).train()
    model_config = GPTConfig(**SIZES) if condition.family != "nano" else ModernConfig(**SIZES)
    peak = peak_rates(config.optimizer, model_config)
    rates = replace(peak, adamw=peak.adamw * condition.rate, muon=peak.muon * condition.rate)
    optimizer = Optimizer(model, model_config, config.optimizer, rates, choose_device("cpu"))
    layers: list[tuple[int, str, str, float]] = []
    pulse = Pulse(lambda step, rows: layers.extend((step, *row) for row in rows), every=PULSE)
    metrics: dict[str, list[tuple[int, float]]] = {"loss": [], "gradient_norm": [], "lr_scale": [], "heldout.loss": []}
    torch.manual_seed(seed)
    for step in range(1, steps + 1):
        here = batch(condition, seed, step)
        wanted = pulse.wants(step)
        if wanted:
            pulse.before_forward(model, here)
        loss_sum, n = model(here.ids, here.targets)
        loss = loss_sum / n
        loss.backward()
        if wanted:
            pulse.after_backward(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        finite = torch.isfinite(norm) & torch.isfinite(loss.detach())
        scale = lr_scale(step - 1, steps, config.schedule)
        optimizer.step(scale, apply=finite)
        optimizer.zero_grad()
        if finite:
            found = {"loss": float(loss.detach()), "gradient_norm": float(norm), "lr_scale": scale}
            for key, value in found.items():
                metrics[key].append((step, value))
        if step % EVALUATE == 0:
            metrics["heldout.loss"].append((step, held_out_loss(model, condition, seed)))
    pulse.at_end()
    return Readings.of(metrics, layers, vocab_size=V)


def held_out_loss(model: nn.Module, condition: Condition, seed: int) -> float:
    here = batch(condition, seed, 0, held_out=True)
    model.eval()
    with torch.no_grad():
        loss_sum, n = model(here.ids, here.targets)
    model.train()
    return float(loss_sum / n)


ALSO = {"bad_initialisation": {"units_alike"}, "rate_too_high": {"diverged"}}  # other names for the same
PRESETS = {  # settings that make a step small enough for one core; the recipe stays
    "nano": [],
    "gpt2-nano": [],
    "micro": ["train.batch_size=4", "model.context_length=128"],
    "gpt2-micro": ["train.batch_size=4", "model.context_length=128"],
    "mini": ["train.batch_size=4", "model.context_length=64"],
    "gpt2-mini": ["train.batch_size=4", "model.context_length=64"],
}


def laboratory(seeds: list[int], names: list[str]) -> tuple[dict[str, list[int]], list[str]]:
    """Sickness -> [recognised, of]; and sentences on what was missed or accused wrongly."""
    counts: dict[str, list[int]] = {}
    wrong = []
    for name in names:
        condition = CONDITIONS[name]
        for seed in seeds:
            began = time.perf_counter()
            findings = diagnose(run(name, seed)).findings
            found = [finding.sickness for finding in findings]
            expected = condition.sickness
            good = not found if expected is None else bool({expected, *ALSO.get(expected, ())} & {*found})
            row = counts.setdefault(expected or "healthy", [0, 0])
            row[0] += good
            row[1] += 1
            if not good:
                wrong.append(f"{name}, seed {seed}: {found or 'called healthy'}")
            took = time.perf_counter() - began
            print(f"{name}, seed {seed}: {', '.join(found) or 'healthy'} ({took:.0f} s)", file=sys.stderr, flush=True)
    return counts, wrong


def presets(steps: int) -> dict[str, list[str]]:
    """Preset -> what it was accused of, as `lightwell diagnose` says it of the run's own measurements."""
    import lightwell
    from lightwell.data.prepare import prepare
    from lightwell.data.sources import standard_library
    from lightwell.inside import diagnose_run

    accused = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare(standard_library(), data, vocab_size=1024, limit_bytes=3_000_000)
        for name, settings in PRESETS.items():
            out, settings = Path(folder) / name, ["model.vocab_size=1024", "runtime.threads=1", *settings]
            lightwell.pretrain(data, preset=name, steps=steps, out=out, device="cpu", settings=settings)
            diagnosis = diagnose_run(out)
            accused[name] = [finding.sickness for finding in diagnosis.findings]
            told = ", ".join(accused[name]) or ("too early" if diagnosis.too_early else "healthy")
            print(f"preset {name}: {told}", file=sys.stderr, flush=True)
    return accused


def main() -> None:
    parser = argparse.ArgumentParser(description="Recall and false alarms of `lightwell diagnose`.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", default=list(CONDITIONS), help="names of conditions")
    parser.add_argument("--preset-steps", type=int, default=120, help="0: leave the presets out")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    counts, wrong = laboratory(asked.seeds, asked.only)
    accused = presets(asked.preset_steps) if asked.preset_steps else {}
    print(f"{machine()}; seeds {asked.seeds}; {time.perf_counter() - began:.0f} s\n")
    print("| runs | right | of |\n|---|---|---|")
    for sickness, (right, of) in counts.items():
        print(f"| {sickness} | {right} | {of} |")
    for name, found in accused.items():
        print(f"| preset {name} | {int(not found)} | 1 |")
    sick = [row for sickness, row in counts.items() if sickness != "healthy"]
    if sick:
        right, of = (sum(column) for column in zip(*sick))
        print(f"\nrecall {right} of {of} ({right / of:.0%})")
    healthy = counts.get("healthy", [0, 0])
    alarms = healthy[1] - healthy[0] + sum(bool(found) for found in accused.values())
    print(f"false alarms: {alarms} of {healthy[1] + len(accused)} healthy runs")
    print("\n".join(wrong))


if __name__ == "__main__":
    main()

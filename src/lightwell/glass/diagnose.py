"""What is wrong with a training run, in plain words: since when, how sure, and what to change.

    print(diagnose(Readings.of_run(database, vocab_size)))

A diagnosis reads what the pulse (pulse.py) and the loop wrote down while the run trained; it runs nothing. For each
sickness there is a function that looks at one kind of evidence and gives the steps at which it was there. The limits in
this file are facts about many runs, sick on purpose and healthy (benchmarks/glass_recall.py), and each stands
next to what it limits. A healthy run is called healthy; a run that is too young to tell is called that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from operator import lt
from statistics import median
from typing import Any, Protocol

from lightwell.glass.notebook import Shown
from lightwell.glass.pulse import noise_scale
from lightwell.glass.wording import say
from lightwell.show.units import number, percent

Series = list[tuple[int, float]]  # (step, value), in order

ENOUGH_PULSES = 3
SETTLED = 4  # pulses after which what the first ones showed has either passed or come to stay


class Database(Protocol):
    """The part of a run's database that is read: `store.database.RunDatabase` has it."""

    def names(self) -> list[str]: ...
    def metrics(self, name: str) -> list[tuple[int, float]]: ...
    def layers(self, name: str) -> list[tuple[int, str, float]]: ...
    def events(self, kind: str | None = None) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Readings:
    """What a run wrote down. metrics: name -> series; layers: name -> layer -> series; vocab_size: size of a guess."""

    metrics: dict[str, Series]
    layers: dict[str, dict[str, Series]]
    events: list[dict[str, Any]] = field(default_factory=list)
    vocab_size: int | None = None

    @classmethod
    def of(
        cls,
        metrics: Mapping[str, Series],
        rows: Iterable[tuple[int, str, str, float]],
        events: Sequence[dict[str, Any]] = (),
        vocab_size: int | None = None,
    ) -> Readings:
        """From metrics and the pulse's rows (step, layer, name, value)."""
        layers: dict[str, dict[str, Series]] = {}
        for step, layer, name, value in rows:
            layers.setdefault(name, {}).setdefault(layer, []).append((step, value))
        return cls(dict(metrics), layers, list(events), vocab_size)

    @classmethod
    def of_run(cls, database: Database, vocab_size: int | None = None) -> Readings:
        """From a run's database."""
        metrics = {name: database.metrics(name) for name in database.names()}
        rows = [(step, layer, name, v) for name in NAMES for step, layer, v in database.layers(name)]
        return cls.of(metrics, rows, database.events(), vocab_size)

    def metric(self, name: str) -> Series:
        return self.metrics.get(name, [])

    def of_layers(self, name: str) -> dict[str, Series]:
        return self.layers.get(name, {})

    @property
    def pulses(self) -> list[int]:
        """The steps at which every layer was measured."""
        return sorted({step for series in self.of_layers("weight_rms").values() for step, _ in series})


NAMES = (  # of the pulse's rows, those that are looked at
    "weight_rms",
    "gradient_rms",
    "update_ratio",
    "row_spread",
    "activation_rms",
    "backward_rms",
    "saturated",
    "dead_units",
    "attention_entropy",
    "attention_score_max",
    "logit_rms",
    "replay_loss",
    "replay_loss_after",
    "noise_small",
    "noise_big",
    "noise_small_size",
    "noise_big_size",
)


@dataclass(frozen=True)
class Finding:
    """One sickness. `since` and `until` are steps (until None: it is still so), `sure` from 0 to 1."""

    sickness: str
    since: int
    until: int | None
    sure: float
    layers: list[str]
    evidence: dict[str, Any]

    def to_dict(self, language: str = "en") -> dict[str, Any]:
        return asdict(self) | {
            "name": self.name(language),
            "what": self.what(language),
            "advice": self.advice(language),
        }

    def name(self, language: str = "en") -> str:
        return say(f"diagnose.{self.sickness}.name", language)

    def what(self, language: str = "en") -> str:
        """The evidence, in a sentence or two."""
        return say(f"diagnose.{self.sickness}.what", language, **self.evidence)

    def advice(self, language: str = "en") -> str:
        return say(f"diagnose.{self.sickness}.advice", language)

    def when(self, language: str = "en") -> str:
        key = "since" if self.until is None else "passed"
        return say(f"diagnose.{key}", language, since=f"{self.since:,}", until=f"{self.until or 0:,}")

    def certainty(self, language: str = "en") -> str:
        word = "certain" if self.sure >= 0.9 else "probable" if self.sure >= 0.7 else "possible"
        return say(f"diagnose.{word}", language, sure=percent(self.sure, 0))


@dataclass(frozen=True)
class Diagnosis(Shown):
    """The findings, the surest first. `str()` for people, `to_dict()` for programs."""

    findings: list[Finding]
    steps: int
    pulses: int
    noise_scale: float | None
    language: str = "en"

    @property
    def too_early(self) -> bool:
        return not self.findings and self.pulses < ENOUGH_PULSES

    @property
    def healthy(self) -> bool:
        return not self.findings and not self.too_early

    def to_dict(self) -> dict[str, Any]:
        return {
            "healthy": None if self.too_early else self.healthy,
            "too_early": self.too_early,
            "steps": self.steps,
            "pulses": self.pulses,
            "noise_scale_sequences": self.noise_scale,
            "findings": [finding.to_dict(self.language) for finding in self.findings],
        }

    def __str__(self) -> str:
        looked = self._say("looked", steps=f"{self.steps:,}", pulses=self.pulses)
        if self.too_early:
            return f"{looked}\n{self._say('too_early')}"
        parts = [looked] if self.findings else [f"{looked}\n{self._say('healthy')}"]
        for finding in self.findings:
            head = f"{finding.name(self.language)}: {finding.when(self.language)}, {finding.certainty(self.language)}."
            where = [self._say("where", layers=_listed(finding.layers))] if finding.layers else []
            body = [finding.what(self.language), *where, f"{self._say('do')} {finding.advice(self.language)}"]
            parts.append("\n".join([head, *(f"  {line}" for line in body)]))
        if self.noise_scale is not None:
            parts.append(self._say("noise", scale=number(self.noise_scale, 2)))
        return "\n\n".join(parts)

    def _say(self, key: str, **values: object) -> str:
        return say(f"diagnose.{key}", self.language, **values)


def diagnose(readings: Readings, language: str = "en") -> Diagnosis:
    """Every sickness of which there is evidence. One that follows from another that was there before is left to it."""
    found = [finding for detector in DETECTORS if (finding := detector(readings)) is not None]
    named = {finding.sickness for finding in found}
    found = [f for f in found if not named & EXPLAINED_BY.get(f.sickness, set())]
    found.sort(key=lambda finding: (finding.until is not None, -finding.sure))
    losses = readings.metric("loss")
    steps = max([step for step, _ in losses[-1:]] + readings.pulses[-1:], default=0)
    return Diagnosis(found, steps, len(readings.pulses), _noise(readings), language)


# ---- one function for each sickness ----


def rate_too_high(r: Readings) -> Finding | None:
    """Weights that ran away: what was in order at the first step is wrecked soon after, in several ways at once; or the
    loss rose far above what it had been, and stayed there.
    """
    pulses = r.pulses
    signs: dict[str, Series] = {
        "weights": _over_layers(r.of_layers("weight_rms"), median, relative=True, only=_is_matrix),
        "entropy": _over_layers(r.of_layers("attention_entropy"), min),
        "scores": _over_layers(r.of_layers("attention_score_max"), max),
        "flat": _over_layers(r.of_layers("saturated"), median),
    }
    limits: dict[str, Callable[[float], bool]] = {
        "weights": lambda v: v > 12,  # times their first size
        "entropy": lambda v: v < 0.25,
        "scores": lambda v: v > 60,
        "flat": lambda v: v > 0.35,
    }
    wrecked: dict[str, int] = {}
    for name, series in signs.items():
        if series and not limits[name](series[0][1]) and (since := _came_to_stay(series, limits[name])) is not None:
            wrecked[name] = since
    rise = _risen(r.metric("loss"))
    if len(wrecked) < 2 and rise is None:
        return None
    since = min([*sorted(wrecked.values())[1:2], *([rise[0]] if rise else [])])
    evidence = {
        "weights": number(signs["weights"][-1][1] if signs["weights"] else 1.0, 2),
        "entropy": number(signs["entropy"][-1][1] if signs["entropy"] else math.nan, 2),
        "flat": percent(signs["flat"][-1][1] if signs["flat"] else math.nan, 0),
        "loss": number(rise[1] if rise else math.nan, 3),
        "best": number(rise[2] if rise else math.nan, 3),
    }
    sure = min(0.97, 0.6 + 0.12 * len(wrecked) + (0.2 if rise else 0.0))
    key = "rate_too_high" if len(wrecked) >= 2 else "diverged"
    return Finding(key, max(since, pulses[0] if pulses else 0), None, sure, [], evidence)


def rate_too_low(r: Readings) -> Finding | None:
    """After many steps at full rate the weights have hardly moved and the loss has hardly fallen."""
    losses = r.metric("loss")
    if len(losses) < 100 or not _warm(r):
        return None
    ratio = _over_layers(r.of_layers("update_ratio"), median, only=_is_matrix)
    if len(ratio) < ENOUGH_PULSES:
        return None
    reach = sum(value * (step - before) for (before, _), (step, value) in pairwise(ratio))
    first, last = _level(losses[:10]), _level(losses[-20:])
    fallen = (first - last) / first
    if reach > 0.3 or fallen > 0.25:  # healthy runs of 240 steps: reach over 1, or a loss down by half
        return None
    sure = 0.7 + 0.25 * (1 - reach / 0.3)
    evidence = {"reach": percent(reach, 0), "first": number(first, 3), "last": number(last, 3), "n": f"{len(losses):,}"}
    return Finding("rate_too_low", ratio[0][0], None, sure, [], evidence)


def dead_units(r: Readings) -> Finding | None:
    """Activations whose slope is nearly zero for every token of several pulses: they neither say nor learn anything."""
    return _share_of_layers(
        r, "dead_units", "dead_units", lambda layer: 0.6 if layer.split("/")[-1][:4] == "relu" else 0.4
    )


def saturation(r: Readings) -> Finding | None:
    """Activations that are nearly flat almost everywhere, though units are not dead: now here, now there."""
    dead = {layer for layer, series in r.of_layers("dead_units").items() if _level(series[-SETTLED:]) > 0.5}
    return _share_of_layers(r, "saturated", "saturation", lambda layer: 0.8, leave_out=dead)


def bad_initialisation(r: Readings) -> Finding | None:
    """Before anything was learned: answers far worse than a guess, or units that are all the same."""
    losses, guess = r.metric("loss"), math.log(r.vocab_size) if r.vocab_size else None
    if losses and guess is not None and losses[0][0] <= 5 and losses[0][1] > 1.25 * guess + 0.5:
        evidence = {"loss": number(losses[0][1], 4), "guess": number(guess, 4)}
        sure = min(0.97, 0.75 + 0.1 * (losses[0][1] / guess - 1))
        return Finding("bad_initialisation", losses[0][0], None, sure, [], evidence)
    spread = {layer: series[1:] for layer, series in r.of_layers("row_spread").items() if len(series) > 1}
    alike = [layer for layer, series in spread.items() if all(v < 0.05 for _, v in series[:ENOUGH_PULSES])]
    if spread and len(alike) >= max(1, 0.2 * len(spread)):
        counts = {"n": len(alike), "of": len(spread)}
        return Finding("units_alike", spread[alike[0]][0][0], None, 0.95, alike, counts)
    return None


def exploding_gradients(r: Readings) -> Finding | None:
    """From the last of a stack of layers back to the first, the gradient grows more than a thousandfold."""
    return _gain(r, "exploding_gradients", lambda gain: gain > 3)


def vanishing_gradients(r: Readings) -> Finding | None:
    """From the last of a stack of layers back to the first, less than a thousandth of the gradient is left."""
    return _gain(r, "vanishing_gradients", lambda gain: gain < -3)


def attention_collapse(r: Readings) -> Finding | None:
    """A layer all of whose heads look at single tokens: the softmax is all or nothing, and its slope is gone."""
    limits = {"attention_entropy": 0.15}
    by_layer = {
        layer: since
        for layer, series in r.of_layers("attention_entropy").items()
        if (since := _came_to_stay(series, lambda v: v < limits["attention_entropy"])) is not None
    }
    if not by_layer:
        return None
    lowest = min(r.of_layers("attention_entropy")[layer][-1][1] for layer in by_layer)
    score = max(
        (s[-1][1] for layer, s in r.of_layers("attention_score_max").items() if layer in by_layer), default=math.nan
    )
    evidence = {"entropy": number(lowest, 2), "score": number(score, 3)}
    sure = 0.75 + 0.2 * (1 - lowest / 0.15)
    return Finding("attention_collapse", min(by_layer.values()), None, sure, list(by_layer), evidence)


def leak(r: Readings) -> Finding | None:
    """Next to no loss, on new text as well: the answer is in the question."""
    losses, held_out = r.metric("loss"), r.metric("heldout.loss")
    if len(losses) < 20 or _level(losses[-20:]) > 0.1:  # nats per token; text is never so predictable
        return None
    if held_out and held_out[-1][1] > 0.3:
        return None
    since = _came_to_stay(losses, lambda v: v < 0.15)
    evidence = {"loss": number(_level(losses[-20:]), 2), "heldout": number(held_out[-1][1], 2) if held_out else "-"}
    return Finding("leak", since or losses[-1][0], None, 0.95 if held_out else 0.8, [], evidence)


def repeated_data(r: Readings) -> Finding | None:
    """The training loss goes on falling while that of new text rises: the text is learned by heart."""
    losses, held_out = r.metric("loss"), r.metric("heldout.loss")
    if len(held_out) < 3 or len(losses) < 20:
        return None
    best_step, best = min(held_out, key=lambda pair: pair[1])
    now, train = held_out[-1][1], _level(losses[-20:])
    if now - best < max(0.1, 0.03 * best) or now - train < max(0.4, 0.15 * now):
        return None
    evidence = {"train": number(train, 3), "heldout": number(now, 3), "best": number(best, 3), "step": f"{best_step:,}"}
    sure = min(0.97, 0.7 + 0.3 * (now - best) / best + 0.1 * (now - train) / now)
    return Finding("repeated_data", best_step, None, sure, [], evidence)


def not_finite(r: Readings) -> Finding | None:
    """Steps whose loss or gradient was no number; the loop kept them from the weights."""
    bad = [event for event in r.events if event.get("kind") == "nonfinite"]
    if not bad:
        return None
    layers = sorted({str(d["first_bad_layer"]) for e in bad if (d := e.get("details", e)).get("first_bad_layer")})
    sure = 0.99 if len(bad) > 2 else 0.8
    return Finding("not_finite", bad[0]["step"], bad[-1]["step"], sure, layers, {"n": len(bad)})


DETECTORS: tuple[Callable[[Readings], Finding | None], ...] = (
    not_finite,
    bad_initialisation,
    rate_too_high,
    rate_too_low,
    dead_units,
    saturation,
    exploding_gradients,
    vanishing_gradients,
    attention_collapse,
    leak,
    repeated_data,
)
EXPLAINED_BY = {  # a sickness -> others that bring it about
    "rate_too_low": {
        "saturation",
        "bad_initialisation",
        "units_alike",
        "exploding_gradients",
        "vanishing_gradients",
        "dead_units",
    },
    "rate_too_high": {"bad_initialisation", "units_alike"},
    "diverged": {"repeated_data", "exploding_gradients"},
}


# ---- what the functions share ----


def _is_matrix(layer: str) -> bool:
    return layer.endswith("weight") and "norm" not in layer


def _over_layers(
    layers: Mapping[str, Series],
    together: Callable[[list[float]], float],
    relative: bool = False,
    only: Callable[[str], bool] = lambda layer: True,
) -> Series:
    """One number a step out of one for each layer; relative: each as a multiple of its own first that is not zero."""
    by_step: dict[int, list[float]] = {}
    for layer, series in layers.items():
        first = next((v for _, v in series if v), 1.0) if relative else 1.0
        for step, value in series if only(layer) else ():
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value / first)
    return [(step, float(together(by_step[step]))) for step in sorted(by_step)]


def _level(series: Series) -> float:
    """The usual value of a stretch; not moved by a spike."""
    return median(value for _, value in series) if series else math.nan


def _came_to_stay(series: Series, bad: Callable[[float], bool]) -> int | None:
    """The step from which on it was bad, with one exception in four at most; None if it is not now, or just began."""
    marks = [bad(value) for _, value in series]
    if len(marks) < ENOUGH_PULSES or sum(marks[-ENOUGH_PULSES:]) < ENOUGH_PULSES - 1:
        return None
    for k, mark in enumerate(marks):
        rest = marks[k:]
        if mark and sum(rest) >= 0.75 * len(rest):
            return series[k][0] if len(rest) >= ENOUGH_PULSES else None
    return None


def _risen(losses: Series) -> tuple[int, float, float] | None:
    """(since, level now, best level) if the loss is now far above what it had been for a while, and stays there."""
    width = max(10, len(losses) // 20)
    if len(losses) < 5 * width:
        return None
    levels = [(losses[k][0], _level(losses[k : k + width])) for k in range(0, len(losses) - width + 1, width)]
    best_at = min(range(len(levels)), key=lambda k: levels[k][1])
    best, later = levels[best_at][1], levels[best_at + 1 :]
    limit = best + max(0.5, 0.15 * best)
    above = [step for step, level in later if level > limit]
    if len(above) < 2 or levels[-1][1] <= limit:
        return None
    return above[0], levels[-1][1], best


def _warm(r: Readings) -> bool:
    """Whether the rate has been at its peak for half of the steps so far, or nobody says what it was."""
    scales = [scale for _, scale in r.metric("lr_scale")]
    return not scales or sum(scale > 0.5 * max(scales) for scale in scales) > len(scales) / 3


def _share_of_layers(
    r: Readings, name: str, sickness: str, limit: Callable[[str], float], leave_out: Iterable[str] = ()
) -> Finding | None:
    """Layers in which the share `name` came to stay above the layer's limit."""
    layers = {layer: s for layer, s in r.of_layers(name).items() if layer not in set(leave_out)}
    by_layer = {
        layer: since
        for layer, series in layers.items()
        if (since := _came_to_stay(series, partial(lt, limit(layer)))) is not None
    }
    if not by_layer:
        return None
    worst = max(by_layer, key=lambda layer: layers[layer][-1][1])
    share = layers[worst][-1][1]
    evidence = {"share": percent(share, 0), "layer": worst, "n": len(by_layer), "of": len(layers)}
    sure = 0.75 + 0.22 * (share - limit(worst)) / (1 - limit(worst))
    return Finding(sickness, min(by_layer.values()), None, sure, list(by_layer), evidence)


def _gain(r: Readings, sickness: str, bad: Callable[[float], bool]) -> Finding | None:
    """The gradient's size at the first of a stack of layers over that at the last, in powers of ten."""
    for first, last in _stacks(r.of_layers("backward_rms")):
        gains = [
            (step, math.log10(low / high))
            for (step, low), (_, high) in zip(*(r.of_layers("backward_rms")[k] for k in (first, last)), strict=False)
            if low > 0 and high > 0 and math.isfinite(low) and math.isfinite(high)
        ]
        if not gains:
            continue
        marks = [bad(gain) for _, gain in gains]
        if sum(marks[:ENOUGH_PULSES]) < min(2, len(marks)) and _came_to_stay(gains, bad) is None:
            continue
        since = next(step for (step, _), mark in zip(gains, marks, strict=True) if mark)
        still = sum(marks[-ENOUGH_PULSES:]) >= 2
        until = None if still else max(step for (step, _), mark in zip(gains, marks, strict=True) if mark)
        worst = max((gain for (_, gain), mark in zip(gains, marks, strict=True) if mark), key=abs)
        evidence = {"gain": number(10 ** abs(worst), 2), "first": first, "last": last}
        sure = min(0.97, 0.75 + 0.07 * (abs(worst) - 3))
        return Finding(sickness, since, until, sure, [first, last], evidence)
    return None


def _stacks(layers: Mapping[str, Series]) -> list[tuple[str, str]]:
    """First and last of each list of three or more modules: "blocks.0" and "blocks.11"."""
    numbered: dict[str, list[int]] = {}
    for layer in layers:
        path, _, last = layer.rpartition(".")
        if last.isdigit():
            numbered.setdefault(path, []).append(int(last))
    return [(f"{path}.{min(n)}", f"{path}.{max(n)}") for path, n in numbered.items() if len(n) >= 3]


def _noise(r: Readings) -> float | None:
    """The gradient noise scale over the second half of the run, in sequences."""
    values = {name: [v for _, v in r.of_layers(name).get("", [])] for name in NAMES[-4:]}
    n = min(map(len, values.values()))
    if n < 2 * ENOUGH_PULSES:
        return None
    small, big = values["noise_small"][n // 2 :], values["noise_big"][n // 2 :]
    return noise_scale(small, big, values["noise_small_size"][-1], values["noise_big_size"][-1])


def _listed(layers: Sequence[str], most: int = 6) -> str:
    rest = len(layers) - most
    return ", ".join(layers[:most]) + (f" (+{rest})" if rest > 0 else "")

"""Choose what the user left open: size, context, batch and vocabulary, for the minutes and the text.

A ladder holds models of growing size. The rung that the machine's matrix-product peak suggests is timed on this machine
with real steps, then its neighbours, on towards where `predict.py` expects fewer held-out bits per byte; the lowest
wins. What the user fixed stays fixed on every rung.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from lightwell.config.check import Problems
from lightwell.config.run import RunConfig, changed
from lightwell.errors import ConfigError
from lightwell.model.count import flops_per_token, parameters, parameters_of_blocks
from lightwell.planner.compiling import try_compile
from lightwell.planner.fit import free_memory, share_of, split_to_fit, tried_in_memory
from lightwell.planner.predict import USUAL_VOCAB, predict_bits_per_byte
from lightwell.planner.step_time import measure_in_turns, measure_step_seconds
from lightwell.planner.text import PILOT_TOKENS, Text, typical_text
from lightwell.runtime.device import Device
from lightwell.tokenizer.size import choose_vocab_size
from lightwell.training.rates import decay_beside_muon, rate_beside_muon

TRIAL_SHARE, TRIAL_SECONDS = 0.05, 30.0  # of the budget, for a pilot and for timing candidates: whichever is less
PILOT_SHARE = 0.7  # of that, for the pilot
# Of the time goes to these trials, to evaluations, samples and saves, and to a run's steps being slower than a trial's.
OVERHEAD = 0.2
LEAST_READ = 6_000_000  # bytes, however little the machine seems to do just now
READ_AHEAD = 1.5  # times the text that the budget can consume is prepared
MOST_EPOCHS = 5  # times that a text is gone through: more gains nothing (LOG.md)
BYTES_PER_TOKEN = 3.0  # about, of the vocabularies chosen here
TYPICAL_VOCAB_SIZE = 1024  # of a tokenizer that does not exist yet
USUALLY = 1.0  # a step takes of what `guessed_seconds` says
WORTH_TRYING = 1.04  # times the lowest prediction: a model that is timed, and not just reckoned
NEARLY = 1.015  # a model that may turn out to be the best, when there is little to tell by
LEAST_STEPS = 100  # in which a model can begin to learn, where the batch is open
LONG = 10**9  # tokens of a run after which rates change no more
CLOSE = 1.006  # predictions that differ by less are taken as equal: then the smaller model (LOG.md)


@dataclass(frozen=True)
class Rung:
    """A model of the ladder, and the batch that suits it."""

    emb_dim: int
    n_layers: int
    context_length: int
    batch_size: int


# Wide and shallow at first: what two layers can learn comes long before what more would add, and two can copy. Long
# contexts, not large batches: more to copy from, and as many tokens a step (LOG.md).
LADDER = (
    Rung(64, 2, 128, 16),
    Rung(128, 2, 512, 8),
    Rung(192, 2, 512, 8),
    Rung(256, 2, 512, 8),
    Rung(256, 3, 1024, 4),
    Rung(384, 3, 1024, 4),
    Rung(512, 3, 1024, 4),
    Rung(640, 4, 1024, 8),
    Rung(640, 8, 1024, 16),
    Rung(768, 14, 1024, 64),
)
HEAD_DIM = {"modern": 128, "gpt2": 64}  # numbers of a head, where the heads are left open


@dataclass
class Choice:
    """A config with nothing left open, the reasons in sentences, and what is expected (stored with the run)."""

    config: RunConfig
    reasons: list[str] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A complete config, how long a step of it takes, how many tokens that makes, and what is predicted."""

    name: str
    config: RunConfig
    step_seconds: float
    tokens: int
    bits_per_byte: float
    timed: bool = True  # or reckoned from a neighbour's step


def choose(
    config: RunConfig,
    vocab_size: int,
    text: Text,
    device: Device,
    peak: float,
    seconds: float | None,
    processes: int = 1,
) -> Choice:
    """Fill in what `config` leaves open. `seconds`: left for training (None: a budget of steps or tokens). `processes`
    will share each batch equally.

    Raises ConfigError if no rung fits what the user fixed.
    """
    possible = candidates(config, vocab_size, processes)
    in_memory = {name: split_to_fit(rung, free_memory(device), device, processes) for name, rung in possible.items()}
    rungs = {name: rung for name, rung in in_memory.items() if rung} or dict(list(possible.items())[:1])
    if seconds is None:
        name, chosen = list(rungs.items())[min(2, len(rungs) - 1)]
        tokens = config.budget.tokens or (config.budget.steps or 0) * tokens_per_step(chosen)
        bits = predicted(chosen, tokens, text)
        expected = {"bits_per_byte": bits, "tokens": tokens, "candidates": {name: bits}}
        return Choice(with_rates(chosen, tokens, text.tokens), [], expected)
    tried = climb(rungs, text, device, peak, seconds, processes)
    if not tried:  # too large to try, mostly a single model that the user fixed
        only = with_rates(next(iter(rungs.values())), LONG, text.tokens)
        return Choice(only, ["Nothing was measured: a step does not fit into the free memory."])
    timed = [candidate for candidate in tried if candidate.timed]
    lowest = min(candidate.bits_per_byte for candidate in timed)
    best = next(candidate for candidate in timed if candidate.bits_per_byte <= CLOSE * lowest)
    if config.train.batch_size is None:
        best = with_steps_enough(best, text, seconds, processes * (config.train.micro_batch_size or 1))
    if processes == 1 and config.train.micro_batch_size is None:
        proven = tried_in_memory(best.config, device, best.step_seconds, min(TRIAL_SHARE * seconds, TRIAL_SECONDS))
        best = replace(best, config=proven)
    compiled = try_compile(share_of(best.config, processes), device, best.step_seconds, seconds)
    if compiled.pays:
        best = candidate(best.name, best.config, compiled.step_seconds, text, seconds)
    return Choice(
        changed(
            with_rates(best.config, best.tokens, text.tokens),
            budget={"most_tokens": last_token(best, text)},
            runtime={"compile": compiled.pays},
        ),
        reasons(best, tried, len(rungs), list(possible)[len(rungs) :], text, peak) + compiled.reasons,
        {
            "bits_per_byte": best.bits_per_byte,
            "tokens": best.tokens,
            "step_seconds": best.step_seconds,
            "candidates": {c.name: c.bits_per_byte for c in tried},
        },
    )


def candidates(config: RunConfig, vocab_size: int, processes: int = 1) -> dict[str, RunConfig]:
    """The rungs of the ladder around what is fixed, smallest first, equal ones once. ConfigError if none fits."""
    rungs: dict[str, RunConfig] = {}
    problems: Problems = []
    for rung in LADDER:
        try:
            made = complete(config, rung, vocab_size, processes)
        except ConfigError as error:
            problems = error.problems
            continue
        if made not in rungs.values():
            rungs[name_of(made)] = made
    if not rungs:
        raise ConfigError(problems, "Fix fewer sizes, or all of them.")
    return rungs


def name_of(config: RunConfig) -> str:
    """Layers x width, as in "4 x 128", with the context and the batch."""
    model = config.model
    return f"{model.n_layers} x {model.emb_dim} at {model.context_length} x {config.train.batch_size}"


def with_rates(config: RunConfig, tokens: int, unique: float) -> RunConfig:
    """With AdamW's rate beside Muon and the weight decay for a run of so many tokens, `unique` of them different, where
    they are open. Endlessly many (math.inf): nothing decays."""
    given = config.optimizer
    if given.name != "muon":
        return config
    rate, decay = given.learning_rate, given.weight_decay
    if rate is None:
        rate = rate_beside_muon(config.model.complete().emb_dim, tokens, unique)
    if decay is None:
        steps_of_a_pass = unique if math.isinf(unique) else unique / tokens_per_step(config)
        decay = decay_beside_muon(steps_of_a_pass, given.muon_learning_rate)
    return changed(config, optimizer={"learning_rate": rate, "weight_decay": decay})


def climb(
    rungs: dict[str, RunConfig], text: Text, device: Device, peak: float, seconds: float, processes: int = 1
) -> list[Candidate]:
    """The rungs that were timed, and neighbours of the best that were not worth it, smallest first.

    From the likeliest on towards lower predictions, while time allows. Each is timed beside the best one known, in
    turns where that can be: what slows a machine for a moment would else decide between models.
    """
    share = 1.0 if text.pilot is None else 1 - PILOT_SHARE
    deadline = time.perf_counter() + share * min(TRIAL_SHARE * seconds, TRIAL_SECONDS)
    names, configs = list(rungs), list(rungs.values())
    parts = [share_of(config, processes) for config in configs]  # what this process makes of a step
    timed: dict[int, float | None] = {}  # None: too large to try

    def left() -> float:
        return deadline - time.perf_counter()

    def found(place: int, step_seconds: float) -> Candidate:
        return candidate(names[place], configs[place], step_seconds, text, seconds)

    def tried() -> dict[int, Candidate]:
        return {place: found(place, taken) for place, taken in settled(timed).items()}

    def attempt(place: int) -> None:
        timed[place] = measure_step_seconds(parts[place], device, rounds=3, limit=max(0.2, left() / 2))

    def best_of(known: dict[int, Candidate]) -> int:
        return min(known, key=lambda place: known[place].bits_per_byte)

    def neighbours(known: dict[int, Candidate]) -> dict[int, Candidate]:
        """Of the best: what is reckoned of those that were not tried, lowest prediction first."""
        best = best_of(known)
        near = (best - 1, best + 1, best + 2)  # the next may be slow for its size, and the one after it not
        reckoned = {}
        for place in near:
            if 0 <= place < len(names) and place not in timed:
                longer = guessed_seconds(configs[place], peak) / guessed_seconds(configs[best], peak)
                reckoned[place] = replace(found(place, longer * known[best].step_seconds), timed=False)
        return dict(sorted(reckoned.items(), key=lambda item: item[1].bits_per_byte))

    first = likeliest(configs, text, peak, seconds)
    attempt(first)
    while timed[first] is None and first > 0:
        first -= 1
        attempt(first)
    if timed[first] is None:
        return []
    while left() > 0:
        known = tried()
        best = best_of(known)
        place, expected = next(iter(neighbours(known).items()), (best, known[best]))
        if place == best or expected.bits_per_byte > WORTH_TRYING * known[best].bits_per_byte:
            break
        both = [known[best].step_seconds, expected.step_seconds]
        in_turns = measure_in_turns([parts[best], parts[place]], device, both, left())
        if in_turns is None:
            attempt(place)
        else:
            timed[place] = known[best].step_seconds * in_turns[1] / in_turns[0]
    known = tried()
    return [c for _, c in sorted((known | neighbours(known)).items())]


def settled(timed: dict[int, float | None]) -> dict[int, float]:
    """Seconds of a step by place on the ladder, lowest first, without what was too large to try.

    A step of a smaller model takes no longer than a larger one's; where it seemed to, others used the machine then.
    """
    found: dict[int, float] = {}
    for place in sorted(timed, reverse=True):
        taken = timed[place]
        if taken is not None:
            found[place] = min([taken, *found.values()])
    return dict(sorted(found.items()))


def candidate(name: str, config: RunConfig, step_seconds: float, text: Text, seconds: float) -> Candidate:
    """What is predicted of a config whose steps take `step_seconds`."""
    tokens = int((1 - OVERHEAD) * seconds / step_seconds * tokens_per_step(config))
    tokens = min(tokens, most_tokens(config, text))
    return Candidate(name, config, step_seconds, tokens, predicted(config, tokens, text))


def with_steps_enough(best: Candidate, text: Text, seconds: float, unit: int = 1) -> Candidate:
    """A smaller batch, in multiples of `unit`, where the model is so large for the time that there would be hardly any
    steps."""
    batch_size = best.config.train.batch_size or 1
    steps = best.tokens / tokens_per_step(best.config)
    rows = max(unit, int(batch_size * steps / LEAST_STEPS) // unit * unit)
    if rows >= batch_size:
        return best
    micro = best.config.train.micro_batch_size or batch_size  # as much as fits into memory
    at_once = next(n for n in range(min(rows, micro), 0, -1) if rows % n == 0)
    split = {"micro_batch_size": at_once if at_once < rows else None}
    config = changed(best.config, train={"batch_size": rows} | split)
    return candidate(name_of(config), config, best.step_seconds * rows / batch_size, text, seconds)


def likeliest(rungs: list[RunConfig], text: Text, peak: float, seconds: float) -> int:
    """The rung to begin with: the lowest prediction if steps took as long as `guessed_seconds` says."""

    def guess(config: RunConfig) -> float:
        return predicted(config, int(seconds / guessed_seconds(config, peak) * tokens_per_step(config)), text)

    return min(range(len(rungs)), key=lambda place: guess(rungs[place]))


def guessed_seconds(config: RunConfig, peak: float) -> float:
    """Of a step, before any was made: products at half of the peak, a layer's other work with a token as long as
    850,000 FLOPs of them, and a millisecond a layer. Within a tenth of one another on 2 CPU cores (LOG.md)."""
    model = config.model.complete()
    products = flops_per_token(model, model.context_length)["total"]
    flops = tokens_per_step(config) * (products + 0.85e6 * model.n_layers)
    return flops / (0.58 * peak) + 0.001 * model.n_layers


def most_tokens(config: RunConfig, text: Text) -> int:
    return config.budget.most_tokens or max(MOST_EPOCHS * text.tokens, tokens_per_step(config))


def last_token(best: Candidate, text: Text) -> int:
    """After how many tokens the run ends though there are minutes left. Where the minutes are what ends it, a faster
    run than expected may go on: weights fade by the pass, so that this does no harm, only little good (LOG.md)."""
    most, optimizer = most_tokens(best.config, text), best.config.optimizer
    fades = optimizer.name == "muon" and optimizer.weight_decay is None  # `with_rates` comes later
    return 2 * most if best.tokens < most and fades and not best.config.budget.most_tokens else most


def predicted(config: RunConfig, tokens: int, text: Text) -> float:
    model = config.model.complete()
    vocab_size = model.vocab_size or USUAL_VOCAB
    return predict_bits_per_byte(parameters_of_blocks(model), max(1, tokens), text, model.context_length, vocab_size)


def reasons(
    best: Candidate, tried: list[Candidate], possible: int, too_large: list[str], text: Text, peak: float
) -> list[str]:
    """A few lines: what was measured, what was predicted for the neighbours, what was chosen and why."""
    rate = tokens_per_step(best.config) / best.step_seconds
    epochs = best.tokens / max(1, text.tokens)
    lines = [
        f"Measured: {peak / 1e9:,.0f} GFLOP/s of matrix products; a step of the chosen model takes"
        f" {1000 * best.step_seconds:,.0f} ms, {rate:,.0f} tokens/s."
    ]
    if text.pilot is not None:
        lines.append(
            f"Tried on this text: a model of 2 x 64 comes to {text.pilot:.3f} bits per byte in"
            f" {PILOT_TOKENS / 1e6:.1f} M tokens; by that the predictions are corrected."
        )
    if len(tried) > 1:
        said = "; ".join(
            f"{c.name}: {c.bits_per_byte:.3f} after {c.tokens / 1e6:.1f} M tokens{'' if c.timed else ' (not timed)'}"
            for c in tried
        )
        lines.append(f"Predicted held-out bits per byte (layers x width at context x batch): {said}.")
    alone = "as asked" if possible == 1 else "the likeliest; there was time to measure no other"
    why = "the lowest prediction" if len(tried) > 1 else alone
    lower = [c for c in tried if c.bits_per_byte < best.bits_per_byte]
    if any(c.timed for c in lower):
        why = "the smallest of those that are as good"
    elif lower:
        why += " of those that there was time for"
    size = parameters(best.config.model.complete())["total"]
    lines.append(
        f"Chosen: {best.name}, {why}: {size:,} parameters, {best.bits_per_byte:.3f} bits per byte expected from"
        f" {best.tokens / 1e6:.1f} M tokens, {epochs:.1f} times the text."
    )
    if best.tokens == most_tokens(best.config, text) and not best.config.budget.most_tokens:
        lines.append(
            f"The text is short: to go through it more than {MOST_EPOCHS} times gains little, so this"
            " ends before the minutes are over (--set budget.most_tokens=N to go on)."
        )
    if too_large and best.config.model == tried[-1].config.model:
        lines.append(f"Left out, since a step needs more than the free memory: {', '.join(too_large)}.")
    return lines


def tokens_per_step(config: RunConfig) -> int:
    assert config.train.batch_size is not None
    assert config.model.context_length is not None
    return config.train.batch_size * config.model.context_length


def slowness(config: RunConfig, device: Device, peak: float, seconds: float) -> float:
    """How many times as long as `guessed_seconds` says a step takes here: a small model is timed, for a moment. Where
    the sizes are fixed and too large for that: as on other machines."""
    rungs = list(candidates(config, config.model.vocab_size or TYPICAL_VOCAB_SIZE).values())
    small = rungs[min(1, len(rungs) - 1)]
    guess = guessed_seconds(small, peak)
    limit = min(0.2 * TRIAL_SHARE * seconds, TRIAL_SECONDS)
    taken = measure_step_seconds(small, device, limit=limit) if USUALLY * guess < limit else None
    return taken / guess if taken else USUALLY


def bytes_seen(
    config: RunConfig, peak: float, seconds: float | None, slower: float = USUALLY, processes: int = 1
) -> float | None:
    """How many bytes of text so many processes will train on in the budget, repeated ones too; None for one of steps.

    About: one small model was timed (`slowness`).
    """
    if config.budget.tokens:
        return BYTES_PER_TOKEN * config.budget.tokens
    if seconds is None:
        return None
    rungs = list(candidates(config, TYPICAL_VOCAB_SIZE).values())
    return BYTES_PER_TOKEN * likely_tokens(rungs, peak, (1 - OVERHEAD) * seconds, slower, processes)


def vocab_size_for(
    config: RunConfig, text_bytes: int, peak: float, seconds: float | None, slower: float = USUALLY, processes: int = 1
) -> int:
    """The size of the vocabulary that was fixed, or one for a text and what the budget will see of it."""
    if config.model.vocab_size:
        return config.model.vocab_size
    return choose_vocab_size(text_bytes, bytes_seen(config, peak, seconds, slower, processes))


def bytes_to_read(
    config: RunConfig,
    text_bytes: int,
    vocab_size: int,
    peak: float,
    seconds: float | None,
    slower: float = USUALLY,
    processes: int = 1,
) -> int | None:
    """How much of a large text so many processes can consume in the budget, times 1.5; None if that is all of it."""
    if seconds is None or text_bytes <= LEAST_READ:
        return None
    rungs = list(candidates(config, vocab_size).values())
    tokens = likely_tokens(rungs, peak, seconds, slower, processes, NEARLY)
    most = max(LEAST_READ, int(READ_AHEAD * tokens * (math.log2(vocab_size) / 2 - 2)))  # bytes a token: 3 of 1024
    return most if most < text_bytes else None


def likely_tokens(
    rungs: list[RunConfig], peak: float, seconds: float, slower: float, processes: int, nearly: float = 1.0
) -> int:
    """Tokens that the best of these models, by its prediction for endless text, sees when a step takes `slower` times
    what `guessed_seconds` says: the smallest of those that are `nearly` as good."""
    endless = typical_text(10**12)
    consumed = [
        int(processes * seconds / (slower * guessed_seconds(rung, peak)) * tokens_per_step(rung)) for rung in rungs
    ]
    bits = [predicted(rung, tokens, endless) for rung, tokens in zip(rungs, consumed)]
    return next(n for n, expected in zip(consumed, bits) if expected <= nearly * min(bits))


def complete(config: RunConfig, rung: Rung, vocab_size: int | None, processes: int = 1) -> RunConfig:
    """Fill in what the config leaves open with the rung's numbers, around what is fixed. A batch is one that so many
    processes, and micro-batches that were fixed, can share."""
    given = config.model
    sizes: dict[str, Any] = {key: getattr(rung, key) for key in given.missing() if key != "n_heads"}
    if "emb_dim" in sizes and given.n_heads is not None:
        sizes["emb_dim"] = max(1, round(rung.emb_dim / given.n_heads / 2)) * 2 * given.n_heads
    if given.n_heads is None:
        sizes["n_heads"] = heads_of(given.emb_dim or rung.emb_dim, given.family, given.n_kv_heads or 1)
    if given.tie_embeddings is None and (given.family == "modern" or config.train.init == "bigram"):
        sizes["tie_embeddings"] = False  # embeddings and head can then begin with counted pairs (LOG.md)
    unit = processes * (config.train.micro_batch_size or 1)
    rows = rung.batch_size * rung.context_length / (given.context_length or rung.context_length)
    train = {} if config.train.batch_size else {"batch_size": unit * max(1, round(rows / unit))}
    return changed(config, model=sizes | ({"vocab_size": vocab_size} if vocab_size else {}), train=train)


def heads_of(emb_dim: int, family: str = "modern", n_kv_heads: int = 1) -> int:
    """How many heads a model so wide has, if it is left open: a multiple of those of keys. Two at least, which copying
    takes; and wide ones, which can tell more tokens apart (LOG.md)."""
    most = max(2, n_kv_heads, emb_dim // HEAD_DIM[family])
    fitting = (n for n in range(most, 0, -1) if n % n_kv_heads == 0 and emb_dim % n == 0 and emb_dim // n % 2 == 0)
    return next(fitting, n_kv_heads)

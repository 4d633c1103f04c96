"""How much text a run will see in its budget: by that a vocabulary is chosen, and a part of a huge folder is read.

An estimate, since there is no tokenizer yet: one small model is timed (`slowness`), the others are scaled from it.
"""

from __future__ import annotations

import math

from lightwell.config.run import RunConfig
from lightwell.planner.climb import OVERHEAD, TRIAL_SECONDS, TRIAL_SHARE
from lightwell.planner.ladder import guessed_seconds, predicted, rungs_for, tokens_per_step
from lightwell.planner.step_time import measure_step_seconds
from lightwell.planner.text import typical_text
from lightwell.runtime.device import Device
from lightwell.tokenizer.size import choose_vocab_size

LEAST_READ = 6_000_000  # bytes, however little the machine seems to do just now
READ_AHEAD = 1.5  # times the text that the budget can consume is prepared
BYTES_PER_TOKEN = 3.0  # about, of the vocabularies chosen here
TYPICAL_VOCAB_SIZE = 1024  # of a tokenizer that does not exist yet
USUALLY = 1.0  # `slowness` where nothing was timed
NEARLY = 1.015  # a model that may turn out to be the best, when there is little to tell by


def slowness(config: RunConfig, device: Device, peak: float, seconds: float) -> float:
    """How many times as long as `guessed_seconds` says a step takes here: a small model is timed, for a moment. Where
    the sizes are fixed and too large for that: as on other machines."""
    rungs = list(rungs_for(config, config.model.vocab_size or TYPICAL_VOCAB_SIZE).values())
    small = rungs[min(1, len(rungs) - 1)]
    guess = guessed_seconds(small, peak)
    limit = min(0.2 * TRIAL_SHARE * seconds, TRIAL_SECONDS)
    taken = measure_step_seconds(small, device, limit=limit) if USUALLY * guess < limit else None
    return taken / guess if taken else USUALLY


def vocab_size_for(
    config: RunConfig, text_bytes: int, peak: float, seconds: float | None, slower: float = USUALLY, processes: int = 1
) -> int:
    """The size of the vocabulary that was fixed, or one for a text and what the budget will see of it."""
    if config.model.vocab_size:
        return config.model.vocab_size
    return choose_vocab_size(text_bytes, bytes_seen(config, peak, seconds, slower, processes))


def bytes_seen(
    config: RunConfig, peak: float, seconds: float | None, slower: float = USUALLY, processes: int = 1
) -> float | None:
    """About how many bytes of text so many processes will train on in the budget, repeated ones too; None for one of
    steps."""
    if config.budget.tokens:
        return BYTES_PER_TOKEN * config.budget.tokens
    if seconds is None:
        return None
    rungs = list(rungs_for(config, TYPICAL_VOCAB_SIZE).values())
    return BYTES_PER_TOKEN * likely_tokens(rungs, peak, (1 - OVERHEAD) * seconds, slower, processes)


def bytes_to_read(
    config: RunConfig,
    text_bytes: int,
    vocab_size: int,
    peak: float,
    seconds: float | None,
    slower: float = USUALLY,
    processes: int = 1,
) -> int | None:
    """Bytes of a large text that so many processes can consume in the budget, times READ_AHEAD; None if that is all."""
    if seconds is None or text_bytes <= LEAST_READ:
        return None
    rungs = list(rungs_for(config, vocab_size).values())
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

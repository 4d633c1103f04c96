"""Logits to the next token: temperature, top-k, top-p, min-p, repetition penalty, or simply the largest.

A model gives one number per token of the vocabulary, its logit. `sample` turns them into one token in six short steps,
in the order in which they stand here; a step that was not asked for does nothing and costs nothing:

    penalise_repetition   tokens that were already there become less likely
    apply_temperature     below 1 the likely become likelier, above 1 all become more alike
    keep_top_k            only the k most likely tokens stay
    keep_top_p            only the most likely tokens that together have probability p stay
    keep_min_p            only tokens at least m times as likely as the likeliest stay
    draw                  one token, by its probability

Temperature 0 takes the largest logit instead, and draws nothing. Removed tokens have the logit minus infinity. Tokens
that tie with the last one kept are kept too, so that no step depends on the order of the vocabulary.

    B batch, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightwell.errors import UserError

TEMPERATURE = 0.9  # where nobody asks for another: small models repeat themselves below it (LOG.md)
COLDEST = 1e-30  # a temperature below it is 0: float32 has no room for the logits
# keep_top_p sorts this many of the likeliest tokens, and more only where they are not enough: at last all of them.
LOOKS = (512, 8192)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. What is left out changes nothing: tokens are then drawn as the model says.

    Raises UserError for a value outside its range.
    """

    temperature: float = 1.0
    """0 takes the most likely token; 1 leaves the model's probabilities as they are."""
    top_k: int | None = None
    """Number of tokens kept, at least 1."""
    top_p: float | None = None
    """Probability kept, above 0 and at most 1."""
    min_p: float | None = None
    """Least probability kept, as a share of the largest, from 0 to 1."""
    repetition_penalty: float = 1.0
    """Above 1 makes repetition less likely, below 1 more likely, from 0.01 to 100; 1 does nothing."""

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                got = getattr(self, name)
                raise UserError(f"expected {name} {expected}, got {got}.", "Leave it out for the default.")

        check("temperature", 0 <= self.temperature < math.inf, "to be a finite number, 0 or more")
        check("top_k", self.top_k is None or self.top_k >= 1, "to be 1 or more")
        check("top_p", self.top_p is None or 0 < self.top_p <= 1, "to be above 0 and at most 1")
        check("min_p", self.min_p is None or 0 <= self.min_p <= 1, "to be from 0 to 1")
        check("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "to be from 0.01 to 100")


GREEDY = Sampling(temperature=0.0)


def sample(
    logits: Tensor,
    settings: Sampling,
    history: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The next token of each row: logits (B, V) -> (B,) int64.

    `history` holds each row's tokens so far (read by the repetition penalty only); `generators` each row's own source
    of chance, on the CPU, of which one number per token is used: a row's text does not depend on its neighbours.
    Raises UserError when a row of logits has no finite largest value.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # what follows adds up in float64, which that device does not have
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    largest, likeliest = logits.max(dim=-1)
    if not largest.isfinite().all():
        raise UserError("expected finite logits from the model, got NaN or infinity.", "Its weights are not usable.")
    if settings.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, history, settings.repetition_penalty)
        likeliest = logits.argmax(dim=-1)
    if settings.temperature < COLDEST:
        return likeliest
    logits = apply_temperature(logits, settings.temperature)
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p is not None:
        logits = keep_min_p(logits, settings.min_p)
    return draw(logits, generators)


def penalise_repetition(logits: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits of tokens in a row's history, once however often they stand there: divided by `penalty` where positive,
    multiplied where negative, so that both become less likely for a penalty above 1.

    Source: Keskar et al. 2019 (CTRL), section 4.1, in the form that treats negative logits alike.
    """
    logits = logits.clone()
    for row, ids in zip(logits, history):
        known = [token for token in ids if token < len(row)]  # logits may be cut to the tokenizer's tokens
        seen = torch.tensor(known, dtype=torch.int64, device=logits.device)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return logits


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by `temperature`, the largest moved to 0 first so that a tiny temperature does not overflow.

    Source: Ackley, Hinton, Sejnowski 1985 (Boltzmann machines).
    """
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the `k` largest logits of each row, and those equal to the last of them. Source: Fan et al. 2018."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the nucleus: the fewest most likely tokens that together have probability `p`, and those equal to the last.

    Source: Holtzman et al. 2020.
    """
    if p == 1.0:
        return logits
    probabilities = logits.softmax(dim=-1)
    vocab_size = logits.shape[-1]
    for n_looked_at in sorted({*(n for n in LOOKS if n < vocab_size), vocab_size}):
        largest = probabilities.topk(n_looked_at).values.double()  # descending
        before = largest.cumsum(dim=-1) - largest  # the probability of all tokens likelier than this one
        if (before[:, -1] >= p).all():
            break
    smallest_kept = largest.masked_fill(before >= p, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < smallest_kept, -math.inf)


def keep_min_p(logits: Tensor, m: float) -> Tensor:
    """Only tokens with at least `m` times the probability of the likeliest. Source: Nguyen et al. 2024.

    A ratio of probabilities is a difference of logits, so nothing needs to be normalised.
    """
    if m == 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(m), -math.inf)


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token of each row, with the probabilities softmax(logits): (B, V) -> (B,) int64.

    The probabilities are laid end to end, a point on that line is drawn, and the token on whose stretch it falls is
    taken (inversion of the distribution function, Devroye 1986, III.2). The point is in (0, total], never 0: so the
    first token that reaches it always has a stretch, and a removed token cannot be drawn.
    """
    line = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    chance = torch.stack([torch.rand((), dtype=torch.float64, generator=generator) for generator in generators])
    point = line[:, -1] * (1.0 - chance.to(logits.device))
    return torch.searchsorted(line, point[:, None])[:, 0]

"""How well is this text learned? A small model tries it for some seconds, before the planner predicts.

Counts (text.py) take what is repeated word for word for learned; a model knows better after a moment. Where counts
mislead, as of code, predictions are nearer with it (LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import replace

from lightwell.config.run import parse
from lightwell.data.dataset import Dataset
from lightwell.planner.climb import PILOT_SHARE, trial_seconds
from lightwell.planner.text import PILOT_TOKENS, Text, describe
from lightwell.runtime.device import Device
from lightwell.training.pilot import run_pilot

HELD_OUT = 40_000  # tokens that it is measured on
LEAST = 2.0  # seconds: to find out that less is not enough would be a waste
SHAPE = {"n_layers": 2, "emb_dim": 64, "n_heads": 2, "context_length": 128, "tie_embeddings": False}
BATCH_SIZE = 16


def look_at(dataset: Dataset, device: Device, seconds: float | None) -> Text:
    """What can be told of a prepared text: by counting, and by a pilot where the `seconds` of the budget allow one."""
    text = describe(dataset)
    limit = PILOT_SHARE * trial_seconds(seconds) if seconds else 0.0
    return with_pilot(text, dataset, device, limit) if limit >= LEAST else text


def with_pilot(text: Text, dataset: Dataset, device: Device, limit: float = math.inf) -> Text:
    """`text` with what a pilot run says of it, if it takes no more than `limit` seconds and the text is long enough."""
    if len(dataset.train) < PILOT_TOKENS:
        return text
    model = SHAPE | {"vocab_size": dataset.tokenizer.vocab_size}
    config = parse({"model": model, "train": {"batch_size": BATCH_SIZE}})
    found = run_pilot(dataset, config, PILOT_TOKENS, device, eval_tokens=HELD_OUT, limit=limit)
    return text if found is None else replace(text, pilot=found.bits_per_byte)

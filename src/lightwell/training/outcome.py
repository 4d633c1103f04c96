"""What a finished run hands over: the checkpoint that was best on held-out text, measured once more on more of it.

Evaluations on the way are short and look at the same windows, so that they can be compared. A small text is learned by
heart in the end: then an earlier checkpoint is better than the last, and that one is handed over.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from lightwell.errors import RunError
from lightwell.store.checkpoint import checkpoint_path, load_model_only
from lightwell.store.checkpoints import verify_checkpoint
from lightwell.training.loop import Training

OUTCOME = "outcome"  # the event
OUTCOME_SHARE, OUTCOME_TOKENS = 0.06, 8192  # tokens measured, as a share of those trained on, and the least of them
OVERRUN = 0.01  # of the minutes: better a little late than a figure that nobody can rely on


def hand_over(t: Training, max_tokens: int, predicted: float | None = None) -> dict[str, Any] | None:
    """Choose the best checkpoint, measure it, and record both as an event; None if that fails.

    predicted: the bits per byte that the planner expected. Details of the event: "handed_over" (a step), "loss",
    "bits_per_byte", "standard_error", "tokens", "bytes", "seconds", and beside a prediction "predicted" and "off"
    (measured over predicted, less 1).
    """
    step = t.world.on_main(lambda: best_step(t))
    if step != t.state.step:
        t.replicas.load_weights(load_model_only(checkpoint_path(t.saver.run, step)))
    t.world.at(t.state.step, "measuring the outcome")
    try:
        found = asdict(t.evaluate(t.world.agree(in_time(t, max_tokens))))
    except Exception as error:  # as on the way: a failing evaluation is an event
        t.record.add_event(t.state.step, "evaluation_failed", {"error": f"{type(error).__name__}: {error}"})
        return None
    if not math.isfinite(found["bits_per_byte"]):
        return None
    outcome = {"handed_over": step, **found, "seconds": t.pace.elapsed()}
    if predicted:
        outcome |= {"predicted": predicted, "off": found["bits_per_byte"] / predicted - 1}
    t.record.add_event(t.state.step, OUTCOME, outcome)
    return outcome


def outcome_tokens(steps: int, tokens_per_step: int) -> int:
    """How many held-out tokens the measurement at the end may look at."""
    return max(OUTCOME_TOKENS, int(OUTCOME_SHARE * steps * tokens_per_step))


def in_time(t: Training, max_tokens: int) -> int:
    """As many of these as fit into what is left of the minutes, into OVERRUN of them at least, going by how long the
    last evaluation took."""
    extended = t.state.decided("extended") is not None  # then its minutes are long over
    if not t.config.budget.minutes or not t.eval_seconds or extended:
        return max_tokens
    seconds = 60 * t.config.budget.minutes
    left = max(OVERRUN * seconds, seconds - t.pace.elapsed() - t.closing_seconds)
    return min(max_tokens, max(OUTCOME_TOKENS, int(t.eval_tokens * left / t.eval_seconds)))


def best_step(t: Training) -> int:
    """The step of the best evaluation, if its checkpoint is there and good; else the last."""
    best = t.state.best_step
    if best is None or best == t.state.step:
        return t.state.step
    try:
        verify_checkpoint(checkpoint_path(t.saver.run, best))
    except RunError as error:
        t.record.add_event(t.state.step, "checkpoint_broken", {"error": error.message})
        return t.state.step
    return best

"""What `pretrain` and `resume` end with: how good the model is, a sample, where it lies, what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightwell.cli.common import is_main, show_json
from lightwell.files.paths import command
from lightwell.show.units import count, duration, plural

if TYPE_CHECKING:
    from lightwell.trained import Run


def show_result(run: Run, seconds: float, as_json: bool, made: int) -> None:
    """`seconds` that this command took, and how many steps it made."""
    from lightwell.evaluation.copies import SAMPLE_TOKENS, SEARCHED
    from lightwell.trained import longest_copy_from

    if not is_main():
        return
    outcome = run.outcome()
    if as_json:
        show_json({"run": str(run.path), "seconds": round(seconds, 2), **outcome})
        return
    heldout = outcome["heldout"]
    if made == 0:
        print(f"\n{run.path} is complete: no step was left to make.")
    now = f", {made:,} of them now" if made < outcome["steps"] else ""
    took = "" if made == 0 else f"{now}, {duration(seconds)}"
    print(
        f"\nTrained {count(outcome['parameters'])} parameters on {count(outcome['tokens'])} tokens"
        f" in {plural(outcome['steps'], 'step')}{took}."
    )
    if outcome["reason"] == "overfitting":
        print("Stopped early: the held-out loss no longer fell (--set train.early_stop=false goes on all the same).")
    if heldout["bits_per_byte"] is not None:
        error = f" ± {heldout['standard_error']:.3f}" if heldout["standard_error"] is not None else ""
        loss = f"loss {heldout['loss']:.3f} nats per token"
        print(f"Held out: {heldout['bits_per_byte']:.3f}{error} bits per byte ({loss}).")
    if (said := said_of_prediction(outcome["predicted"])) is not None:
        print(said)
    if run.step < outcome["steps"]:
        print(f"Step {run.step:,} was the best on held-out text: that model is the result.")
    sample = run.generate("", max_new_tokens=SAMPLE_TOKENS, seed=1)
    copied = longest_copy_from(run, sample)
    print(f"\nA sample:\n{'-' * 72}\n{sample.strip()}\n{'-' * 72}")
    shown = f" ({copied!r})" if len(copied) < 100 else ""
    where = "the training text" if len(run.dataset().train) <= SEARCHED else "the part of the training text searched"
    print(f"The longest passage in it that is copied from {where}: {len(copied)} characters{shown}.")
    print(f"\nThe run is {run.path}. Worth typing next:")
    next_ones = {
        command("generate", run.path, "Once upon"): "let it go on from your words",
        command("runs", run.path): "the loss curve",
        command("trace", run.path, "--text", "Once upon"): "what it does inside",
    }
    for line, what in next_ones.items():
        print(f"  {line:<{max(map(len, next_ones))}}  {what}")


def said_of_prediction(predicted: dict[str, float | None]) -> str | None:
    """A sentence that compares the prediction made before the first step with the outcome; None if none was made."""
    bits, off = predicted["bits_per_byte"], predicted["off"]
    if bits is None or off is None:
        return None
    side = "above" if off > 0 else "below"
    return f"Predicted before the first step: {bits:.3f} bits per byte; the outcome is {abs(off):.1%} {side} that."

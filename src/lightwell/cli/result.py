"""What `pretrain` and `resume` end with: how good the model is, a sample, where it lies, what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightwell.cli.common import is_main, show_json
from lightwell.show.units import count, duration

if TYPE_CHECKING:
    from lightwell.trained import Run


def show_result(run: Run, seconds: float, as_json: bool) -> None:
    from lightwell.evaluation.copies import SEARCHED
    from lightwell.trained import longest_copy_from

    if not is_main():
        return
    outcome = run.outcome()
    if as_json:
        show_json({"run": str(run.path), "seconds": round(seconds, 2), **outcome})
        return
    heldout = outcome["heldout"]
    print(
        f"\nTrained {count(outcome['parameters'])} parameters on {count(outcome['tokens'])} tokens"
        f" in {outcome['steps']:,} steps, {duration(seconds)}."
    )
    if heldout["bits_per_byte"] is not None:
        error = f" ± {heldout['standard_error']:.3f}" if heldout["standard_error"] is not None else ""
        loss = f"loss {heldout['loss']:.3f} nats per token"
        print(f"Held out: {heldout['bits_per_byte']:.3f}{error} bits per byte ({loss}).")
    if (said := said_of_prediction(outcome["predicted"])) is not None:
        print(said)
    if run.step < outcome["steps"]:
        print(f"The best on held-out text was step {run.step:,}: that one is handed over.")
    sample = run.generate("", max_new_tokens=120, seed=1, temperature=0.7)
    copied = longest_copy_from(run, sample)
    print(f"\nA sample:\n{'-' * 72}\n{sample.strip()}\n{'-' * 72}")
    shown = f" ({copied!r})" if len(copied) < 100 else ""
    where = "the training text" if len(run.dataset().train) <= SEARCHED else "the part of the training text searched"
    print(f"Its longest copy from {where}: {len(copied)} characters{shown}.")
    print(f"\nThe run is {run.path}. Worth typing next:")
    print(f'  lightwell generate {run.path} "..."     let it go on from your words')
    print(f"  lightwell runs {run.path}               the loss curve")
    print(f'  lightwell trace {run.path} --text "..." what it does inside')


def said_of_prediction(predicted: dict[str, float | None]) -> str | None:
    """A sentence that compares the prediction made before the first step with the outcome; None if none was made."""
    bits, off = predicted["bits_per_byte"], predicted["off"]
    if bits is None or off is None:
        return None
    side = "above" if off > 0 else "below"
    return f"Predicted before the first step: {bits:.3f} bits per byte; the outcome is {abs(off):.1%} {side} that."

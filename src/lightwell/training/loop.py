"""The training loop: take a batch, make a step, and keep what was learned safe. One loop, for every model and device.

`run` is the whole story on one screen; `Training` holds what it works with. All that changes is in `state` (a page of
JSON), the weights and the optimizer's moments, and these three are what a checkpoint saves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightwell.config.run import RunConfig
from lightwell.data.batches import Batches
from lightwell.evaluation.report import Evaluation
from lightwell.runtime.device import Device
from lightwell.runtime.observer import Observer, StepReport
from lightwell.runtime.world import World
from lightwell.store.database import RunDatabase
from lightwell.training.guard import first_bad_layer, judge, must_go_back
from lightwell.training.optimizer import Optimizer
from lightwell.training.pace import Pace
from lightwell.training.replicas import Replicas
from lightwell.training.saver import Saver
from lightwell.training.schedule import lr_scale
from lightwell.training.state import TrainState
from lightwell.training.step import StepResult, to, train_step


@dataclass
class Training:
    """What a run trains with. `evaluate(max_tokens)` measures the held-out part; `stop()` says that it is time."""

    config: RunConfig
    state: TrainState
    replicas: Replicas
    optimizer: Optimizer
    batches: Batches
    device: Device
    world: World
    pace: Pace
    saver: Saver
    database: RunDatabase
    evaluate: Callable[[int | None], Evaluation]
    eval_tokens: int
    micro_batch_size: int
    eval_every: int
    peak_flops: float | None = None
    flops_per_token: float = 0.0
    observers: Sequence[Observer] = ()
    stop: Callable[[], str | None] = lambda: None
    pending: list[tuple[int, StepResult]] = field(default_factory=list)  # steps whose numbers were not read yet
    clock: float = 0.0


def run(t: Training) -> str | None:
    """Train to the end of the budget and return None, or why it ended before: "interrupted", "overfitting", ...

    The last state is saved either way. What a step does is in step.py; the rest here is deciding when.
    """
    state = t.state
    t.pace.begin(state)
    t.saver.begin(t.pace, state)
    do_owed_work(t)
    if state.step == 0:
        t.saver.save(state)
    reason = None
    while state.step < t.pace.steps(state) and reason is None:
        batch = t.batches.batch(state.data_step, t.world.rank, t.world.size)
        t.clock = time.perf_counter()
        result = train_step(
            t.replicas,
            t.optimizer,
            batch,
            micro_batch_size=t.micro_batch_size,
            lr_scale=lr_scale(state.step, t.pace.steps(state), t.config.schedule, t.pace.warmup(state)),
            clip=t.config.train.clip,
            seed=t.config.run.seed,
            step=state.step,
            device=t.device,
            world=t.world,
            observers=[observer for observer in t.observers if observer.wants(state.step + 1)],
        )
        state.step += 1
        state.tokens += t.pace.tokens_per_step
        t.pending.append((state.step, result))
        take_stock(t, lag=1 if t.device.kind == "cuda" else 0)
        if must_go_back(state, t.config.guard):
            go_back(t)
            continue
        t.pace.replan(state)
        state.seconds = t.pace.elapsed()
        reason = stop_reason(t)
        state.owed = due_work(t)
        if state.owed or reason or t.saver.due(state):
            take_stock(t)
            t.saver.save(state)
        do_owed_work(t)
        reason = reason or ("overfitting" if overfits(t) else None)
    take_stock(t)
    state.owed = []
    t.saver.save(state)
    t.saver.finish()
    return reason


def take_stock(t: Training, lag: int = 0) -> None:
    """Read the numbers of finished steps, all but the last `lag`: on a GPU reading would wait for the newest."""
    while len(t.pending) > lag:
        step, result = t.pending.pop(0)
        loss, norm, finite = float(result.loss), float(result.gradient_norm), bool(result.finite)
        events = judge(t.state, t.config.guard, loss, norm, finite)
        seconds = time.perf_counter() - t.clock
        rate = t.pace.tokens_per_step / max(t.pace.step_seconds, 1e-9) if step > 2 else t.pace.tokens_per_step / seconds
        report = StepReport(
            step=step,
            steps=t.pace.steps(t.state),
            loss=loss,
            gradient_norm=norm,
            lr_scale=lr_scale(step - 1, t.pace.steps(t.state), t.config.schedule, t.pace.warmup(t.state)),
            tokens=t.state.tokens,
            seconds=seconds,
            tokens_per_second=rate,
            mfu=rate * t.flops_per_token / t.peak_flops if t.peak_flops else None,
            seconds_left=t.pace.seconds_left(t.state),
            events=events,
        )
        if finite:
            t.database.add_metrics(step, {"loss": loss, "gradient_norm": norm, "lr_scale": report.lr_scale})
            t.database.add_metrics(step, {"tokens": t.state.tokens, "tokens_per_second": rate})
        for kind, details in events:
            t.database.add_event(step, kind, details | where_it_began(t, step, kind))
        for observer in t.observers:
            observer.after_step(report)


def where_it_began(t: Training, step: int, kind: str) -> dict[str, Any]:
    """Which documents were in the batch of a bad step, and the first layer whose output went bad."""
    batch = t.batches.batch(t.state.data_step - (t.state.step - step) - 1, t.world.rank, t.world.size)
    documents: dict[str, Any] = {"documents": sorted(set(batch.documents.flatten().tolist()))[:100]}
    if kind == "nonfinite":
        part = slice(0, t.micro_batch_size)
        with t.device.autocast():
            layer = first_bad_layer(t.replicas.model, to(batch.ids[part], t.device), to(batch.targets[part], t.device))
        documents["first_bad_layer"] = layer
    return documents


def go_back(t: Training) -> None:
    """Return to the last good checkpoint and pass over the data since then. A decision: a resumed run does the same."""
    failed, decisions = t.state.step, t.state.decisions
    t.pending.clear()
    t.saver.restore(t.state, t.optimizer)
    t.state.decisions, t.state.bad_steps = decisions, 0
    decision = t.state.decide("skip", at=t.state.step, batches=failed - t.state.step)
    t.database.add_event(t.state.step, "went_back", decision | {"from_step": failed})


def due_work(t: Training) -> list[str]:
    """What is to be done after this step: said in the checkpoint, so that a run that dies meanwhile still owes it."""
    step, last = t.state.step, t.state.step == t.pace.steps(t.state)
    sample_every = t.config.train.sample_every or t.eval_every
    work = {"evaluation": last or step % t.eval_every == 0, "sample": last or step % sample_every == 0}
    return [name for name, due in work.items() if due]


def do_owed_work(t: Training) -> None:
    """Evaluate and sample if that is owed. A failure is an event: it never ends training."""
    for name in list(t.state.owed):
        try:
            evaluate(t) if name == "evaluation" else sample(t)
        except (RuntimeError, ValueError, OSError) as error:
            t.database.add_event(t.state.step, f"{name}_failed", {"error": f"{type(error).__name__}: {error}"})
        t.state.owed.remove(name)


def evaluate(t: Training) -> None:
    found = t.evaluate(t.eval_tokens)
    values = {"heldout.loss": found.loss, "heldout.bits_per_byte": found.bits_per_byte}
    t.database.add_metrics(t.state.step, values)
    if t.state.best_loss is None or found.loss < t.state.best_loss:
        t.state.best_loss, t.state.evaluations_since_best = found.loss, 0
        t.saver.best_step = t.state.step
    else:
        t.state.evaluations_since_best += 1
    for observer in t.observers:
        observer.after_evaluation(t.state.step, values)


def sample(t: Training) -> None:
    for observer in t.observers:
        observer.sample(t.state.step, t.replicas.model)


def overfits(t: Training) -> bool:
    """Whether the held-out loss has risen for so long that going on would only learn the text by heart."""
    return t.config.train.early_stop and t.state.evaluations_since_best >= 4


def stop_reason(t: Training) -> str | None:
    """Why to stop now, agreed by all processes: any one of them may have been told."""
    reason = t.stop()
    return (reason or "interrupted") if t.world.any(reason is not None) else None

"""The training loop: take a batch, make a step, and keep what was learned safe. One loop, for every model and device.

`run` is the whole story on one screen; `Training` holds what it works with. All that changes is in `state` (a page of
JSON), the weights and the optimizer's moments, and these three are what a checkpoint saves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightwell.config.run import RunConfig
from lightwell.data.batches import Batches
from lightwell.data.prefetch import Prefetch
from lightwell.evaluation.report import Evaluation
from lightwell.runtime.device import Device, on_its_way
from lightwell.runtime.observer import Observer, StepReport
from lightwell.runtime.seeds import fold
from lightwell.runtime.world import World
from lightwell.training.guard import first_bad_layer, give_up, judge, must_go_back
from lightwell.training.memory import within_memory
from lightwell.training.optimizer import Optimizer
from lightwell.training.pace import Pace
from lightwell.training.record import Record
from lightwell.training.replicas import Replicas
from lightwell.training.saver import Saver
from lightwell.training.state import TrainState
from lightwell.training.step import StepResult, split, to, train_step

BAD_NUMBERS = ("the numbers stay bad, whatever the data", "no step had finite numbers")  # reasons to stop
EARLY_STOP = 4  # evaluations in a row without a better one


class Unread(NamedTuple):
    """A step whose numbers may still be on their way from the device."""

    step: int
    data_step: int
    lr_scale: float
    numbers: Callable[[], list[float]]  # loss, gradient norm, whether both are finite


@dataclass
class Training:
    """What a run trains with. `evaluate(max_tokens)` measures the held-out part; `stop()` says that it is time."""

    config: RunConfig
    state: TrainState
    replicas: Replicas
    optimizer: Optimizer
    batches: Batches | Prefetch
    device: Device
    world: World
    pace: Pace
    saver: Saver
    record: Record
    evaluate: Callable[[int | None], Evaluation]
    eval_tokens: int
    micro_batch_size: int
    eval_every: int
    peak_flops: float | None = None
    flops_per_token: float = 0.0
    observers: Sequence[Observer] = ()
    stop: Callable[[], str | None] = lambda: None
    unread: list[Unread] = field(default_factory=list)
    recorded: int = 0  # decisions that are in the record
    eval_seconds: float | None = None  # that the last evaluation of `eval_tokens` took
    closing_seconds: float = 0.0  # kept for what follows the last measurement


def run(t: Training) -> str | None:
    """Train to the end of the budget and return None, or why it ended before: "interrupted", "overfitting", ...

    The last state is saved either way. What a step does is in step.py; the rest here is deciding when.
    """
    state, reason = t.state, None
    with t.saver:
        record_decisions(t)
        t.saver.save(state)
        do_owed_work(t)
        while reason is None and not t.pace.finished(state):
            rate = t.pace.lr_scale(state, state.step)
            result = within_memory(t, partial(one_step, t, rate))
            numbers = on_its_way((result.loss, result.gradient_norm, result.finite))
            t.unread.append(Unread(state.step + 1, state.data_step, rate, numbers))
            state.step += 1
            state.tokens += t.pace.tokens_per_step
            take_stock(t, lag=1 if t.device.kind == "cuda" else 0)
            if must_go_back(state, t.config.guard):
                reason = go_back(t)
                do_owed_work(t)  # a checkpoint is saved before its evaluation
                continue
            t.pace.replan(state)
            state.seconds = t.pace.elapsed()
            record_decisions(t)
            reason = stop_reason(t)
            if due_work(t) or reason or t.saver.due(state):
                take_stock(t)  # on a GPU only now the newest numbers are known, and may be bad
            if must_go_back(state, t.config.guard):
                reason = go_back(t) or reason
            else:
                state.owed = due_work(t)
                if state.owed or reason or t.saver.due(state):
                    t.saver.save(state)
            if reason is None:
                do_owed_work(t)
        take_stock(t)
        record_decisions(t)
        t.saver.save(state)
    if reason is None and state.bad_steps == state.step > 0:
        return BAD_NUMBERS[1]
    early = state.decided("early_stop")
    return reason or ("overfitting" if early and early["step"] == state.step else None)


def one_step(t: Training, rate: float) -> StepResult:
    """The step after `t.state.step`, on its batch, at a share of the peak rate."""
    state = t.state
    return train_step(
        t.replicas,
        t.optimizer,
        t.batches.batch(state.data_step, t.world.rank, t.world.size),
        micro_batch_size=t.micro_batch_size,
        lr_scale=rate,
        clip=t.config.train.clip,
        seed=t.config.run.seed,
        step=state.step,
        device=t.device,
        world=t.world,
        observers=[observer for observer in t.observers if observer.wants(state.step + 1)],
    )


def take_stock(t: Training, lag: int = 0) -> None:
    """Read the numbers of finished steps, all but the last `lag`: on a GPU reading would wait for the newest."""
    while len(t.unread) > lag:
        unread = t.unread.pop(0)
        step, (loss, norm, applied) = unread.step, unread.numbers()
        finite = bool(applied)
        events = judge(t.state, t.config.guard, loss, norm, finite)
        rate = t.pace.tokens_per_step / t.pace.step_seconds
        tokens = t.state.tokens - (t.state.step - step) * t.pace.tokens_per_step  # of then, where it is read later
        report = StepReport(
            step=step,
            steps=t.pace.steps(t.state),
            loss=loss,
            gradient_norm=norm,
            lr_scale=unread.lr_scale,
            tokens=tokens,
            tokens_per_second=rate,
            mfu=rate * t.flops_per_token / t.peak_flops if t.peak_flops else None,
            seconds_left=t.pace.seconds_left(t.state),
            events=events,
        )
        if finite:
            t.record.add_metrics(step, {"loss": loss, "gradient_norm": norm, "lr_scale": unread.lr_scale})
            t.record.add_metrics(step, {"tokens": tokens, "tokens_per_second": rate})
        for kind, details in events:
            t.record.add_event(step, kind, details | where_it_began(t, unread, kind))
        for observer in t.observers:
            observer.after_step(report)


def where_it_began(t: Training, bad: Unread, kind: str) -> dict[str, Any]:
    """Which documents were in the batch of a bad step, and the first layer whose output went bad."""
    documents = t.batches.batch(bad.data_step).documents
    found: dict[str, Any] = {"documents": sorted(set(documents.flatten().tolist()))[:100]}
    if kind == "nonfinite":
        parts = split(t.batches.batch(bad.data_step, t.world.rank, t.world.size), t.micro_batch_size)
        again = [partial(loss_again, t, bad, number, *part) for number, part in enumerate(parts)]
        layers = [first_bad_layer(t.replicas.model, forward) for forward in again]
        on_any = [layer for layers in t.world.gather(layers) for layer in layers if layer]
        weights = [layer for layer in on_any if layer.startswith("the weight ")]
        found["first_bad_layer"] = next(iter(weights + on_any), "the backward pass")
    return found


def loss_again(t: Training, bad: Unread, number: int, ids: Tensor, targets: Tensor) -> float:
    """The loss of micro-batch `number` of a step, computed once more, with the same dropout masks."""
    devices = [t.device.torch_device] if t.device.kind == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), t.device.autocast():
        torch.manual_seed(fold(t.config.run.seed, "dropout", bad.step - 1, t.world.rank, number))
        loss_sum, _ = t.replicas.model(to(ids, t.device), to(targets, t.device))
    return float(loss_sum)


def go_back(t: Training) -> str | None:
    """Return to the last good checkpoint and pass over the data since then. A decision: a resumed run does the same.

    After several such attempts from one step it is not the data: then the reason to stop.
    """
    failed, decisions = t.state.step, t.state.decisions
    t.unread.clear()
    t.saver.restore(t.state)
    t.pace.forget()
    t.state.decisions, t.state.bad_steps = decisions, 0
    t.state.decide("skip", at=t.state.step, batches=failed - t.state.step, from_step=failed)
    record_decisions(t)
    return BAD_NUMBERS[0] if give_up(t.state) else None


def record_decisions(t: Training) -> None:
    """Each new decision is an event, so that people and `lightwell runs` see it."""
    for decision in t.state.decisions[t.recorded :]:
        t.record.add_event(decision["step"], decision["kind"], decision)
    t.recorded = len(t.state.decisions)


def due_work(t: Training) -> list[str]:
    """What is to be done after this step: said in the checkpoint, so that a run that dies meanwhile still owes it."""
    step, last = t.state.step, t.pace.finished(t.state)
    if t.state.bad_steps and not last:  # there is nothing good to save or to look at
        return []
    sample_every = t.config.train.sample_every or t.eval_every
    work = {"evaluation": last or step % t.eval_every == 0, "sample": last or step % sample_every == 0}
    return [name for name, due in work.items() if due]


def do_owed_work(t: Training) -> None:
    """Evaluate and sample if that is owed. A failure is an event: it never ends training."""
    for name in list(t.state.owed):
        t.world.at(t.state.step, name)
        try:
            evaluate(t) if name == "evaluation" else sample(t)
        except Exception as error:
            t.record.add_event(t.state.step, f"{name}_failed", {"error": f"{type(error).__name__}: {error}"})
        t.state.owed = [other for other in t.state.owed if other != name]


def evaluate(t: Training) -> None:
    """Measure the held-out part, remember the best, and decide to stop when it has been over for long."""
    began = time.perf_counter()
    try:
        found = asdict(t.evaluate(t.eval_tokens))
        t.eval_seconds = time.perf_counter() - began
    except Exception as error:  # told to all processes before it is raised, so that none waits for another
        found = {"error": f"{type(error).__name__}: {error}"}
    found, state = t.world.agree(found), t.state
    if "error" in found or not math.isfinite(found["loss"]):
        raise RuntimeError(found.get("error", "the held-out loss is not finite"))
    values = {"heldout.loss": found["loss"], "heldout.bits_per_byte": found["bits_per_byte"]}
    t.record.add_metrics(state.step, values)
    if state.best_loss is None or found["loss"] < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_since_best = found["loss"], state.step, 0
    else:
        state.evaluations_since_best += 1
    if t.config.train.early_stop and state.evaluations_since_best >= EARLY_STOP and not t.pace.finished(state):
        state.decide("early_stop")  # going on would only learn the text by heart
    for observer in t.observers:
        observer.after_evaluation(state.step, values)


def sample(t: Training) -> None:
    for observer in t.observers:
        observer.sample(t.state.step, t.replicas.model)


def stop_reason(t: Training) -> str | None:
    """Why to stop now, agreed by all processes: any one of them may have been told."""
    reason = t.stop() or t.saver.trouble()
    return (reason or "interrupted") if t.world.any(reason is not None) else None

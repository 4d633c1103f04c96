"""Saving in the background: what is saved is what was handed over, failures are said, and training never hangs."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from store_helpers import content_of, flip, tensors_of

from lightwell.errors import SpaceError, StoppedEarly, UserError
from lightwell.store import background as module
from lightwell.store.background import BackgroundWriter
from lightwell.store.checkpoint import read_checkpoint
from lightwell.store.checkpoints import list_checkpoints, read_newest, step_of


class Events(list):
    def __call__(self, step: int, kind: str, details: dict) -> None:
        self.append((step, kind, details))

    def kinds(self) -> list[tuple[int, str]]:
        return [(step, kind) for step, kind, _ in self]


@pytest.fixture
def events() -> Events:
    return Events()


def submit(writer: BackgroundWriter, step: int) -> None:
    writer.submit(step, *tensors_of(step), {"decisions": [["content", step]]}, {"tokens": 7 * step})


class Gate:
    """Stands before `write_checkpoint`: waits until it is opened, fails as often as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        self.failures: list[Exception] = []
        self.attempts: list[int] = []
        self._real = module.write_checkpoint
        monkeypatch.setattr(module, "write_checkpoint", self)

    def __call__(self, run: Path, step: int, *rest) -> Path:
        self.attempts.append(step)
        self.entered.set()
        assert self.open.wait(15)
        if self.failures:
            raise self.failures.pop(0)
        return self._real(run, step, *rest)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_saves_and_clears_away(run: Path, events: Events) -> None:
    with BackgroundWriter(run, keep=2, on_event=events) as writer:
        for step in range(1, 6):
            submit(writer, step)
            if step == 2:
                writer.wait()
                writer.best_step = 2
    assert [step_of(path) for path in list_checkpoints(run)] == [2, 4, 5]
    assert [content_of(read_checkpoint(path)) for path in list_checkpoints(run)] == [2, 4, 5]
    assert events.kinds() == [(step, "saved") for step in range(1, 6)]
    assert events[4][2]["path"] == str(run / "checkpoints" / "step-00000005")


def test_what_was_handed_over_is_saved_whatever_training_does_next(run: Path, gate: Gate) -> None:
    model, optimizer = tensors_of(3)
    state = {"decisions": [["content", 3]]}
    gate.open.clear()
    with BackgroundWriter(run, keep=1) as writer:
        writer.submit(3, model, optimizer, state)
        assert gate.entered.wait(15)
        for tensor in (*model.values(), *optimizer.values()):
            tensor.fill_(float("nan"))
        state["decisions"].clear()
        gate.open.set()
    assert content_of(read_newest(run)) == 3


def test_the_copy_uses_the_same_memory_and_keeps_ties(run: Path, gate: Gate) -> None:
    seen = []
    gate._real = lambda run, step, model, optimizer, *rest: seen.append((model, optimizer)) or run
    with BackgroundWriter(run, keep=1) as writer:
        for step in (1, 2):
            submit(writer, step)
            writer.wait()
    (first, first_moments), (second, second_moments) = seen
    assert all(first[name] is second[name] for name in first)
    assert all(first_moments[name] is second_moments[name] for name in first_moments)
    assert first["head.weight"] is first["tok_emb.weight"]


def test_shards_are_gathered_one_at_a_time(run: Path) -> None:
    model, optimizer = tensors_of(4)
    alive = []

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        scratch = torch.empty(15)  # as an allocator would: the next tensor lies where the last one was
        for name, tensor in model.items():
            alive.append(name)
            yield name, scratch[: tensor.numel()].view(tensor.shape).copy_(tensor)

    with BackgroundWriter(run, keep=1) as writer:
        writer.submit(4, gather(), optimizer.items(), {"decisions": [["content", 4]]})
    assert content_of(read_newest(run)) == 4
    assert alive == list(model)


def test_training_waits_for_the_copy_only(run: Path, gate: Gate) -> None:
    gate.open.clear()
    with BackgroundWriter(run, keep=1) as writer:
        submit(writer, 1)
        assert gate.entered.wait(15)  # and we are here while the thread cannot go on
        writer.check()
        assert list_checkpoints(run) == []
        second = threading.Thread(target=submit, args=(writer, 2))
        second.start()
        second.join(0.05)
        assert second.is_alive()  # one save at a time: the next copy needs the memory
        gate.open.set()
        second.join(15)
    assert gate.attempts == [1, 2]


def test_a_failed_save_is_an_event_and_is_tried_again(run: Path, gate: Gate, events: Events) -> None:
    gate.failures = [full(), SpaceError("expected room, got none.")]
    with BackgroundWriter(run, keep=1, on_event=events, pauses=(0.0, 0.0)) as writer:
        submit(writer, 1)
        writer.wait()
        assert events.kinds() == [(1, "save_failed"), (1, "save_failed"), (1, "saved")]
        assert [details.get("attempt") for _, _, details in events] == [1, 2, None]
        assert "No space left" in events[0][2]["error"]
        gate.failures = [full(), full()]  # the count begins again after a success
        submit(writer, 2)
    assert content_of(read_newest(run)) == 2


def test_three_failures_in_a_row_stop_the_run(run: Path, gate: Gate, events: Events) -> None:
    writer = BackgroundWriter(run, keep=1, on_event=events, pauses=(0.0, 0.0))
    submit(writer, 100)
    writer.wait()
    gate.failures = [full() for _ in range(9)]
    submit(writer, 200)
    for stops in (writer.wait, writer.check, lambda: submit(writer, 300), writer.close):
        with pytest.raises(StoppedEarly) as caught:
            stops()
        assert "3 failures in a row: [Errno 28] No space left on device" in caught.value.message
        assert "the last good checkpoint is step 100" in caught.value.message
        assert f"lightwell resume {run}" in caught.value.hint
        assert caught.value.details["step"] == 100
    assert gate.attempts == [100, 200, 200, 200]
    assert content_of(read_newest(run)) == 100


def test_the_last_good_step_is_one_that_was_verified(run: Path, gate: Gate) -> None:
    writer = BackgroundWriter(run, keep=5, pauses=(0.0, 0.0))
    for step in (1, 2):
        submit(writer, step)
    writer.wait()
    flip(run / "checkpoints" / "step-00000002" / "state.json", 5)
    gate.failures = [full() for _ in range(3)]
    submit(writer, 3)
    with pytest.raises(StoppedEarly, match="the last good checkpoint is step 1"):
        writer.close()


def test_without_any_good_checkpoint_it_says_so(run: Path, gate: Gate) -> None:
    gate.failures = [full() for _ in range(3)]
    with (
        pytest.raises(StoppedEarly, match="there is no good checkpoint"),
        BackgroundWriter(run, 1, None, (0, 0)) as writer,
    ):
        submit(writer, 1)


def test_a_newer_save_takes_the_place_of_one_that_waits_to_be_tried_again(
    run: Path, gate: Gate, events: Events
) -> None:
    gate.failures = [full()]
    with BackgroundWriter(run, keep=1, on_event=events, pauses=(600.0, 600.0)) as writer:
        submit(writer, 1)
        until(lambda: bool(events))
        submit(writer, 2)
    assert events.kinds() == [(1, "save_failed"), (2, "saved")]


def test_closing_tries_again_at_once(run: Path, gate: Gate, events: Events) -> None:
    gate.failures = [full()]
    with BackgroundWriter(run, keep=1, on_event=events, pauses=(600.0, 600.0)) as writer:
        submit(writer, 1)
        until(lambda: bool(events))
    assert events.kinds() == [(1, "save_failed"), (1, "saved")]


def test_numbers_that_are_not_finite_are_not_tried_again(run: Path, events: Events) -> None:
    model, optimizer = tensors_of(2)
    model["norm.weight"][0] = float("inf")
    writer = BackgroundWriter(run, keep=1, on_event=events, pauses=(600.0, 600.0))
    submit(writer, 1)
    writer.submit(2, model, optimizer, {})
    writer.wait()
    assert events.kinds() == [(1, "saved"), (2, "save_failed")]
    with pytest.raises(
        StoppedEarly, match=r"a failure: expected finite numbers to save, got NaN or infinity in norm\.weight"
    ):
        writer.close()
    assert content_of(read_newest(run)) == 1


def test_a_rotation_that_fails_is_only_an_event(run: Path, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **options) -> None:
        raise UserError("expected to clear away, got no permission.")

    monkeypatch.setattr(module, "rotate", refuse)
    with BackgroundWriter(run, keep=1, on_event=events) as writer:
        submit(writer, 1)
    assert events.kinds() == [(1, "saved"), (1, "rotate_failed")]


def test_a_disk_that_writes_something_else_is_found_out(run: Path, gate: Gate, events: Events) -> None:
    """What was saved is read back before what it would replace goes."""
    real = gate._real

    def unfaithful(run: Path, step: int, *rest) -> Path:
        path = real(run, step, *rest)
        if step == 2:
            flip(path / "model.safetensors", -1)
        return path

    gate._real = unfaithful
    with BackgroundWriter(run, keep=1, on_event=events) as writer:
        for step in (1, 2):
            submit(writer, step)
        writer.wait()
        assert [step_of(path) for path in list_checkpoints(run)] == [1]
        submit(writer, 3)
    assert events.kinds() == [(1, "saved"), (2, "saved"), (2, "checkpoint_broken"), (3, "saved")]
    assert "Step 2 cannot be used" in events[2][2]["error"]
    assert [step_of(path) for path in list_checkpoints(run)] == [3]


def test_a_bug_in_the_thread_surfaces_and_hangs_nobody(run: Path, gate: Gate) -> None:
    gate.failures = [ZeroDivisionError("ours")]
    writer = BackgroundWriter(run, keep=1)
    submit(writer, 1)
    for call in (writer.wait, writer.check, lambda: submit(writer, 2), writer.close):
        with pytest.raises(ZeroDivisionError, match="ours"):
            call()


def test_state_that_is_not_json_is_refused_where_it_is_made(run: Path) -> None:
    with BackgroundWriter(run, keep=1) as writer, pytest.raises(ValueError, match="JSON"):
        writer.submit(1, {}, {}, {"loss": float("nan")})
    assert list_checkpoints(run) == []


def test_an_error_in_training_still_finishes_the_save(run: Path, gate: Gate) -> None:
    gate.open.clear()
    threading.Timer(0.05, gate.open.set).start()

    def training() -> None:
        with BackgroundWriter(run, keep=1) as writer:
            submit(writer, 1)
            raise KeyError("training")

    with pytest.raises(KeyError, match="training"):
        training()
    assert content_of(read_newest(run)) == 1


def test_ctrl_c_while_a_save_is_under_way(run: Path, gate: Gate) -> None:
    """The signal reaches whoever waits; the thread writes on; nothing is half done; closing afterwards works."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    gate.open.clear()
    writer = BackgroundWriter(run, keep=1)
    submit(writer, 1)
    assert gate.entered.wait(15)
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        writer.wait()
    gate.open.set()
    writer.close()
    assert content_of(read_newest(run)) == 1


def test_ctrl_c_in_the_middle_of_the_copy(run: Path) -> None:
    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        model, _ = tensors_of(2)
        yield "norm.weight", model["norm.weight"]
        raise KeyboardInterrupt

    with BackgroundWriter(run, keep=1) as writer:
        submit(writer, 1)
        with pytest.raises(KeyboardInterrupt):
            writer.submit(2, interrupted(), {}, {})
    assert [step_of(path) for path in list_checkpoints(run)] == [1]
    assert content_of(read_newest(run)) == 1

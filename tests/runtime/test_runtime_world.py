"""A process alone is rank 0 of 1; of several, the one that holds the others up is named."""

import json
import os
import time

import pytest
import torch

from lightwell.errors import StoppedEarly, UserError
from lightwell.runtime import watch
from lightwell.runtime.watch import Watch, report
from lightwell.runtime.world import World, exit_code, join_world


def test_alone_everything_comes_back_as_it_was(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        tensor = torch.tensor([1.0, 2.0])
        assert world.sum(tensor) is tensor
        assert tensor.tolist() == [1.0, 2.0]
        assert world.any(True)
        assert not world.any(False)
        assert world.agree({"a": [1, 2]}) == {"a": [1, 2]}
        assert world.gather("x") == ["x"]
        world.at(3, "update")


class Store:
    """What Watch and World need of torch's key-value store."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)

    def wait(self, keys, timeout):
        assert self.check(keys), f"it would wait for {keys}"


def test_rank_0_works_for_all_and_its_error_ends_all():
    store = Store()
    first, second = World(0, 2, store=store), World(1, 2, store=store)
    assert first.on_main(lambda: {"path": "runs/a"}) == {"path": "runs/a"}
    assert second.on_main(lambda: pytest.fail("only rank 0 works")) == {"path": "runs/a"}

    def mistake():
        raise UserError("expected one thing, got another")

    with pytest.raises(UserError):
        first.on_main(mistake)
    with pytest.raises(SystemExit) as ended:
        second.on_main(mistake)
    assert ended.value.code == 2
    assert exit_code(StoppedEarly("stopped")) == 0  # torchrun starts again whatever fails
    assert exit_code(KeyError("a bug")) == 1


def test_the_report_says_who_is_behind():
    waits = {"step": 12, "phase": "update", "beat": 9}
    frozen = report([waits, {"step": 12, "phase": "micro-batch 1 of 3", "beat": 4}], {1}, 600)
    assert "stood still for 600 seconds" in frozen
    assert "rank 0: step 12, update, waits\n" in frozen
    assert frozen.endswith("rank 1: step 12, micro-batch 1 of 3, last heard of there, does not answer  <- behind")
    behind = report([waits, {**waits, "step": 11}], set(), 600).splitlines()
    assert [line.endswith("<- behind") for line in behind] == [False, False, True]
    assert "behind" not in report([waits, waits], set(), 600)  # nobody can say


def test_the_watch_ends_a_standstill_and_only_that(monkeypatch):
    ended, said = [], []
    monkeypatch.setattr(watch, "BEAT", 0.02)
    monkeypatch.setattr(os, "write", lambda fd, text: said.append(text.decode()))

    def leave(code):
        ended.append(code)
        raise RuntimeError("the process is gone")

    monkeypatch.setattr(os, "_exit", leave)
    store = Store()
    store.set("place/1", json.dumps({"step": 4, "phase": "evaluation", "beat": 7}))
    quiet = Watch(store, 0, 2, 0.2)
    for step in range(10):  # it moves
        quiet.at(step, "update")
        time.sleep(0.05)
    quiet.at(10, "")  # busy by itself
    time.sleep(0.5)
    assert ended == []
    quiet.at(10, "update")
    quiet._thread.join(timeout=10)
    assert ended == [watch.STANDSTILL]
    assert "rank 1: step 4, evaluation, last heard of there, does not answer  <- behind" in said[0]

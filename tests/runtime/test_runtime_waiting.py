"""How threads wait: by how busy the machine is, and never against the user's word."""

import os

import pytest

from lightwell.runtime import waiting

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """Neither variable is set when the test begins; afterwards both are as they were."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def said():
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_on_a_quiet_machine_they_spin_for_a_moment(monkeypatch):
    monkeypatch.setattr(waiting, "_busy_processors", lambda: 0.05)
    waiting.let_threads_wait_as_fits()
    assert said() == {"GOMP_SPINCOUNT": waiting.SPINS}


def test_on_a_busy_machine_they_sleep(monkeypatch):
    monkeypatch.setattr(waiting, "_busy_processors", lambda: 0.9)
    waiting.let_threads_wait_as_fits()
    assert said() == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_the_users_word_stands(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(waiting, "_busy_processors", lambda: 0.0)
    waiting.let_threads_wait_as_fits()
    waiting.let_threads_sleep()
    assert said() == {name: value}


def test_processors_at_work_are_counted(monkeypatch):
    ticks = iter([1000, 1000 + int(0.5 * waiting.LOOK_SECONDS * os.sysconf("SC_CLK_TCK"))])
    monkeypatch.setattr(waiting, "_busy_ticks", lambda: next(ticks))
    assert waiting._busy_processors() == pytest.approx(0.5)
    monkeypatch.setattr(waiting, "_busy_ticks", lambda: None)
    assert waiting._busy_processors() == float("inf")

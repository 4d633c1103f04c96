"""Fixtures of the files' tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests look at what was asked for, hundreds of times; only the child processes really sync."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)

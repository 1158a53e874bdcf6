"""Threads that wait for each other sleep where other programs compute, and only there."""

from __future__ import annotations

import os

import pytest

from bitquilt.runtime.load import WAITING, wait_asleep_if_busy


@pytest.mark.parametrize(
    ("load", "before", "after"),
    [
        (0.0, None, None),
        (1.0, None, None),
        (3.0, None, "PASSIVE"),
        (3.0, "ACTIVE", "ACTIVE"),
    ],
)
def test_threads_sleep_on_a_busy_machine_unless_the_user_says_otherwise(
    monkeypatch, load, before, after
):
    monkeypatch.setattr("psutil.getloadavg", lambda: (load * (os.cpu_count() or 1), 0, 0))
    environment = {} if before is None else {WAITING: before}
    monkeypatch.setattr(os, "environ", environment)
    wait_asleep_if_busy()
    assert environment.get(WAITING) == after

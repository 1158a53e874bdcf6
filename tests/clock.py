"""A clock that one module alone goes by.

The module ``time`` is everybody's: the event loop of a server that another test's thread runs would
wait until the other clock's next tick, which may be hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest


def set_clock(patch: pytest.MonkeyPatch, module: ModuleType, now: Callable[[], float]) -> None:
    """Let a module, which has ``import time``, read ``now`` as the time."""
    own = SimpleNamespace(**vars(time))
    own.monotonic = own.perf_counter = now
    patch.setattr(module, "time", own)

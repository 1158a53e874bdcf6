"""What a search spends: token-forwards and seconds, counted and limited."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class SpentError(Exception):
    """A search has used up its tokens or its time."""


@dataclass(frozen=True)
class Limits:
    """Where a search ends at the latest."""

    tokens: float = math.inf
    """Token-forwards: tokens read, times allocations that read them."""
    seconds: float = math.inf
    """Time from the moment that the limit is set."""


class Meter:
    """Tokens and seconds of one search, and its limits.

    Time is known ahead: what one window takes is learned from those that were measured.
    """

    def __init__(self, window_tokens: int) -> None:
        """Begin to count.

        Args:
            window_tokens: the tokens of a window.
        """
        self.tokens = 0
        """Token-forwards needed so far, remembered ones too."""
        self.remembered = 0
        """Those of them that an earlier search had measured."""
        self.window_tokens = window_tokens
        """Tokens of a window."""
        self._started = time.monotonic()
        self._limits = Limits()
        self._busy_seconds, self._busy_windows = 0.0, 0

    def limit(self, limits: Limits) -> None:
        """Allow so much from now on."""
        tokens, seconds = limits.tokens + self.tokens, limits.seconds + self.seconds
        self._limits = Limits(tokens, seconds)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    @property
    def spent(self) -> dict[str, Any]:
        """Tokens and seconds so far, as a history has them."""
        return {"tokens": self.tokens, "seconds": round(self.seconds, 1)}

    @property
    def tokens_left(self) -> float:
        """Token-forwards that may still be needed, by the limit."""
        return self._limits.tokens - self.tokens

    @property
    def progress(self) -> str:
        """Tokens spent, for people, who see the time left of the whole job elsewhere."""
        return f"after {self.tokens:,} of at most {self._limits.tokens:,} tokens"

    @property
    def _window_seconds(self) -> float:
        """Seconds that a window takes; 0 as long as none was measured."""
        return self._busy_seconds / self._busy_windows if self._busy_windows else 0.0

    def charge(self, wanted: int, missing: int) -> None:
        """Count windows, unless they go beyond the limits.

        Args:
            wanted: windows that the search needs and has not needed before.
            missing: those of them that have to be measured now.

        Raises:
            SpentError: the tokens or the time do not suffice; nothing is counted then.
        """
        tokens = self.tokens + wanted * self.window_tokens
        late = missing and self.seconds + missing * self._window_seconds > self._limits.seconds
        if tokens > self._limits.tokens or late:
            raise SpentError
        self.tokens = tokens
        self.remembered += max(0, wanted - missing) * self.window_tokens

    @contextmanager
    def measuring(self, windows: int) -> Iterator[None]:
        """Learn from the time of the body how long a window takes."""
        started = time.monotonic()
        yield
        self._busy_seconds += time.monotonic() - started
        self._busy_windows += windows

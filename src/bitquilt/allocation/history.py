"""The history of a search, one JSON object on a line, in a work directory.

``search/history-*.jsonl`` has one line per measurement (an allocation as the names of its types,
windows, and KL by segments of text) and one per step forward (``best``). A measurement is a
function of bank, allocation and text, so a search that starts again finds its measurements there
and soon is where it was; the report reads the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DIGITS = 6
"""Digits of a sample that are kept, so that a number read back is the number that was used."""


class History:
    """The measurements that are known, and the file that they are written to as they come."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier search wrote down.

        Args:
            path: the file; it is made when there is something to write.
        """
        self._path = path
        self._known = dict(_measurements(path))
        self._begun = False

    def __contains__(self, measurement: tuple[str, int]) -> bool:
        """Tell whether (allocation, window) is known."""
        return measurement in self._known

    def samples(self, allocation: str, window: int) -> list[float]:
        """Return the KL of an allocation by segments of a window."""
        return self._known[allocation, window]

    def add(
        self,
        allocation: str,
        windows: Sequence[int],
        kl: Sequence[Sequence[float]],
        spent: dict[str, Any],
    ) -> None:
        """Remember a measurement, and write it down.

        Args:
            allocation: the names of its types.
            windows: the windows that it was measured on.
            kl: samples of each window.
            spent: what the search has spent so far, as JSON has it.
        """
        rounded = [[float(f"{value:.{DIGITS}g}") for value in window] for window in kl]
        self._known |= {(allocation, w): own for w, own in zip(windows, rounded, strict=True)}
        self.write({"mix": allocation, "windows": list(windows), "kl": rounded} | spent)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            # the line before may have been cut short by the end of its run
            file.write("\n" * (not self._begun and file.tell() > 0) + json.dumps(line) + "\n")
        self._begun = True


def history_path(work: Path, target: str, text: str) -> Path:
    """Return the history file of a search for a target on a text.

    Args:
        work: the work directory.
        target: the name of the target.
        text: a name for the windows that the search may read.
    """
    return work / "search" / f"history-{target}-{text}.jsonl"


def latest_histories(work: Path) -> dict[str, Path]:
    """Return target → the history that was written to last; empty where no search ran."""
    found = sorted(work.glob("search/history-*.jsonl"), key=lambda path: path.stat().st_mtime)
    return {path.name.split("-")[1]: path for path in found}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history in order, without those that were cut short."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _measurements(path: Path) -> Iterator[tuple[tuple[str, int], list[float]]]:
    """Yield the measurements of a history: (allocation, window), samples."""
    for record in read_history(path):
        for window, samples in zip(record.get("windows", ()), record.get("kl", ()), strict=True):
            yield (record["mix"], window), samples

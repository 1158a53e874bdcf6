"""What runs made, written into their work directory for the report to find.

``made/<file>.json`` there is one file that ``quantize`` wrote: the mix, where its bytes are, the
closing figures, and the command.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.evaluation import results
from bitquilt.runtime.files import read_json
from bitquilt.runtime.workdir import WorkDir

FOLDER = "made"


@dataclass(frozen=True)
class OutputRecord:
    """One file that was made, and what is known of it now."""

    model: str
    """The original's name."""
    path: Path
    target: str
    nbytes: int
    bits: float
    mix: Mapping[str, str]
    """Module path → type name."""
    breakdown: Mapping[str, int]
    """Bytes by kind."""
    closing: Mapping[str, Any]
    """The figures at the end of ``quantize``."""
    command: str
    evaluation: Mapping[str, Any] | None
    """What ``bitquilt eval`` found; None if it was not asked, or about other bytes."""

    @property
    def name(self) -> str:
        """For tables."""
        return self.path.name

    @property
    def label(self) -> str:
        """What was asked for, in plots: ``4.5bit``, ``Q4_K_M``, ``4bit-g64``."""
        return self.name.removesuffix(".gguf").removesuffix("-mlx").removeprefix(f"{self.model}-")

    @property
    def row(self) -> Mapping[str, Any] | None:
        """Its row of the evaluation."""
        return self.evaluation["rows"][0] if self.evaluation else None

    @property
    def kl(self) -> Mapping[str, float]:
        """Mean, low and high: of the evaluation if there is one, else the closing figures."""
        figures = next(iter(self.row["figures"].values())) if self.row else self.closing
        found: Mapping[str, float] = figures["kl"]
        return found

    def bits_of(self, module: str) -> float:
        """Bits per weight of one matrix."""
        return qtypes.get(self.mix[module]).bits


def save(work: WorkDir, output: Mapping[str, Any], breakdown: Mapping[str, int]) -> None:
    """Write down a file that was made.

    Args:
        work: the run's work directory.
        output: the fields of :class:`bitquilt.report.result.Output`, JSON types only.
        breakdown: the file's bytes by kind.
    """
    path = Path(output["path"]).resolve()
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    record = {**output, "path": str(path), "breakdown": dict(breakdown), "command": command}
    work.save_json(f"{FOLDER}/{path.name}", record)


def load(work_dir: Path) -> list[OutputRecord]:
    """The files that a work directory knows of and that are still there, by size.

    Raises:
        UserError: it is no work directory, or nothing of what it made is left.
    """
    settings = work_dir / "settings.json"
    model = read_json(settings).get("model") if settings.is_file() else None
    if model is None:  # `bitquilt eval` keeps another kind
        raise UserError(
            f"{work_dir} is no work directory of bitquilt; give the one that `bitquilt quantize` "
            "left, <output>/<model>.work unless --work-dir said otherwise"
        )
    records = [read_json(path) for path in sorted((work_dir / FOLDER).glob("*.json"))]
    there = [_made(model, record) for record in records if Path(record["path"]).exists()]
    if not there:
        raise UserError(
            f"{work_dir} knows of no file that is still where it was written; run `bitquilt "
            "quantize` with it again, which takes seconds"
        )
    return sorted(there, key=lambda made: (made.nbytes, made.name))


def _made(model: str, record: Mapping[str, Any]) -> OutputRecord:
    path = Path(record["path"])
    return OutputRecord(
        model,
        path,
        record["target"],
        record["nbytes"],
        record["bits"],
        record["allocation"],
        record["breakdown"],
        record["figures"],
        record["command"],
        results.kept(path),
    )

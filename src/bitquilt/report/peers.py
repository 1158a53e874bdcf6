"""Files that stand beside those of a run and were measured as they were: points of the same plot.

A peer is what llama-quantize, mlx-lm or somebody else made of the original, or bitquilt in another
run. `bitquilt eval` keeps the figures of each file beside it, and only figures over the same text,
against the same original, compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitquilt.allocation.preset_names import preset_names
from bitquilt.errors import UserError
from bitquilt.evaluation.eval_file import load_beside, path_beside
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.metrics.kl import Estimate
from bitquilt.report.figures import MeasuredFile
from bitquilt.report.run_record import OutputRecord, find_record


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One file in the plot of KL against size."""

    name: str
    """The file's name."""
    label: str
    """What stands beside the point."""
    target: str
    """The file's format."""
    nbytes: int
    """The size on disk, everything counted."""
    kl: Estimate
    """The mean KL from the original, in nats per token."""
    ours: bool
    """Whether bitquilt made the file."""

    @classmethod
    def of(cls, record: OutputRecord) -> FrontPoint:
        """Give the point of a file that bitquilt made."""
        return cls(
            name=record.name,
            label=record.label,
            target=record.target,
            nbytes=record.nbytes,
            kl=record.kl,
            ours=True,
        )

    @property
    def is_preset(self) -> bool:
        """Whether bitquilt rounded the engine's own mix."""
        return self.ours and self.label in preset_names(self.target)


def compared(files: Sequence[OutputRecord]) -> list[OutputRecord]:
    """Give the files that were measured on one text: of several texts, on that of most files.

    Files beside them count, too. Where as many files were measured on each of two texts, an
    evaluation counts for more. A file that was evaluated later keeps the figures that `quantize`
    left with it: without its evaluation it is of the same text as files that were not.
    """
    on_text: dict[str, list[OutputRecord]] = {}
    for record in files:
        for view in {one.figures.text: one for one in (record.as_made, record)}.values():
            on_text.setdefault(view.figures.text, []).append(view)

    def weight(own: Sequence[OutputRecord]) -> tuple[int, bool]:
        return len(own) + len(peers_beside(own)), own[0].figures.evaluated

    return max(on_text.values(), key=weight)


def peers_beside(files: Sequence[OutputRecord]) -> list[FrontPoint]:
    """Find the files beside those of a run that were measured on the same text.

    Args:
        files: those of the run, all measured on one text.
    """
    own = {record.path for record in files}
    points = []
    for folder in sorted({record.path.parent for record in files}):
        for kept in sorted(folder.glob(path_beside(folder / "*").name)):
            path = kept.with_name(kept.name.removesuffix(path_beside(folder / "x").name[1:]))
            if path not in own and path.exists():
                with suppress(UserError):  # figures of another version, or of no model
                    points += _points(path, files[0])
    return points


def _points(path: Path, like: OutputRecord) -> list[FrontPoint]:
    """Give the point of a file; none if it was not measured as ``like`` was."""
    evaluation = load_beside(path)
    if evaluation is None or evaluation.fingerprint != like.fingerprint:
        return []
    figures, file = MeasuredFile.of(evaluation), ModelFile.at(path)
    if figures.text != like.figures.text:
        return []
    made = find_record(path, file.nbytes)
    return [
        FrontPoint(
            name=path.name,
            label=path.name.removesuffix(file.target.suffix).removeprefix(f"{like.model}-"),
            target=file.target.name,
            nbytes=file.nbytes,
            kl=figures.kl,
            ours=made is not None,
        )
    ]

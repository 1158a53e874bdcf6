"""The bytes that a run writes, and whether the disks have room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitquilt import qtypes
from bitquilt.allocation.plan import Plan
from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.collect import widths_of_outputs
from bitquilt.calibration.packed_moment import packed_bytes
from bitquilt.errors import UserError
from bitquilt.forecast.work import RunWork
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.models.names import layer_of
from bitquilt.rounding.layer_bank import POLISHED, ROUNDED
from bitquilt.runtime.files import nearest_there, refuse_unwritable
from bitquilt.runtime.sizes import human
from bitquilt.targets import Target

FLOAT, TOKEN = 4, 8
SPARE = 16 << 20
"""Bytes for histories, gradients and the file system's own."""


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes that are to be there at once, beside what is there already."""

    work_dir: Path
    work_bytes: int
    """Into the work directory."""
    output: Path
    output_bytes: int
    """Into the directory of the results."""

    def require_room(self) -> None:
        """Refuse a run that the disks cannot hold.

        Raises:
            UserError: a disk is too small.
        """
        if sentence := self.lacking:
            raise UserError(sentence)

    @property
    def lacking(self) -> str:
        """Say which disk is too small or not to be written; empty where none is.

        Two directories may be on one disk.
        """
        try:
            refuse_unwritable(self.work_dir, "--work-dir")
            refuse_unwritable(self.output, "--output")
        except UserError as error:
            return error.sentence
        needs: dict[int, list[tuple[Path, int]]] = {}
        for path, nbytes in ((self.work_dir, self.work_bytes), (self.output, self.output_bytes)):
            needs.setdefault(_device(path), []).append((path, nbytes))
        for parts in needs.values():
            needed = sum(nbytes for _, nbytes in parts)
            free = shutil.disk_usage(nearest_there(parts[0][0])).free
            if needed > free:
                where = " and ".join(f"{path} ({human(nbytes)})" for path, nbytes in parts)
                return (
                    f"the disk has {human(free)} free, but {human(needed)} are needed there for "
                    f"{where}; free space, or choose other directories with --work-dir and "
                    "--output"
                )
        return ""


def disk_use(work: RunWork) -> DiskUse:
    """Add up what a run is going to have on the disks."""
    quantizing = work.quantizing is not None
    return DiskUse(
        work_dir=work.work_dir,
        work_bytes=SPARE + sum(_work_bytes(work)),
        output=Path(work.config.output),
        output_bytes=sum(plan.layout.total_bytes for plan in work.plans) if quantizing else SPARE,
    )


def _work_bytes(work: RunWork) -> Iterable[int]:
    """Yield the bytes of each kind of artefact."""
    checkpoint, budget = work.checkpoint, work.budget
    if not work.has("hessians/head"):
        yield packed_bytes(int(checkpoint.config["hidden_size"]))
    if not work.two_passes:
        yield from _statistics(work)
    yield from _made(work) if work.estimates else _bank(work)
    window = budget.window * (FLOAT * int(checkpoint.config["hidden_size"]) + TOKEN)
    windows = sum(work.interactions(target) > 0 for target in work.targets) * budget.interactions
    if work.selects:
        windows += budget.selection + (budget.search if work.search.method != "knapsack" else 0)
    if (config := work.quantizing) is not None:
        windows += work.closing + (budget.tuning if config.tune else 0)
    there = sum(file.stat().st_size for file in (work.work_dir / "teacher").glob("*"))
    yield max(0, windows * window - there)


def _statistics(work: RunWork) -> Iterable[int]:
    """Yield the bytes of the moments of all blocks."""
    checkpoint = work.checkpoint
    for module, (_, columns) in checkpoint.matrices.items():
        layer = layer_of(module)
        if layer is not None and input_of(module) == module and not work.has(f"hessians/{layer}"):
            yield packed_bytes(columns)
    for layer in range(checkpoint.layers):
        if not work.has(f"weights/{layer}"):
            yield from map(packed_bytes, widths_of_outputs(checkpoint, layer))


def _bank(work: RunWork) -> Iterable[int]:
    """Yield the bytes of the layer bank, and of what comes of it."""
    if not work.forgets:
        yield sum(_candidates(work, target) for target in work.targets)
        polished = work.config.rounding == "full" and work.quantizing is not None
        yield from _again(work, work.plans if polished else ())
        yield from _again(work, work.corrected)
        return
    kept, most = 0, 0  # candidates of a format go before those of the next come
    for target in work.targets:
        finished = _finished(work, target)
        most = max(most, kept + _candidates(work, target) + finished)
        kept += finished
    yield max(most, kept + sum(_again(work, work.corrected)))


def _candidates(work: RunWork, target: Target) -> int:
    """Return the bytes of every candidate of a format."""
    cells = work.to_round(target)
    return sum(qtypes.get(name).nbytes(*work.checkpoint.matrices[module]) for module, name in cells)


def _finished(work: RunWork, target: Target) -> int:
    """Return the bytes of what the files of a format consist of, without what is there."""
    mixes = work.decided(target) or [plan.allocation for plan in work.of(target)]
    cells = dict.fromkeys(cell for mix in mixes for cell in mix.items())
    return sum(
        qtypes.get(name).nbytes(*work.checkpoint.matrices[module])
        for module, name in cells
        if f"{module}/{name}" not in work.polished
    )


def _made(work: RunWork) -> Iterable[int]:
    """Yield the bytes of what is rounded once types are chosen, and of what is polished."""
    for target in work.targets:
        for module, name in work.made(target):
            full = module not in (EMBEDDING, HEAD) and work.config.rounding == "full"
            folder = POLISHED if full else ROUNDED
            if not (work.work_dir / folder / input_of(module)).exists():
                yield qtypes.get(name).nbytes(*work.checkpoint.matrices[module])


def _again(work: RunWork, plans: Iterable[Plan]) -> Iterable[int]:
    """Yield the bytes of matrices of files that are polished, or rounded again."""
    for plan in plans:
        for module, name in plan.allocation.items():
            inside = module not in (EMBEDDING, HEAD)
            if inside and not (work.work_dir / POLISHED / input_of(module)).exists():
                yield qtypes.get(name).nbytes(*work.checkpoint.matrices[module])


def _device(path: Path) -> int:
    """Return the number of the disk that a path is on, or will be."""
    return nearest_there(path).stat().st_dev

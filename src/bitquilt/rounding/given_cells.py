"""Matrices of files of the same model, which a layer bank takes where they cost less than its own.

The idea is that of the mapper in IST-DASLab's gptq-gguf-toolkit, which puts a file together from
several quantized ones. Here each given matrix is judged as our own rounding is, by the KL that its
error is predicted to cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.fingerprint import checkpoint_fingerprint
from bitquilt.models.sources.tensors import rows_to_look_at
from bitquilt.qtypes.qtype import Packed
from bitquilt.rounding.nearest import fit
from bitquilt.targets import TARGETS, Target
from bitquilt.targets.base import StoredMatrix

FOREIGN = 2.0
"""A matrix whose error is more than this many times that of nearest rounding, as root of mean
squares, was rounded from other weights; error feedback was seen to reach 1.57."""


@dataclass(frozen=True)
class GivenCell:
    """A matrix of a file."""

    path: Path
    stored: StoredMatrix
    target: Target

    def packed(self) -> Packed:
        """Read it, its rows in canonical order."""
        return self.target.packed(self.path, self.stored)


@dataclass(frozen=True)
class GivenCells:
    """What files give of one model."""

    cells: Mapping[tuple[str, str], Sequence[GivenCell]]
    """Module path and type → the matrices that files have of it."""
    left_out: Sequence[str]
    """A sentence on each file of which some matrices were rounded from other weights."""
    fingerprint: Mapping[str, str]
    """File → what tells it from others."""

    @classmethod
    def read(cls, files: Sequence[Path], checkpoint: Checkpoint) -> GivenCells:
        """Look at files, and compare some rows of every matrix with the model's.

        Raises:
            UserError: a file is no model file, is damaged, or is of another model.
        """
        cells: dict[tuple[str, str], list[GivenCell]] = {}
        left_out = []
        for path in files:
            own = _given_by(path, checkpoint)
            foreign = [module for module in own if _is_foreign(own[module], module, checkpoint)]
            if len(foreign) == len(own):
                raise UserError(
                    f"{path} was made from another model than {checkpoint.name}: the error of its "
                    f"{foreign[0]} is more than {FOREIGN:g} times that of nearest rounding to "
                    f"{own[foreign[0]].stored.qtype}; leave it out of --cells"
                )
            if foreign:
                left_out.append(
                    f"{', '.join(foreign)} of {path} are not used: their error is more than "
                    f"{FOREIGN:g} times that of nearest rounding, so they were made from other "
                    "weights"
                )
            for module in own.keys() - set(foreign):
                cells.setdefault((module, own[module].stored.qtype), []).append(own[module])
        marks = {path.name: checkpoint_fingerprint({}, {}, [path]) for path in files}
        return cls(cells, left_out, marks)


def offered_types(files: Sequence[Path]) -> dict[str, frozenset[str]]:
    """Return module path → the quantized types that files have it on; only headers are read.

    Raises:
        UserError: a file is no model file, or is damaged.
    """
    found: dict[str, frozenset[str]] = {}
    for path in files:
        for stored in _quantized_in(path, _target_that_gives(path)):
            found[stored.module] = found.get(stored.module, frozenset()) | {stored.qtype}
    return found


def _target_that_gives(path: Path) -> Target:
    """Return the format of a file that may give matrices."""
    target = next((one for one in TARGETS.values() if one.gives_cells and one.holds(path)), None)
    if target is None:
        raise UserError(
            f"{path} is not a GGUF file, and matrices are taken from such files only; leave it out "
            "of --cells"
        )
    return target


def _quantized_in(path: Path, target: Target) -> list[StoredMatrix]:
    """List the matrices of a file on types that bitquilt quantizes to."""
    known = {name for name in qtypes.names(target.name) if qtypes.get(name).bits < 16}
    return [one for one in target.stored(path) if one.qtype in known]


def _given_by(path: Path, checkpoint: Checkpoint) -> dict[str, GivenCell]:
    """Return module path → the matrix that a file has of it."""
    found: dict[str, GivenCell] = {}
    target = _target_that_gives(path)
    for stored in _quantized_in(path, target):
        if (shape := checkpoint.matrices.get(stored.module)) is None:
            continue
        if shape != (stored.rows, stored.columns):
            raise UserError(
                f"{path} is of another model than {checkpoint.name}: {stored.module} has "
                f"{stored.rows} × {stored.columns} weights there, and {shape[0]} × {shape[1]} "
                "here; leave it out of --cells"
            )
        found[stored.module] = GivenCell(path, stored, target)
    if not found:
        raise UserError(
            f"{path} has no quantized matrix of {checkpoint.name}; leave it out of --cells"
        )
    return found


def _is_foreign(cell: GivenCell, module: str, checkpoint: Checkpoint) -> bool:
    """Tell by some rows whether a matrix was rounded from other weights than the model's."""
    rows = rows_to_look_at(cell.stored.rows)
    weight = checkpoint.load(f"{module}.weight")[rows]
    qtype = qtypes.get(cell.stored.qtype)
    given = qtype.dequantize({part: data[rows] for part, data in cell.packed().items()})
    nearest = qtype.decode(fit(qtype, weight, None))
    error, usual = ((found - weight).square().sum() for found in (given, nearest))
    return not bool(error <= FOREIGN**2 * usual + torch.finfo(torch.float32).tiny)

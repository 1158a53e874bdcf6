"""The layer bank: every matrix on every candidate type, packed, with what each is expected to cost.

Matrices that read one input and were rounded together are one artefact, ``rounded/<input>/<n>``:
tensors under ``<module>/<qtype>/<part>``, and as facts one :class:`BankCell` for each
``<module>/<qtype>``. The search knows these. What was polished for a file is beside it,
``polished/<input>/<n>``, so that a search that goes on later finds what the first one knew.

:mod:`bitquilt.rounding.round_layers` fills the bank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from itertools import count

from torch import Tensor

from bitquilt.calibration.block_moments import input_of
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.rounding.given_cells import GivenCell, GivenCells
from bitquilt.runtime.files import remove
from bitquilt.runtime.workdir import WorkDir, under

ROUNDED, POLISHED = "rounded", "polished"
"""The two folders of matrices."""
GIVEN = "given"
"""What a cell says was kept where it is a file's matrix."""
ESTIMATED = "estimated"
"""The folder of cells without a matrix: what each is expected to cost, from a few of its rows."""

Candidates = Mapping[str, Sequence[str]]
"""Module path → names of the types that the matrix may be put on."""
CellKey = tuple[str, str]
"""Module path and type name."""


@dataclass(frozen=True)
class BankCell:
    """What the bank knows of one matrix on one type."""

    predicted_kl: float
    """In nats per token, for the matrix as it was rounded for the search."""
    rounding: str
    """The method that was asked for, one of :data:`bitquilt.rounding.METHODS`."""
    kept: str
    """The method whose result was kept: ``nearest`` where the other was no better, ``given`` where
    a file's matrix was better still."""


class LayerBank:
    """The packed matrices of one checkpoint in a work directory."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        work: WorkDir,
        rounding: str,
        given: GivenCells | None = None,
    ) -> None:
        """Open the bank, which may have something in it already.

        Args:
            checkpoint: the model.
            work: where the statistics are and the matrices go.
            rounding: the method of what is added, one of :data:`bitquilt.rounding.METHODS`.
            given: matrices of files, which are taken where they cost less.
        """
        self.given: Mapping[CellKey, Sequence[GivenCell]] = {} if given is None else given.cells
        self.checkpoint = checkpoint
        self.work = work
        self.statistics = CalibrationStats(checkpoint, work)
        self.rounding = rounding

    def weights(self, module: str) -> int:
        """Return the number of a matrix's weights."""
        return math.prod(self.checkpoint.matrices[module])

    def cells(self, module: str, folder: str = ROUNDED) -> dict[str, BankCell]:
        """Return type name → what is known of a matrix on that type, for the types in the bank."""
        found: dict[str, BankCell] = {}
        for artefact in self._artefacts(folder, module):
            facts = under(f"{module}/", self.work.facts(artefact))
            found |= {qtype: BankCell(**json.loads(fact)) for qtype, fact in facts.items()}
        return found

    def scores(self, module: str) -> dict[str, float]:
        """Return type name → the KL that a matrix is predicted to cost on it, in nats per token.

        Estimates count where there are any, so that a run which goes on later decides the same.
        """
        cells = self.cells(module) | self.cells(module, ESTIMATED)
        return {qtype: cell.predicted_kl for qtype, cell in cells.items()}

    def reading(self, statistics: CalibrationStats) -> LayerBank:
        """Return the same bank with statistics from elsewhere than its work directory."""
        bank = copy(self)
        bank.statistics = statistics
        return bank

    def packed(self, module: str, qtype: str) -> Packed:
        """Return a matrix on a type as the search knows it: polished, if only that is there."""
        return self._load(ROUNDED if qtype in self.cells(module) else POLISHED, module, qtype)

    def polished(self, module: str, qtype: str) -> Packed:
        """Return a matrix on a type as a file is to have it: polished, if it was."""
        done = qtype in self.cells(module, POLISHED)
        return self._load(POLISHED if done else ROUNDED, module, qtype)

    def lacks(self, mixes: Iterable[Allocation]) -> Candidates:
        """Return what mixes consist of that is not there as files are to have it."""
        lacking: dict[str, list[str]] = {}
        for module, qtype in _cells_of(mixes):
            if qtype not in self.cells(module, POLISHED):
                lacking.setdefault(module, []).append(qtype)
        return lacking

    def keep_only(self, mixes: Iterable[Allocation]) -> None:
        """Remove what a search chose from, but for what mixes consist of.

        That is polished, or goes beside what is: what was polished does not go.
        """
        for module, names in self.lacks(mixes).items():
            for name in names:
                cell = self.packed(module, name), self.cells(module)[name]
                self.add(POLISHED, {(module, name): cell})
        remove(self.work.path / ROUNDED)

    def forget_matrices(self) -> None:
        """Remove all matrices; estimates of what they cost stay."""
        for folder in (ROUNDED, POLISHED):
            remove(self.work.path / folder)

    def _load(self, folder: str, module: str, qtype: str) -> Packed:
        key = f"{module}/{qtype}"
        for artefact in self._artefacts(folder, module):
            if key in self.work.facts(artefact):
                return self.work.load_under(artefact, f"{key}/")
        raise KeyError(f"{folder}/{key} is not in the bank")

    def _artefacts(self, folder: str, module: str) -> Iterator[str]:
        """Yield the names of the artefacts of what reads the same input, in the order of adding."""
        for number in count():
            if not self.work.has(artefact := f"{folder}/{input_of(module)}/{number}"):
                return
            yield artefact

    def add(self, folder: str, matrices: Mapping[CellKey, tuple[Packed, BankCell]]) -> None:
        """Put matrices into the bank, those of one input into one artefact more.

        Args:
            folder: ``ROUNDED``, ``POLISHED``, or ``ESTIMATED``, whose matrices have no parts.
            matrices: on the CPU, with what is to be known of them.
        """
        by_input: dict[str, list[CellKey]] = {}
        for key in matrices:
            by_input.setdefault(input_of(key[0]), []).append(key)
        for owner, keys in by_input.items():
            tensors: dict[str, Tensor] = {}
            facts: dict[str, str] = {}
            for key in keys:
                packed, cell = matrices[key]
                name = "/".join(key)
                tensors |= {f"{name}/{part}": tensor for part, tensor in packed.items()}
                facts[name] = json.dumps(asdict(cell))
            number = sum(1 for _ in self._artefacts(folder, owner))
            self.work.save(f"{folder}/{owner}/{number}", tensors, facts)


def _cells_of(mixes: Iterable[Allocation]) -> Iterable[CellKey]:
    """List each matrix and type of some mixes once."""
    return dict.fromkeys(cell for mix in mixes for cell in mix.items())

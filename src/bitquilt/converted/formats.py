"""What differs between bases: where matrices are, what their types take, how a file is written.

Letters: E experts of a stack (1 for a plain matrix), R rows of each, C columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.allocation.recipe import Recipe
from bitquilt.gguf.container import aligned
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.imatrix import ImportanceMatrix
from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Allocation, Packed
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.importance import EMBEDDING, MatrixImportance, importance_of
from bitquilt.streaming.mix import preset_mix, recipe_mix, recipe_pins
from bitquilt.streaming.source import GgufSource, SourceMatrix
from bitquilt.streaming.writing import OutputFile
from bitquilt.targets import GGUF
from bitquilt.targets.base import Target
from bitquilt.targets.destination import check_file

RoundedMatrix = Callable[[str, str], Packed | None]
"""(matrix, type) → the whole stack as stored; None where nothing was rounded for it."""


class BaseFormat(ABC):
    """A base, and the file that becomes of it."""

    target: Target
    safe_type: str
    """What matrices have that no parameter has the numbers of."""
    path: Path
    """Of the base."""
    matrices: Mapping[str, SourceMatrix]
    """What can be quantized, by the base's own names."""
    stored: Mapping[str, str]
    """Name of a matrix → its type in the base."""
    weights: int
    """All weights of the model's tensors."""
    kept_bytes: int
    """The data of the tensors that are no matrices."""
    fixed_bytes: int
    """Everything but the matrices on the disk; the same for every mix."""
    kept: Mapping[str, str]
    """Tensors that stay as they are → why."""
    known: Collection[str]
    """Matrices that have importance."""
    written: float
    """By how much :meth:`write` advances."""

    @property
    def pins(self) -> Mapping[str, str]:
        """Matrices whose type the engine's own class of the model decides."""
        return {}

    @abstractmethod
    def nbytes(self, name: str, qtype: str) -> int:
        """Return the bytes of a matrix on a type, alignment included."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Read a matrix, float32 [E, R, C]."""

    @abstractmethod
    def preset(self, name: str) -> dict[str, str]:
        """Return the types that one of the engine's presets gives all matrices.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def of_recipe(self, recipe: Recipe) -> dict[str, str]:
        """Return the types that a recipe gives all matrices.

        Raises:
            UserError: it fits another model.
        """

    @abstractmethod
    def pinned(self, recipe: Recipe) -> dict[str, str]:
        """Return those that it pins.

        Raises:
            UserError: it fits another model.
        """

    @abstractmethod
    def refuse_overwrite(self, path: Path) -> None:
        """Refuse a place where something is that bitquilt did not write.

        Raises:
            UserError: there is.
        """

    @abstractmethod
    def write(
        self, types: Allocation, rounded: RoundedMatrix, path: Path, progress: Progress
    ) -> None:
        """Write the file or directory; it is whole, or not there.

        Args:
            types: of every matrix.
            rounded: gives what was rounded.
            path: the place.
            progress: advances by weights of matrices.
        """

    def total_bytes(self, types: Allocation) -> int:
        """Return the bytes of everything on the disk."""
        return self.fixed_bytes + sum(self.nbytes(name, qtype) for name, qtype in types.items())


class GgufBase(BaseFormat):
    """A GGUF file by llama.cpp's converter."""

    target = GGUF
    safe_type = "Q8_0"

    def __init__(self, path: Path, imatrix_name: str, dataset: str, threads: int) -> None:
        """Read the header.

        Args:
            path: the base.
            imatrix_name: of the file of its importance matrix, for the header.
            dataset: of the importance matrix.
            threads: that write.
        """
        self.path, self._imatrix_name, self._threads = path, imatrix_name, threads
        self._source = GgufSource(path)
        # a header is as long whatever the numbers are
        unknown = ImportanceMatrix(entries={}, datasets=(dataset,), chunks=0, chunk_size=0)
        self._file = OutputFile(self._source, unknown, imatrix_name)
        self._importance: Mapping[str, MatrixImportance] = {}
        self.matrices = self._source.matrices
        self.kept = self._source.kept
        self.stored = {name: self._source.tensors[name].type.name for name in self.matrices}
        self.weights = sum(
            int(torch.Size(one.shape).numel()) for one in self._source.tensors.values()
        )
        self.known = set()
        self.written = float(sum(matrix.weights for matrix in self.matrices.values()))
        self.kept_bytes, self.fixed_bytes = self._file.kept_bytes, self._file.fixed_bytes

    def take(self, imatrix: ImportanceMatrix) -> None:
        """Take the importance matrix, for matrices that nothing was rounded for, and the header."""
        self._importance = importance_of(self._source, imatrix, self._imatrix_name)
        self._file = OutputFile(self._source, imatrix, self._imatrix_name)
        tables = set() if self._source.tied else {EMBEDDING}  # their rows are looked up
        self.known = {*self._importance, *tables}

    def nbytes(self, name: str, qtype: str) -> int:
        return aligned(self.matrices[name].nbytes(GgmlType[qtype]))

    def read(self, name: str) -> Tensor:
        matrix = self.matrices[name]
        rows = self._source.rows(matrix, 0, matrix.experts * matrix.rows)
        return torch.from_numpy(rows).reshape(matrix.experts, matrix.rows, matrix.columns)

    def preset(self, name: str) -> dict[str, str]:
        return _names(preset_mix(self._source, name))

    def of_recipe(self, recipe: Recipe) -> dict[str, str]:
        return _names(recipe_mix(self._source, recipe, GGUF))

    def pinned(self, recipe: Recipe) -> dict[str, str]:
        return _names(recipe_pins(self._source, recipe, GGUF))

    def refuse_overwrite(self, path: Path) -> None:
        check_file(path, self.path)

    def write(
        self, types: Allocation, rounded: RoundedMatrix, path: Path, progress: Progress
    ) -> None:
        def data(name: str, kind: GgmlType) -> bytes | None:
            packed = rounded(name, kind.name)
            return None if packed is None else packed["data"].numpy().tobytes()

        mix = {name: GgmlType[qtype] for name, qtype in types.items()}
        self._file.write(mix, self._importance, path, self._threads, progress, data)


def _names(mix: Mapping[str, GgmlType]) -> dict[str, str]:
    return {name: kind.name for name, kind in mix.items()}


def takes_rounding(qtype: str) -> bool:
    """Tell whether bitquilt rounds to a type: plain floats, and a few of ggml's, it does not."""
    return qtype in qtypes.names() and not isinstance(qtypes.get(qtype), Float)

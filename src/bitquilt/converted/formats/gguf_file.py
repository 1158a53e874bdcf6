"""A GGUF file from its base by llama.cpp's converter, with an importance matrix beside it.

Letters: E experts of a stack (1 for a plain matrix), R rows of each, C columns, N windows of L
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitquilt.allocation.recipe import Recipe
from bitquilt.bases.base_file import PLAIN_DTYPES, BaseMatrices
from bitquilt.bases.importance import importance_of_partners
from bitquilt.bases.partners import Partner
from bitquilt.bases.statistics import BaseStatistics
from bitquilt.config import QuantizeConfig
from bitquilt.converted.formats.base_format import BaseFormat, RoundedMatrix
from bitquilt.gguf import SUFFIX
from bitquilt.gguf.container import aligned
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.imatrix import ImportanceMatrix, write_imatrix
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.progress import Progress
from bitquilt.streaming.base import base_of, dataset_name, tokenizer_of
from bitquilt.streaming.from_base import SAFE_TYPE
from bitquilt.streaming.importance import EMBEDDING, MatrixImportance, importance_of
from bitquilt.streaming.make_imatrix import refuse_overwrite as refuse_imatrix_overwrite
from bitquilt.streaming.mix import preset_mix, recipe_mix, recipe_pins
from bitquilt.streaming.source import GgufSource
from bitquilt.streaming.writing import OutputFile
from bitquilt.targets import GGUF
from bitquilt.targets.destination import check_file
from bitquilt.targets.gguf.decoding import decode_named
from bitquilt.targets.same_tokens import refuse_other_tokens_of


class GgufBase(BaseFormat):
    """A GGUF file by llama.cpp's converter, and the one that becomes of it."""

    target = GGUF
    streams_nearest = True

    def __init__(self, path: Path, imatrix: Path, dataset: str, threads: int) -> None:
        """Read the header.

        Args:
            path: the base.
            imatrix: the place of its importance matrix.
            dataset: of the importance matrix.
            threads: that write.

        Raises:
            UserError: it is damaged, or the importance matrix would replace something else.
        """
        refuse_imatrix_overwrite(imatrix)
        self.path, self._imatrix, self._dataset, self._threads = path, imatrix, dataset, threads
        self._source = GgufSource(path)
        # a header is as long whatever the numbers are
        unknown = ImportanceMatrix(entries={}, datasets=(dataset,), chunks=0, chunk_size=0)
        self._file = OutputFile(self._source, unknown, imatrix.name)
        self._importance: Mapping[str, MatrixImportance] = {}
        self.matrices = self._source.matrices
        self.kept = self._source.kept
        self.stored = {name: self._source.tensors[name].type.name for name in self.matrices}
        self.weights = sum(math.prod(one.shape) for one in self._source.tensors.values())
        self.known = set()
        self.kept_bytes, self.fixed_bytes = self._file.kept_bytes, self._file.fixed_bytes

    @classmethod
    def convert(
        cls, model: str | Path, config: QuantizeConfig, progress: Progress, *, whole: bool = True
    ) -> tuple[Path, Path]:
        return base_of(model, config.base, Path(config.output), progress, whole=whole)

    @classmethod
    def refuse_other_tokens(cls, path: Path, directory: Path) -> list[str]:
        return refuse_other_tokens_of(path, directory.name, *tokenizer_of(directory))

    @classmethod
    def open(cls, path: Path, name: str, config: QuantizeConfig) -> GgufBase:
        imatrix = Path(config.output) / f"{name}-imatrix{SUFFIX}"
        return cls(path, imatrix, dataset_name(config), config.threads or torch.get_num_threads())

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def numbers(self) -> Mapping[str, Tensor]:
        return BaseMatrices(self.path)

    def take(
        self, partners: Mapping[str, Partner | None], statistics: BaseStatistics, tokens: Tensor
    ) -> None:
        """Write the importance matrix beside the files; their headers are about it, too."""
        matrix = importance_of_partners(partners, statistics.sums(), tokens, [self._dataset])
        with atomic_write(self._imatrix) as temporary:
            write_imatrix(temporary, matrix)
        # for matrices that nothing is rounded for
        self._importance = importance_of(self._source, matrix, self._imatrix.name)
        self._file = OutputFile(self._source, matrix, self._imatrix.name)
        tables = set() if self._source.tied else {EMBEDDING}  # their rows are looked up
        self.known = {*self._importance, *tables}

    def safe_type(self, name: str) -> str:
        return SAFE_TYPE

    def nbytes(self, name: str, qtype: str) -> int:
        return aligned(self.matrices[name].nbytes(GgmlType[qtype]))

    def read(self, name: str, expert: int) -> Tensor:
        matrix, device = self.matrices[name], compute_device()
        start, dtype = expert * matrix.rows, PLAIN_DTYPES.get(GgmlType[self.stored[name]])
        if device.type == "cpu" or dtype is None:
            return torch.from_numpy(self._source.rows(matrix, start, matrix.rows)).to(device)
        row = matrix.columns * dtype.itemsize
        stored = torch.from_numpy(self._source.stored(name, start * row, matrix.rows * row))
        weight = stored.to(device).view(dtype).view(matrix.rows, -1).float()
        if not weight.isfinite().all():
            self._source.refuse_numbers_of(name)
        return weight

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

    def decoded(self, path: Path) -> Callable[[str], Tensor]:
        return decode_named(path)


def _names(mix: Mapping[str, GgmlType]) -> dict[str, str]:
    return {name: kind.name for name, kind in mix.items()}

"""The file that is made: the source's header and order of tensors, with matrices on other types.

A source in parts makes a file in as many parts, with the same tensors in each. Everything of a
header but the type of the file stays byte for byte, and what was said of an earlier quantization
goes. Its length does not depend on the mix, so sizes are known to the byte.

Letters: E experts of a stack, R rows of each, C columns.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bitquilt.gguf.container import TensorInfo, aligned, encode, encode_header, read_pairs
from bitquilt.gguf.file_type import FILE_TYPE, RECIPE, file_type_of, without_file_facts
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.header import GgufHeader, part_name
from bitquilt.gguf.imatrix import ImportanceMatrix
from bitquilt.runtime.files import atomic_write
from bitquilt.runtime.progress import Progress
from bitquilt.streaming import ggml
from bitquilt.streaming.importance import MatrixImportance
from bitquilt.streaming.mix import Mix
from bitquilt.streaming.source import GgufSource, SourceMatrix

QUANTIZATION = 2
"""``general.quantization_version``: the formats of blocks that ggml has now."""
RECIPE_BASE, RECIPE_ENTRY = 256, 24
"""Bytes kept for the recipe in the header, and for the type of each matrix beside its name."""
CHUNK_WEIGHTS = 1 << 22
"""Weights that a thread rounds at a time, at most."""
ALL_CHUNKS = 1 << 26
"""Weights that all threads together have in memory, at most."""


RoundedBytes = Callable[[str, GgmlType], bytes | None]
"""(matrix, type) → its data, where it was rounded already."""


class OutputFile:
    """A quantized file to be, in as many parts as its source has."""

    def __init__(self, source: GgufSource, imatrix: ImportanceMatrix, imatrix_name: str) -> None:
        """Take what the header says besides the mix."""
        self._source = source
        self._importance = {
            "quantize.imatrix.file": encode(imatrix_name),
            "quantize.imatrix.dataset": encode(", ".join(imatrix.datasets)),
            "quantize.imatrix.entries_count": encode(len(imatrix.entries)),
            "quantize.imatrix.chunks_count": encode(imatrix.chunks),
        }
        self.kept_bytes = sum(source.tensors[name].nbytes for name in source.kept)
        """The data of the tensors that stay as they are."""
        largest = {name: source.tensors[name].type for name in source.matrices}
        headers = sum(len(self._header(part, largest)) for part in source.parts)
        kept = sum(aligned(source.tensors[name].nbytes) for name in source.kept)
        self.fixed_bytes = headers + kept
        """Everything but the matrices; the same for every mix."""

    def total_bytes(self, mix: Mix) -> int:
        """Return the bytes of all parts."""
        matrices = self._source.matrices
        return self.fixed_bytes + sum(aligned(matrices[n].nbytes(k)) for n, k in mix.items())

    def data_bytes(self, mix: Mix) -> int:
        """Return the bytes of the data of all tensors, without alignment."""
        matrices = self._source.matrices
        return self.kept_bytes + sum(matrices[n].nbytes(k) for n, k in mix.items())

    def paths(self, path: Path) -> list[Path]:
        """Return where the parts of a file go."""
        count = len(self._source.parts)
        return [path.with_name(part_name(path.name, n, count)) for n in range(count)]

    def write(
        self,
        mix: Mix,
        importance: Mapping[str, MatrixImportance],
        path: Path,
        threads: int,
        progress: Progress,
        rounded: RoundedBytes | None = None,
    ) -> None:
        """Write all parts beside their places, and put them there when the last one is whole.

        Args:
            mix: the type of every matrix.
            importance: of those that have one.
            path: the file's name, without the number of a part.
            threads: how many round side by side.
            progress: advances by weights of matrices.
            rounded: gives the bytes of matrices that were rounded already, and None for others.
        """
        for kind in {*mix.values()}:
            ggml.prepare(kind)
        with ExitStack() as stack:
            # the first part, which others are found by, is renamed last
            temporary = [stack.enter_context(atomic_write(place)) for place in self.paths(path)]
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            for part, place in zip(self._source.parts, temporary, strict=True):
                with place.open("wb") as file:
                    file.write(self._header(part, mix))
                    tasks = self._tasks(part, mix, importance, threads, rounded)
                    for weights, data in in_order(pool, tasks, threads + 1):
                        file.write(data)
                        progress.advance(weights)

    def _header(self, part: GgufHeader, mix: Mix) -> bytes:
        pairs = read_pairs(part.path, part.container)
        metadata = without_file_facts(pairs, parted=len(self._source.parts) > 1)
        if part is self._source.header:
            weights: Counter[str] = Counter()
            for name, kind in mix.items():
                weights[kind.name] += self._source.matrices[name].weights
            metadata[FILE_TYPE] = encode(int(file_type_of(weights.most_common(1)[0][0])))
            metadata["general.quantization_version"] = encode(QUANTIZATION)
            metadata |= self._importance
            metadata[RECIPE] = encode(self._recipe(mix))
        infos = [
            TensorInfo(name, tensor.shape, kind, self._nbytes(name, kind))
            for name, tensor in part.tensors.items()
            for kind in [mix.get(name, tensor.type)]
        ]
        return encode_header(metadata, infos)

    def _nbytes(self, name: str, kind: GgmlType) -> int:
        matrix = self._source.matrices.get(name)
        return self._source.tensors[name].nbytes if matrix is None else matrix.nbytes(kind)

    def _recipe(self, mix: Mix) -> str:
        """Return the recipe, with spaces up to as many bytes as any mix takes."""
        room = RECIPE_BASE + sum(len(name.encode()) + RECIPE_ENTRY for name in mix)
        text = recipe_text(mix)
        return text + " " * (room - len(text.encode()))

    def _tasks(
        self,
        part: GgufHeader,
        mix: Mix,
        importance: Mapping[str, MatrixImportance],
        threads: int,
        rounded: RoundedBytes | None,
    ) -> Iterator[Callable[[], tuple[int, bytes]]]:
        """Yield what makes the next bytes of a part, and how many weights these are of."""
        source, most = self._source, min(CHUNK_WEIGHTS, ALL_CHUNKS // threads)
        for name, tensor in part.tensors.items():
            matrix, kind = source.matrices.get(name), mix.get(name, tensor.type)
            if matrix is None or kind == tensor.type:
                for start in range(0, tensor.nbytes, most):
                    count = min(most, tensor.nbytes - start)
                    yield _copying(source, name, start, count)
            elif rounded is not None and (data := rounded(name, kind)) is not None:
                yield _giving(matrix.weights, data)
            else:
                own = importance.get(name)
                step = max(1, most // matrix.columns)
                for expert in range(matrix.experts):
                    for start in range(0, matrix.rows, step):
                        stop = min(matrix.rows, start + step)
                        yield _rounding(source, matrix, kind, own, expert, start, stop)
            nbytes = self._nbytes(name, kind)
            yield _padding(aligned(nbytes) - nbytes)


def recipe_text(mix: Mix) -> str:
    """Write a mix as a recipe on one line: the most common type, and all other matrices pinned."""
    default = Counter(kind.name for kind in mix.values()).most_common(1)[0][0]
    pins = {
        name.removesuffix(".weight"): kind.name
        for name, kind in sorted(mix.items())
        if kind.name != default
    }
    return json.dumps({"default": default, "pin": pins}, ensure_ascii=False, separators=(",", ":"))


WrittenBytes = tuple[int, bytes]
"""How many weights the next bytes of a file are of, and these bytes."""


def in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], WrittenBytes]], ahead: int
) -> Iterator[WrittenBytes]:
    """Yield what tasks return, in their order; no more than ``ahead`` others are under way."""
    running: deque[Future[WrittenBytes]] = deque()
    try:
        for task in tasks:
            running.append(pool.submit(task))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _copying(source: GgufSource, name: str, start: int, count: int) -> Callable[[], WrittenBytes]:
    matrix = source.matrices.get(name)
    weights = 0 if matrix is None else count * matrix.weights // source.tensors[name].nbytes
    return lambda: (weights, source.stored(name, start, count).tobytes())


def _giving(weights: int, data: bytes) -> Callable[[], WrittenBytes]:
    return lambda: (weights, data)


def _rounding(
    source: GgufSource,
    matrix: SourceMatrix,
    kind: GgmlType,
    importance: MatrixImportance | None,
    expert: int,
    start: int,
    stop: int,
) -> Callable[[], WrittenBytes]:
    def make() -> WrittenBytes:
        rows = source.rows(matrix, expert * matrix.rows + start, stop - start)
        squares = None if importance is None else importance.squares[expert]
        return rows.size, ggml.quantize_rows(kind, rows, squares).tobytes()

    return make


def _padding(count: int) -> Callable[[], WrittenBytes]:
    return lambda: (0, bytes(count))

"""CUDA kernels that round in few launches; their source is ``kernels.cu``.

torch operations do the same in twenty to forty launches, each of which reads and writes all of the
rows (docs/decisions/gpu.md); they are what runs elsewhere. The kernels are compiled by the compiler
that is part of CUDA's torch, when they are first used; without it torch operations serve too.

Letters: L inputs, N rows of each, K numbers that code eight columns.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.rounding.codebooks import SHORTLIST_LENGTHS, cells_of
from bitquilt.rounding.hessian import COLUMN_GROUP
from bitquilt.rounding.tables import LevelTable
from bitquilt.runtime.device import compute_device

THREADS = 128


def round_levels(
    scales: Sequence[Tensor],
    target: Tensor,
    triangles: Tensor,
    ends: tuple[Tensor, Tensor],
    table: LevelTable | None,
) -> tuple[Tensor, Tensor]:
    """Compute :meth:`bitquilt.rounding.group_quantizer.LevelQuantizer.propose`.

    Args:
        scales: steps, their inverses and offsets, float32 [L, N] each.
        target: float32 [L, 8, N].
        triangles: float32 [L, 8, 8].
        ends: the lowest and the highest code of each row, float32 [L, 1, N]; unused with a table.
        table: of uneven levels, if they are.
    """
    codes, levels = (
        _empty(target, COLUMN_GROUP, torch.int16),
        _empty(target, COLUMN_GROUP, torch.float32),
    )
    name = "round_even"
    own: list[Any] = [*ends]
    if table is not None:
        values, places = table.contents(target.device)
        name = "round_uneven"
        own = [values, places, int(table.lowest), table.cells, len(values)]
    arguments = [*_rows(target), *_matrices(triangles), *scales, *own]
    _launch(name, target, [*arguments, target.shape[2], codes, levels])
    return codes, levels


def round_patterns(
    qtype: Codebook, target: Tensor, steps: Tensor, triangles: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute :meth:`bitquilt.rounding.group_quantizer.PatternQuantizer.propose`.

    Args:
        qtype: which codebook.
        target: float32 [L, 8, N].
        steps: what patterns are multiplied with, float32 [L, N].
        triangles: float32 [L, 8, 8].
    """
    width = codebook(qtype.name).shape[1]
    cells = cells_of(qtype, SHORTLIST_LENGTHS[width], target.device)
    codes = _empty(target, COLUMN_GROUP // width + 1, torch.int16)
    levels = _empty(target, COLUMN_GROUP, torch.float32)
    words = _words(qtype, SHORTLIST_LENGTHS[width], target.device)
    own: list[Any] = [steps, cells.codes, words]
    own += [int(cells.lowest), int(cells.spacing), cells.count, int(qtype.even_signs)]
    arguments = [*_rows(target), *_matrices(triangles), *own, target.shape[2], codes, levels]
    _launch(f"round_patterns_{width}_{SHORTLIST_LENGTHS[width]}", target, arguments)
    return codes, levels


def cheapest_patterns(
    qtype: Codebook, size: int, vectors: tuple[Tensor, Tensor], listed_at: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what :mod:`bitquilt.rounding.fits.shortlists` does, at several steps.

    Args:
        qtype: which codebook, with patterns of m weights.
        size: how many patterns are on a shortlist.
        vectors: magnitudes and importance of weights, float32 with as many numbers each, in order.
        listed_at: the steps at which shortlists are looked up, float32 [...]: each is that of as
            many weights in a row, a multiple of m.
        steps: float32 [S, ...].

    Returns:
        codes int16, products and squares float32, [S, weights / m] each.
    """
    magnitudes, shares = (numbers.contiguous() for numbers in vectors)
    cells, width = cells_of(qtype, size, steps.device), codebook(qtype.name).shape[1]
    shape = len(steps), magnitudes.numel() // width
    codes = steps.new_empty(shape, dtype=torch.int16)
    product, square = steps.new_empty(shape), steps.new_empty(shape)
    arguments: list[Any] = [magnitudes, shares, listed_at.contiguous(), steps.contiguous()]
    arguments += [listed_at.numel(), shape[1] // listed_at.numel(), cells.codes]
    arguments += [_words(qtype, size, steps.device), int(cells.lowest), int(cells.spacing)]
    arguments += [cells.count, shape[1], codes, product, square]
    _launch(f"cheapest_patterns_{width}_{size}", codes, arguments)
    return codes, product, square


def keep_better(
    hessian: Tensor, target: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute :func:`bitquilt.rounding.coordinate_descent.better_codes`."""
    (old_codes, old_levels), (new_codes, new_levels) = old, new
    target, new_codes, new_levels = (n.contiguous() for n in (target, new_codes, new_levels))
    assert old_levels.stride()[1:] == old_codes.stride()[1:] == target.stride()[1:]
    codes, moved = torch.empty_like(new_codes), torch.empty_like(new_levels)
    arguments: list[Any] = [*_matrices(hessian), target]
    arguments += [old_levels, old_levels.stride(0), new_levels]
    arguments += [old_codes, old_codes.stride(0), new_codes, new_codes.shape[1]]
    _launch("keep_better", target, [*arguments, target.shape[2], codes, moved])
    return codes, moved


def dots(pulled: Tensor, share: Tensor) -> Tensor:
    """Multiply [n, R, B, W] by [R, B, W] and sum over W, a multiple of 4: [n, R, B].

    ``torch.linalg.vecdot`` writes all of the products before it adds them.
    """
    count, rows, blocks, width = pulled.shape
    assert share.stride()[1:] == (width, 1)
    assert width % 4 == 0
    products = pulled.new_empty(count, rows, blocks)
    arguments = [pulled.contiguous(), share, share.stride(0), rows, blocks, width, products]
    _launch("dots", products.flatten(1), arguments)
    return products


def _rows(numbers: Tensor) -> list[Any]:
    """Pass a tensor [L, 8, N] whose rows lie side by side, as kernels take it."""
    assert numbers.stride(2) == 1
    return [numbers, numbers.stride(0), numbers.stride(1)]


def _matrices(numbers: Tensor) -> list[Any]:
    """Pass a tensor [L, 8, 8] as kernels take it."""
    return [numbers, *numbers.stride()]


def _empty(target: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    inputs, _, rows = target.shape
    return target.new_empty((inputs, columns, rows), dtype=dtype)


@cache
def _words(qtype: Codebook, size: int, device: torch.device) -> Tensor:
    """Return the patterns on all shortlists, four weights to a word: int32 [cells, K, m / 4]."""
    words = codebook(qtype.name).to(torch.uint8).view(torch.int32).to(device)
    return words[cells_of(qtype, size, device).codes.int()]


def _launch(name: str, rows: Tensor, arguments: list[Any]) -> None:
    """Run a kernel, one thread for every row of a tensor [L, …, N]."""
    blocks = (math.ceil(rows.shape[-1] / THREADS), len(rows), 1)
    _kernel(name, rows.device)(blocks, (THREADS, 1, 1), arguments)


@cache
def _kernel(name: str, device: torch.device) -> Callable[..., None]:
    kernel: Callable[..., None] = getattr(_module(device), name)
    return kernel


@cache
def _module(device: torch.device) -> object:
    """Return all kernels, loaded onto a device."""
    from torch.cuda import _utils

    binary, _ = compiling(device).result()
    with torch.cuda.device(device):
        return _utils._cuda_load_module(binary)


@cache
def compiling(device: torch.device) -> Future[tuple[bytes, str]]:
    """Compile all kernels for a device, some seconds in a thread of their own."""

    def compiled() -> tuple[bytes, str]:
        from torch.cuda import _utils

        _find_compiler()
        source = files(__package__).joinpath("kernels.cu").read_text(encoding="utf-8")
        with torch.cuda.device(device):
            # any name will do: all kernels have C's names, which are those of the binary
            return _utils._nvrtc_compile(source, "dots")

    return ThreadPoolExecutor(1, thread_name_prefix="kernels").submit(compiled)


def start_compiling() -> None:
    """Begin to compile, where there is a GPU: it takes seconds until kernels are needed."""
    if compute_device().type == "cuda":
        compiling(torch.device("cuda", torch.cuda.current_device()))


@cache
def compile_error() -> str | None:
    """Say why kernels cannot be compiled here; return None where they can."""
    try:
        _kernel("dots", torch.device("cuda", torch.cuda.current_device()))
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError) as error:
        return str(error).partition("\n")[0]  # what follows is a log
    return None


def _find_compiler() -> None:
    """Have torch find the compiler that it brings along, on machines without CUDA's toolkit too."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is None:
        cpp_extension.CUDA_HOME = torch.__path__[0]  # any folder: the kernels include nothing
    # it is looked for by its name, which is known once a library that needs it is there
    with suppress(OSError):
        ctypes.CDLL(f"{torch.__path__[0]}/lib/libcaffe2_nvrtc.so")


def available_for(numbers: Tensor) -> bool:
    """Tell whether kernels can work on a tensor."""
    return numbers.is_cuda and compile_error() is None


def serve_patterns(qtype: Codebook, numbers: Tensor) -> bool:
    """Tell whether kernels can search a type's patterns for a tensor: those of magnitudes alone."""
    return qtype.signed and available_for(numbers)

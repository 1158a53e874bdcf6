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
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from bitquilt.qtypes.iquants import Codebook, codebook
from bitquilt.rounding.codebooks import SHORTLIST_LENGTHS, cells_of
from bitquilt.rounding.tables import LevelTable
from bitquilt.runtime.device import compute_device

THREADS = 128


@dataclass(frozen=True)
class KernelQuantizer:
    """What kernels round groups of eight columns with."""

    name: str
    """The end of the kernels' names."""
    arguments: Sequence[Any]
    """What those that end so take beside the rest."""


def level_quantizer(
    scales: Sequence[Tensor], ends: tuple[Tensor, Tensor], table: LevelTable | None
) -> KernelQuantizer:
    """Return what :class:`bitquilt.rounding.group_quantizer.LevelQuantizer` is to kernels.

    Args:
        scales: steps, their inverses and offsets of some groups, float32 [groups, L, N] each.
        ends: the lowest and the highest code of each row, float32 [L, 1, N]; unused with a table.
        table: of uneven levels, if they are.
    """
    if table is None:
        return KernelQuantizer("even", [*scales, *ends])
    values, places = table.contents(scales[0].device)
    own = [values, places, int(table.lowest), table.cells, len(values)]
    return KernelQuantizer("uneven", [*scales, *own])


def pattern_quantizer(qtype: Codebook, scales: Sequence[Tensor]) -> KernelQuantizer:
    """Return what :class:`bitquilt.rounding.group_quantizer.PatternQuantizer` is to kernels.

    Args:
        qtype: which codebook.
        scales: steps of some groups, and parts of the codebook if it has some, [groups, L, N] each.
    """
    width = codebook(qtype.name).shape[1]
    size = SHORTLIST_LENGTHS[width]
    cells = cells_of(qtype, size, scales[0].device)
    of_part = cells.count**width if qtype.parts > 1 else 0
    own: list[Any] = [scales[0], scales[-1], cells.codes, _words(qtype, size, scales[0].device)]
    own += [int(cells.lowest), int(cells.spacing), cells.count, of_part, int(qtype.even_signs)]
    return KernelQuantizer(f"patterns_{width}{'_signed' if qtype.signed else ''}", own)


def feed_back(
    quantizer: KernelQuantizer,
    weight: Tensor,
    targets: Tensor,
    metric: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Compute what :mod:`bitquilt.rounding.gptq` does to a block of up to 128 columns.

    Args:
        quantizer: of the block's groups.
        weight: float32 [L, 128, N].
        targets: with the errors of earlier blocks, float32 [L, 128, N].
        metric: the block's part of a factor's carry [L, 128, 128] and triangles [L, 16, 8, 8].
        found: is filled: codes int16 [L, 16, K, N], levels and errors float32 [L, 128, N] and
            what the rows cost so far [L, N], which is added to.
    """
    carry, triangles = metric
    codes, levels, errors, cost = found
    arguments = [*_columns(weight), *_columns(targets), *_block(carry), *_groups(triangles)]
    arguments += [triangles.shape[1], weight.shape[2], *_codes(codes)]
    arguments += [*_columns(levels), *_columns(errors), cost, *quantizer.arguments]
    _launch(f"feed_back_{quantizer.name}", weight, arguments)


def descend_block(
    quantizer: KernelQuantizer,
    pull: Tensor,
    metric: tuple[Tensor, Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Compute what :mod:`bitquilt.rounding.coordinate_descent` does to up to 128 columns.

    Args:
        quantizer: of the block's groups.
        pull: H E, float32 [L, 128, N].
        metric: the block of the Hessian [L, 128, 128], and the triangles and inverses of its
            groups, [L, 16, 8, 8] each.
        found: codes int16 [L, 16, K, N], levels and errors float32 [L, 128, N], changed in place.
    """
    hessian, triangles, inverses = metric
    codes, levels, errors = found
    arguments = [*_columns(pull), *_block(hessian), *_groups(triangles), *_groups(inverses)]
    arguments += [triangles.shape[1], pull.shape[2], *_codes(codes)]
    arguments += [*_columns(levels), *_columns(errors), *quantizer.arguments]
    _launch(f"descend_{quantizer.name}", pull, arguments)


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


def _columns(numbers: Tensor) -> list[Any]:
    """Pass a tensor [L, columns, N] whose rows lie side by side, as kernels take it."""
    assert numbers.stride(2) == 1
    return [numbers, numbers.stride(0), numbers.stride(1)]


def _codes(codes: Tensor) -> list[Any]:
    """Pass codes [L, groups, K, N] as kernels take them: [L, groups K, N]."""
    assert codes.stride(1) == codes.shape[2] * codes.stride(2)
    return [codes, codes.stride(0), codes.stride(2)]


def _block(matrix: Tensor) -> list[Any]:
    """Pass a block [L, 128, 128] of matrices as kernels take it, four numbers at a time."""
    assert matrix.stride(2) == 1
    assert not any(number % 4 for number in (*matrix.stride()[:2], matrix.storage_offset()))
    return [matrix, matrix.stride(0), matrix.stride(1)]


def _groups(numbers: Tensor) -> list[Any]:
    """Pass a tensor [L, groups, 8, 8] as kernels take it."""
    return [numbers, *numbers.stride()]


@cache
def _words(qtype: Codebook, size: int, device: torch.device) -> Tensor:
    """Return the patterns on all shortlists, four weights to a word: int32 [cells, K, m / 4]."""
    words = codebook(qtype.name).to(torch.int8).view(torch.int32).to(device)
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

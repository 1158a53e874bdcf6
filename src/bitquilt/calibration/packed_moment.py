"""Second moments on disk, in about a quarter of their bytes.

A second moment H is symmetric, so half of it says all; and H[i, j] / √(H[i, i] H[j, j]) lies
between −1 and 1, where float16 errs by less than what damping adds on purpose. The diagonal stays
exact.

Letters: C columns, S slabs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

SLABS = 16
"""S: what is written is (S + 1) / 2 S of the square."""
DIAGONAL = "diagonal"


def slabs(columns: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Yield slabs of columns with all columns from there on; these see every pair about once."""
    step = -(-columns // count)
    for start in range(0, columns, step):
        yield slice(start, start + step), slice(start, None)


def mirrored(moment: Tensor, count: int) -> Tensor:
    """Fill in, in place, what :func:`slabs` leaves out from the other side of the diagonal."""
    for own, _ in slabs(len(moment), count):
        moment[own.stop :, own] = moment[own, own.stop :].T
    return moment


def pack_moment(name: str, moment: Tensor) -> dict[str, Tensor]:
    """Return a second moment [C, C] as tensors ``<name>/…`` on the CPU."""
    diagonal = moment.diagonal()
    roots = _roots(diagonal)
    packed = {f"{name}/{DIAGONAL}": diagonal.float().contiguous().cpu()}
    for number, (own, on) in enumerate(slabs(len(moment), SLABS)):
        correlations = moment[own, on] / torch.outer(roots[own], roots[on])
        packed[f"{name}/{number}"] = correlations.half().cpu()
    return packed


def unpack_moment(name: str, read: Callable[[str], Tensor]) -> Tensor:
    """Return the second moment, float32 [C, C], that :func:`pack_moment` made tensors of.

    Args:
        name: that of the moment.
        read: returns a tensor by its name, on whatever device; the moment is there too.
    """
    diagonal = read(f"{name}/{DIAGONAL}")
    roots = _roots(diagonal)
    moment = diagonal.new_empty(len(diagonal), len(diagonal))
    for number, (own, on) in enumerate(slabs(len(diagonal), SLABS)):
        scale = torch.outer(roots[own], roots[on])
        torch.mul(read(f"{name}/{number}"), scale, out=moment[own, on])
    mirrored(moment, SLABS).diagonal().copy_(diagonal)
    return moment


def packed_bytes(columns: int) -> int:
    """Return how many bytes the tensors of one moment have."""
    pairs = sum(
        len(range(columns)[own]) * len(range(columns)[on]) for own, on in slabs(columns, SLABS)
    )
    return 4 * columns + 2 * pairs


def _roots(diagonal: Tensor) -> Tensor:
    """Return what to divide rows and columns by, [C]: 1 for an input that is always zero."""
    return torch.where(diagonal == 0, 1.0, diagonal.float().sqrt())

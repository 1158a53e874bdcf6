"""Bytes taken apart into small integers, and put together again.

Two orders occur in the formats. In both the first number sits in the lowest bits:

    digits   the numbers of one byte are neighbours:        byte 0 = number 0, 1, 2, 3
    planes   the numbers of one byte are a whole run apart: byte 0 = number 0, n, 2n, 3n

All functions work on the last axis (n) and keep the leading ones. They reinterpret memory, so the
host is little-endian, as the files are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def planes(octets: Tensor, width: int) -> Tensor:
    """Split bytes [..., n] into numbers of ``width`` bits, uint8 [..., 8 / width, n]."""
    return (octets.unsqueeze(-2) >> _shifts(octets, width)) & ((1 << width) - 1)


def from_planes(numbers: Tensor, width: int) -> Tensor:
    """Undo :func:`planes`."""
    return (numbers << _shifts(numbers, width)).sum(-2, dtype=torch.uint8)


def digits(octets: Tensor, width: int) -> Tensor:
    """Split bytes [..., n] into numbers of ``width`` bits, uint8 [..., 8 n / width]."""
    return planes(octets, width).transpose(-1, -2).flatten(-2)


def from_digits(numbers: Tensor, width: int) -> Tensor:
    """Undo :func:`digits`."""
    return from_planes(torch.unflatten(numbers, -1, (-1, 8 // width)).transpose(-1, -2), width)


def halves(octets: Tensor) -> Tensor:
    """Read bytes [..., 2 n] as IEEE half-precision numbers, float32 [..., n]."""
    return _aligned(octets).view(torch.float16).float()


def from_halves(numbers: Tensor) -> Tensor:
    """Undo :func:`halves`; round to nearest, ties to even."""
    return numbers.to(torch.float16).contiguous().view(torch.uint8)


def words(octets: Tensor, size: int) -> Tensor:
    """Read bytes [..., size n] as unsigned integers of ``size`` bytes (2 or 4), int64 [..., n]."""
    dtype = {2: torch.int16, 4: torch.int32}[size]
    # torch has few operations on unsigned words: read signed, widen, drop the sign's copies.
    return _aligned(octets).view(dtype).long() & ((1 << 8 * size) - 1)


def from_words(numbers: Tensor, size: int) -> Tensor:
    """Undo :func:`words`."""
    # [..., n] -> [..., n, 8], of which the low bytes come first
    octets = numbers.long().contiguous().unsqueeze(-1).view(torch.uint8)
    return octets[..., :size].flatten(-2)


def _aligned(octets: Tensor) -> Tensor:
    """Copy to where wider numbers can be read, as a part of a block can start at any byte."""
    return octets.clone(memory_format=torch.contiguous_format)


def _shifts(like: Tensor, width: int) -> Tensor:
    """Return ``[[0], [width], [2 width] …]`` over one byte."""
    return torch.arange(0, 8, width, dtype=torch.uint8, device=like.device).unsqueeze(-1)

"""Codes of a few bits as one little-endian stream in 32-bit words, as MLX and GPTQ store them.

Letters: R rows, C columns.
Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp (extract_bits).
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_stream(codes: Tensor, width: int) -> Tensor:
    """Pack codes [R, C] of ``width`` bits into a little-endian stream, uint32 [R, C width / 32].

    Eight codes fill exactly ``width`` bytes:

        bits 0 … width - 1        code 0
        bits width … 2 width - 1  code 1  …
    """
    shifts = torch.arange(0, 8 * width, width, device=codes.device)
    # [R, C] -> [R, C / 8, 8 codes] -> one 64-bit word for eight codes [R, C / 8, 1]
    eights = (torch.unflatten(codes, 1, (-1, 8)).long() << shifts).sum(-1, keepdim=True)
    # -> its first bytes [R, C / 8, width] -> [R, C width / 8]
    stream = eights.view(torch.uint8)[..., :width].flatten(1)
    return stream.contiguous().view(torch.uint32)


def from_stream(words: Tensor, width: int) -> Tensor:
    """Undo :func:`to_stream`: return codes, uint8 [R, C]."""
    # [R, words] -> [R, C / 8, width bytes] -> widened to 64-bit words [R, C / 8, 1]
    octets = torch.unflatten(words.view(torch.uint8), 1, (-1, width))
    eights = torch.nn.functional.pad(octets, (0, 8 - width)).view(torch.int64)
    shifts = torch.arange(0, 8 * width, width, device=words.device)
    return (eights >> shifts & ((1 << width) - 1)).to(torch.uint8).flatten(1)

# ruff: noqa: N801 (classes are named as the formats are)
"""The i-quants of fewer than two bits: ternary patterns, shifted by an eighth up or down.

A weight is d · (2 scale + 1) · (pattern ± 1/8). The signs of weights are in the patterns.

Letters: R rows, C columns, B = C / 256 super-blocks along a row.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_iq1_s, block_iq1_m), and pull requests
5999 and 6302, which introduced them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.bits import digits, from_digits, from_halves, from_words, halves, words
from bitquilt.qtypes.ggml import blocks_of
from bitquilt.qtypes.iquants import Codebook
from bitquilt.qtypes.qtype import Packed, Unpacked, register

TRIPLE_SHIFTS = (0, 3, 6, 9)
"""Where a 16-bit word keeps four numbers of three bits."""
D_SHIFTS = (0, 4, 8, 12)
"""Where the number that IQ1_M keeps in four words has its quarters."""


class ShiftedCodebook(Codebook):
    """Codes have twelve bits: eleven choose a ternary pattern, and the highest shifts it down.

    Fields: ``codes`` int16 [R, C / 8], ``scales`` uint8 0 … 7, ``d`` float32 [R, B].
    """

    signed = False
    even_signs = False
    top_scale = 7

    def magnitudes(self) -> Tensor:
        """Return what patterns are made of before they are shifted, times eight."""
        return torch.tensor([-8.0, 0.0, 8.0])


class IQ1_S(ShiftedCodebook):
    """1.5625 bits, scales and shifts of 32: d(2) qs(32) qh(8 × 2)."""

    # qs[i]       the low eight bits of code[i], weights 8 i … 8 i + 7
    #
    # qh[j]       15         14 … 12     11 … 9       8 … 6        5 … 3        2 … 0
    #             shift[j]   scale[j]    code[4j+3]   code[4j+2]   code[4j+1]   code[4j]
    #
    # Of a code qh has bits 8 … 10; bit 11 is the shift, one for four codes.

    name = "IQ1_S"
    parts = 2
    sections: ClassVar = {"d": 2, "qs": 32, "qh": 16}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 4095, ``scales`` [R, C / 32]; see :class:`ShiftedCodebook`."""
        s = self.split(packed)
        word = words(s["qh"], 2)
        # [R, B, 32] -> [R, B, 8, 4]
        low, shifts = torch.unflatten(s["qs"], 2, (8, 4)), (word >> 15).unsqueeze(-1)
        codes = low | _triples(word) << 8 | shifts << 11
        return {
            "codes": codes.to(torch.int16).flatten(1),
            "scales": (word >> 12 & 7).to(torch.uint8).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        # [R, C / 8] -> [R, B, 8, 4]
        codes = torch.unflatten(fields["codes"].long(), 1, (-1, 8, 4))
        scales, shifts = blocks_of(fields["scales"].long(), 8), codes[..., 0] >> 11
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qs=(codes & 255).to(torch.uint8).flatten(2),
            qh=from_words(_from_triples(codes >> 8 & 7) | scales << 12 | shifts << 15, 2),
        )


class IQ1_M(ShiftedCodebook):
    """1.75 bits, scales of 16, shifts of 8: qs(32) qh(16) scales(4 × 2)."""

    # qs[i]       the low eight bits of code[i], weights 8 i … 8 i + 7
    #
    # qh[j]       7 … 4        3 … 0        high four bits of the codes, the first of them the shift
    #             code[2j+1]   code[2j]
    #
    # scales[k]   15 … 12             11 … 9        8 … 6         5 … 3         2 … 0
    #             d, bit 4k … 4k+3    scale[4k+3]   scale[4k+2]   scale[4k+1]   scale[4k]

    name = "IQ1_M"
    sub_block = 16
    sections: ClassVar = {"qs": 32, "qh": 16, "scales": 8}
    half_sections = ()

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 4095, ``scales`` [R, C / 16]; see :class:`ShiftedCodebook`."""
        s = self.split(packed)
        word = words(s["scales"], 2)
        # [R, B, 4] -> [R, B, 1]
        d = (word >> 12 << torch.tensor(D_SHIFTS, device=word.device)).sum(-1, keepdim=True)
        codes = s["qs"].to(torch.int16) | digits(s["qh"], 4).to(torch.int16) << 8
        return {
            "codes": codes.flatten(1),
            "scales": _triples(word).to(torch.uint8).flatten(1),
            "d": halves(from_words(d, 2)).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = blocks_of(fields["codes"], 32)
        # [R, C / 16] -> [R, B, 4, 4]
        scales = torch.unflatten(fields["scales"].long(), 1, (-1, 4, 4))
        d = words(from_halves(blocks_of(fields["d"], 1)), 2)
        quarters = d >> torch.tensor(D_SHIFTS, device=d.device) & 15
        return self.join(
            qs=(codes & 255).to(torch.uint8),
            qh=from_digits((codes >> 8).to(torch.uint8), 4),
            scales=from_words(_from_triples(scales) | quarters << 12, 2),
        )


def _triples(word: Tensor) -> Tensor:
    """Read four numbers of three bits from each word: int64 [..., n] to [..., n, 4]."""
    return word.unsqueeze(-1) >> torch.tensor(TRIPLE_SHIFTS, device=word.device) & 7


def _from_triples(numbers: Tensor) -> Tensor:
    """Undo :func:`_triples`."""
    return (numbers << torch.tensor(TRIPLE_SHIFTS, device=numbers.device)).sum(-1)


for qtype in (IQ1_S(), IQ1_M()):
    register(qtype)

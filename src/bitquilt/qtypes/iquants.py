# ruff: noqa: N801 (classes are named as the formats are)
"""The i-quants with a codebook: 8 or 4 weights share one index into a table of patterns.

A weight is d · (scale) · pattern · sign. The patterns hold magnitudes; the signs are kept apart.
Those of fewer than two bits are in :mod:`bitquilt.qtypes.iq1`. The 4-bit ones, IQ4_NL and IQ4_XS,
have no codebook: they are in :mod:`bitquilt.qtypes.iq4`.

Letters: R rows, C columns, B = C / 256 super-blocks along a row.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_iq2_xxs … block_iq3_s). The codebooks
come from the gguf package, which carries them compactly.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
from gguf import quants
from torch import Tensor

from bitquilt.qtypes.bits import (
    digits,
    from_digits,
    from_halves,
    from_words,
    halves,
    words,
)
from bitquilt.qtypes.ggml import SUPER_BLOCK, GgmlQuantType, blocks_of, times
from bitquilt.qtypes.qtype import LevelMap, Packed, Unpacked, register

SIGN_SHIFTS = (0, 7, 14, 21)
"""Where a 32-bit word keeps the signs of its 4 × 8 weights; their scale is in bits 28 … 31."""


@cache
def codebook(name: str) -> Tensor:
    """Return the patterns of an i-quant, float32 [patterns, weights in a pattern].

    Those of IQ1 come times eight, all of them shifted up and then all shifted down.
    """
    format_ = getattr(quants, name)
    format_.init_grid()
    grid = torch.from_numpy(format_.grid[0, 0])
    return torch.cat([8 * grid + 1, 8 * grid - 1]) if name.startswith("IQ1") else grid


@cache
def _even_signs() -> Tensor:
    """Sign masks of 8 weights from 7 bits: the eighth bit makes the number of minuses even."""
    return torch.tensor([i | (i.bit_count() & 1) << 7 for i in range(128)], dtype=torch.uint8)


def _expand_signs(indices: Tensor) -> Tensor:
    return _even_signs().to(indices.device)[indices]


class Codebook(GgmlQuantType):
    """A type with levels d · step(scale) · pattern · sign.

    Fields: ``codes`` int16 [R, C / 8] (IQ2) or [R, C / 4] (IQ3), indices into the codebook;
    ``signs`` uint8 [R, C / 8], bit k set where weight k of the eight is negative; ``scales`` uint8
    0 … 15 [R, C / 32] (or C / 16: see the format); ``d`` float32 [R, B]. The XXS and XS formats
    store 7 bits of each sign mask: the number of negative weights must be even there.
    """

    block = SUPER_BLOCK
    sub_block: ClassVar = 32
    """Weights that share a scale."""
    even_signs: ClassVar = True
    """Whether the minuses among eight weights must be even in number."""
    signed: ClassVar = True
    """Whether signs are kept apart from the patterns."""
    parts: ClassVar = 1
    """Equal parts of the codebook; all patterns under one scale are of one part."""
    top_scale: ClassVar = 15
    """The largest scale that is stored."""
    unit: ClassVar = 0.125
    """A step is d · unit · (2 scale + 1)."""

    def steps(self, fields: Unpacked) -> Tensor:
        """Return what each scale multiplies its patterns by, float32 of the shape of ``scales``."""
        return times(2.0 * fields["scales"] + 1.0, fields["d"]) * self.unit

    def part_taken(self, fields: Unpacked) -> Tensor:
        """Return the part of the codebook that patterns are of, float32 [R, scales of a row]."""
        vectors = self.sub_block // codebook(self.name).shape[1]
        size = len(codebook(self.name)) // self.parts
        return (fields["codes"][:, ::vectors] // size).float()

    def magnitudes(self) -> Tensor:
        """Return what patterns are made of, float32, the smallest first."""
        found: Tensor = codebook(self.name).unique()
        return found

    def decode(self, fields: Unpacked) -> Tensor:
        patterns = codebook(self.name).to(fields["codes"].device)[fields["codes"].int()].flatten(1)
        levels = LevelMap(self.steps(fields), None).of(patterns)
        if not self.signed:
            return levels
        # Masks [R, C / 8] -> bits [R, C], 1 for minus.
        return levels * (1.0 - 2.0 * digits(fields["signs"], 1).float())


class IQ2_XXS(Codebook):
    """2.0625 bits, scales of 32: d(2), then for each 32 weights two 32-bit words (8 × 8)."""

    # word 0      four codes of 8 bits
    #
    # word 1      31 … 28   27 … 21    20 … 14    13 … 7     6 … 0
    #             scale     signs[3]   signs[2]   signs[1]   signs[0]

    name = "IQ2_XXS"
    sections: ClassVar = {"d": 2, "qs": 64}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 255, ``scales`` [R, C / 32]; see :class:`Codebook`."""
        s = self.split(packed)
        # [R, B, 64] -> [R, B, 8 runs of 32 weights, 8 bytes]
        runs = torch.unflatten(s["qs"], 2, (8, 8))
        signs, scales = _signs_and_scale(runs[..., 4:])
        return {
            "codes": runs[..., :4].to(torch.int16).flatten(1),
            "signs": signs,
            "scales": scales,
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = torch.unflatten(fields["codes"].to(torch.uint8), 1, (-1, 8, 4))
        runs = torch.cat([codes, _from_signs_and_scale(fields["signs"], fields["scales"])], dim=-1)
        return self.join(d=from_halves(blocks_of(fields["d"], 1)), qs=runs.flatten(2))


def _signs_and_scale(octets: Tensor) -> tuple[Tensor, Tensor]:
    """Words [R, B, 8, 4 bytes] to sign masks uint8 [R, C / 8] and scales uint8 [R, C / 32]."""
    # [R, B, 8, 1]; the four shifts take the last axis
    word = words(octets, 4)
    indices = word >> torch.tensor(SIGN_SHIFTS, device=word.device) & 127
    return _expand_signs(indices).flatten(1), (word >> 28).to(torch.uint8).flatten(1)


def _from_signs_and_scale(signs: Tensor, scales: Tensor) -> Tensor:
    """Undo :func:`_signs_and_scale`: bytes [R, B, 8, 4]."""
    indices = torch.unflatten(signs.long() & 127, 1, (-1, 8, 4))
    word = (indices << torch.tensor(SIGN_SHIFTS, device=signs.device)).sum(-1, keepdim=True)
    return from_words(word | torch.unflatten(scales.long(), 1, (-1, 8, 1)) << 28, 4)


class IQ2_XS(Codebook):
    """2.3125 bits, scales of 16: d(2) qs(32 × 2) scales(8)."""

    # qs[i]       15 … 9     8 … 0          weights 8 i … 8 i + 7
    #             signs[i]   code[i]
    #
    # scales[j]   7 6 5 4        3 2 1 0
    #             scale[2j+1]    scale[2j]

    name = "IQ2_XS"
    sub_block: ClassVar = 16
    sections: ClassVar = {"d": 2, "qs": 64, "scales": 8}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 511, ``scales`` [R, C / 16]; see :class:`Codebook`."""
        s = self.split(packed)
        word = words(s["qs"], 2).flatten(1)
        return {
            "codes": (word & 511).to(torch.int16),
            "signs": _expand_signs(word >> 9),
            "scales": digits(s["scales"], 4).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        word = fields["codes"].long() | (fields["signs"].long() & 127) << 9
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qs=from_words(blocks_of(word, 32), 2),
            scales=from_digits(blocks_of(fields["scales"], 16), 4),
        )


class IQ2_S(Codebook):
    """2.5625 bits, scales of 16: d(2) qs(32) signs(32) qh(8) scales(8)."""

    # qs[i]       the low eight bits of code[i], weights 8 i … 8 i + 7
    #
    # signs[i]    bit k: weight 8 i + k is negative
    #
    # qh[j]       7 6          5 4          3 2          1 0          high two bits of the codes
    #             code[4j+3]   code[4j+2]   code[4j+1]   code[4j]
    #
    # scales[j]   7 6 5 4        3 2 1 0
    #             scale[2j+1]    scale[2j]

    name = "IQ2_S"
    sub_block: ClassVar = 16
    even_signs: ClassVar = False
    sections: ClassVar = {"d": 2, "qs": 32, "signs": 32, "qh": 8, "scales": 8}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 1023, ``scales`` [R, C / 16]; see :class:`Codebook`."""
        s = self.split(packed)
        codes = s["qs"].to(torch.int16) | digits(s["qh"], 2).to(torch.int16) << 8
        return {
            "codes": codes.flatten(1),
            "signs": s["signs"].flatten(1),
            "scales": digits(s["scales"], 4).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = blocks_of(fields["codes"], 32)
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qs=(codes & 255).to(torch.uint8),
            signs=blocks_of(fields["signs"], 32),
            qh=from_digits((codes >> 8).to(torch.uint8), 2),
            scales=from_digits(blocks_of(fields["scales"], 16), 4),
        )


class IQ3_XXS(Codebook):
    """3.0625 bits, scales of 32: d(2) qs(64) words(8 × 4)."""

    # qs[i]       code[i], weights 4 i … 4 i + 3
    #
    # words[j]    signs and scale of weights 32 j … 32 j + 31, as IQ2_XXS's word 1

    name = "IQ3_XXS"
    unit: ClassVar = 0.25
    sections: ClassVar = {"d": 2, "qs": 64, "words": 32}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 255, ``scales`` [R, C / 32]; see :class:`Codebook`."""
        s = self.split(packed)
        signs, scales = _signs_and_scale(torch.unflatten(s["words"], 2, (8, 4)))
        return {
            "codes": s["qs"].to(torch.int16).flatten(1),
            "signs": signs,
            "scales": scales,
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qs=blocks_of(fields["codes"], 64).to(torch.uint8),
            words=_from_signs_and_scale(fields["signs"], fields["scales"]).flatten(2),
        )


class IQ3_S(Codebook):
    """3.4375 bits, scales of 32: d(2) qs(64) qh(8) signs(32) scales(4)."""

    # qs[i]            the low eight bits of code[i], weights 4 i … 4 i + 3
    #
    # qh[j], bit k     the ninth bit of code[8 j + k]
    #
    # signs[i]         bit k: weight 8 i + k is negative
    #
    # scales[j]        7 6 5 4        3 2 1 0
    #                  scale[2j+1]    scale[2j]

    name = "IQ3_S"
    even_signs: ClassVar = False
    unit: ClassVar = 1.0
    sections: ClassVar = {"d": 2, "qs": 64, "qh": 8, "signs": 32, "scales": 4}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` 0 … 511, ``scales`` [R, C / 32]; see :class:`Codebook`."""
        s = self.split(packed)
        codes = s["qs"].to(torch.int16) | digits(s["qh"], 1).to(torch.int16) << 8
        return {
            "codes": codes.flatten(1),
            "signs": s["signs"].flatten(1),
            "scales": digits(s["scales"], 4).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = blocks_of(fields["codes"], 64)
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qs=(codes & 255).to(torch.uint8),
            qh=from_digits((codes >> 8).to(torch.uint8), 1),
            signs=blocks_of(fields["signs"], 32),
            scales=from_digits(blocks_of(fields["scales"], 8), 4),
        )


for qtype in (IQ2_XXS(), IQ2_XS(), IQ2_S(), IQ3_XXS(), IQ3_S()):
    register(qtype)

"""Quantization types: how one matrix is stored, byte for byte. Look them up here by name.

In: codes and scales, as fits and rounding choose them. Out: the bytes of a file, and back.

    kquants.py      Q2_K Q3_K Q4_K Q5_K Q6_K        super-blocks of 256
    iquants.py      IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S   codebooks of patterns
    iq1.py          IQ1_S IQ1_M                     ternary ones, shifted by an eighth
    iq4.py          IQ4_NL IQ4_XS                   16 uneven levels
    blocks32.py     Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0   blocks of 32; of 64 in Q2_0
    mlx_affine.py   2bit-g32 … 8bit-g128            MLX's groups with scale and bias
    mxfp4.py        mxfp4 MXFP4                     four-bit floats, as MLX and ggml store them
    mxfp8.py        mxfp8                           eight-bit floats, as MLX stores them
    nvfp4.py        nvfp4 NVFP4                     those under an eight-bit float
    floats.py       BF16 F32

To add a quantization type (docs/add-a-quantization-type.md has each step at length):

1. Write its class in the module of its family: name, targets, block, block_bits, ``unpack`` and
   ``pack``, and ``levels`` (or ``decode``); register an instance. Import a new module below.
2. Write the fit of its scales in :mod:`bitquilt.rounding.fits`.
3. Teach the target its number (GGUF) or its entry in ``config.json`` (MLX), if it is new there.
4. Add it to the tables of tests/qtypes and tests/rounding/fits, which compare with ggml and mlx.

A type's module registers it when it is imported. This package imports them all, in the order in
which types of equal cost are listed.
"""

from __future__ import annotations

from bitquilt.errors import UserError
from bitquilt.qtypes import (  # noqa: F401
    blocks32,
    floats,
    iq1,
    iq4,
    iquants,
    kquants,
    mlx_affine,
    mxfp4,
    mxfp8,
    nvfp4,
    ternary,
)
from bitquilt.qtypes.qtype import QuantType, registered
from bitquilt.runtime.near import did_you_mean

__all__ = ["for_width", "get", "names"]


def get(name: str) -> QuantType:
    """Return the type of that name.

    Raises:
        UserError: no type has the name; the error suggests the nearest one and lists all.
    """
    qtypes = registered()
    if name in qtypes:
        return qtypes[name]
    near = did_you_mean(name, qtypes)
    raise UserError(
        f"there is no type {name!r}{near}{' The' if near else '; the'} types are "
        f"{', '.join(names())}"
    )


def names(target: str | None = None) -> list[str]:
    """List the names of the types that a file format (``gguf``, ``mlx``) can hold, by bits.

    Args:
        target: the file format; None lists the types of all.
    """
    return [qtype.name for qtype in _by_bits() if target is None or target in qtype.targets]


def for_width(columns: int, target: str) -> list[QuantType]:
    """List the types of a file format that can store rows of that length, by bits."""
    return [qtype for qtype in _by_bits() if target in qtype.targets and qtype.fits(columns)]


def _by_bits() -> list[QuantType]:
    return sorted(registered().values(), key=lambda qtype: qtype.bits)

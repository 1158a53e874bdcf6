"""llama.cpp's mixes: which types its ``llama-quantize`` gives which kinds of matrices.

The rules are those of ``llama_tensor_get_type`` in its ``src/llama-quant.cpp``, with an importance
matrix. :mod:`.presets` applies them to models that bitquilt reads, :mod:`bitquilt.streaming` to
any GGUF file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """What the rules depend on: which block, of how many, how much keys and values are shared."""

    layer: int
    layers: int
    sharing: int
    """Query heads per key and value head."""


Where = Callable[[Block], bool]


def everywhere(block: Block) -> bool:
    """Accept every block."""
    return True


def first(count: int) -> Where:
    """Return a test for the first ``count`` blocks."""
    return lambda block: block.layer < count


def first_part(parts: int) -> Where:
    """Return a test for the first 1/parts of the blocks, rounded down."""
    return lambda block: block.layer < block.layers // parts


def widely_shared(block: Block) -> bool:
    """Accept a block where four or more query heads share a key and value head: v is small."""
    return block.sharing >= 4


def more_bits(block: Block) -> bool:
    """Accept the first and the last eighth of the blocks, and every third one between them."""
    eighth = block.layers // 8
    inside = block.layer - eighth
    return inside < 0 or block.layer >= 7 * block.layers // 8 or inside % 3 == 2


@dataclass(frozen=True)
class PresetRule:
    """One of llama.cpp's presets: a type, and exceptions of which the first that applies wins."""

    base: str
    exceptions: tuple[tuple[str, Where, str], ...] = ()
    """Each is a kind of matrix, the blocks that it holds for, and the type."""


ATTN_V, ATTN_QKV, ATTN_OUT, FFN_DOWN = "attn_v", "attn_qkv", "attn_output", "ffn_down"
"""Kinds of matrices that the rules tell apart, by their names in GGUF files."""

LLAMA_CPP: dict[str, PresetRule] = {
    "Q2_K": PresetRule(
        "Q2_K",
        (
            (ATTN_V, widely_shared, "Q4_K"),
            (ATTN_V, everywhere, "Q3_K"),
            (ATTN_OUT, everywhere, "Q3_K"),
            (FFN_DOWN, everywhere, "Q3_K"),
        ),
    ),
    "Q3_K_S": PresetRule("Q3_K"),
    "Q3_K_M": PresetRule(
        "Q3_K",
        (
            (ATTN_V, first(2), "Q5_K"),
            (ATTN_V, everywhere, "Q4_K"),
            (ATTN_OUT, everywhere, "Q4_K"),
            (FFN_DOWN, first_part(16), "Q5_K"),
            (FFN_DOWN, everywhere, "Q4_K"),
        ),
    ),
    "Q3_K_L": PresetRule(
        "Q3_K",
        (
            (ATTN_V, everywhere, "Q5_K"),
            (ATTN_OUT, everywhere, "Q5_K"),
            (FFN_DOWN, everywhere, "Q5_K"),
        ),
    ),
    "IQ4_XS": PresetRule("IQ4_XS", ((ATTN_V, widely_shared, "Q5_K"),)),
    "Q4_0": PresetRule("Q4_0", ((FFN_DOWN, first_part(8), "Q4_1"),)),
    "IQ4_NL": PresetRule("IQ4_NL", ((ATTN_V, widely_shared, "Q5_K"),)),
    "Q4_K_S": PresetRule("Q4_K", ((ATTN_V, first(4), "Q5_K"), (FFN_DOWN, first_part(8), "Q5_K"))),
    "Q4_K_M": PresetRule("Q4_K", ((ATTN_V, more_bits, "Q6_K"), (FFN_DOWN, more_bits, "Q6_K"))),
    "Q5_K_S": PresetRule("Q5_K"),
    "Q5_K_M": PresetRule("Q5_K", ((ATTN_V, more_bits, "Q6_K"), (FFN_DOWN, more_bits, "Q6_K"))),
    "Q6_K": PresetRule("Q6_K"),
    "Q8_0": PresetRule("Q8_0"),
}

FALLBACK = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""Block of 256 → block of 32, for rows that 256 does not divide (``tensor_type_fallback``)."""

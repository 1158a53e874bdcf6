"""What a GGUF source lends to the file made from it: its header, and its RoPE factors."""

from __future__ import annotations

from pathlib import Path

from bitquilt.gguf.container import Metadata, encode, read_pairs
from bitquilt.gguf.dequantize import dequantize
from bitquilt.gguf.file_type import without_file_facts
from bitquilt.gguf.header import read_header
from bitquilt.gguf.rope import ROPE_FREQS, RopeFactors
from bitquilt.gguf.tokenizer import adds_bos


def kept_metadata(source: Path) -> Metadata:
    """Every pair of the source's header that still holds, byte for byte.

    Whether a start token is added, which some files leave to their reader, is written out.

    Raises:
        UserError: the source is damaged.
    """
    header = read_header(source)
    kept = without_file_facts(read_pairs(source, header.container))
    if "tokenizer.ggml.tokens" in kept:  # engines differ in what they take an absent one for
        kept.setdefault("tokenizer.ggml.add_bos_token", encode(adds_bos(header)))
    return kept


def source_rope_factors(source: Path) -> RopeFactors | None:
    """The source's frequency divisors, float32 [head_dim / 2], if it has them."""
    tensor = read_header(source).tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    factors: RopeFactors = dequantize(source, tensor).numpy()
    return factors

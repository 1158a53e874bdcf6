"""Both libraries give the same bytes, and gguf-py decodes them to the same numbers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from bitquilt.errors import UserError
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.streaming import ggml
from bitquilt.streaming.mix import NARROW_TYPES, WIDE_TYPES

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 512)).astype(np.float32)
IMPORTANCE = np.exp(RNG.standard_normal(512)).astype(np.float32)


@pytest.mark.parametrize("kind", sorted({*WIDE_TYPES, *NARROW_TYPES}), ids=lambda kind: kind.name)
@pytest.mark.parametrize("importance", [IMPORTANCE, None], ids=["weighted", "plain"])
def test_rows_are_rounded_as_libgguf_does(kind, importance) -> None:
    ggml.prepare(kind)
    rounded = ggml.quantize_rows(kind, WEIGHT, importance)
    other = ggml.InLibgguf()
    theirs, decoded = np.empty_like(rounded), np.empty_like(WEIGHT)
    needed = np.ones(512, np.float32) if importance is None and "IQ" in kind.name else importance
    other.quantize(kind, WEIGHT, theirs, needed)
    if importance is not None or kind.name in ("IQ2_XXS", "IQ1_M") or "IQ" not in kind.name:
        np.testing.assert_array_equal(rounded, theirs)
    other.dequantize(kind, rounded, decoded)
    ours = ggml.dequantize_rows(kind, rounded, 512)
    np.testing.assert_array_equal(ours, decoded)
    np.testing.assert_array_equal(ours, gguf.dequantize(rounded, kind))
    assert np.square(ours - WEIGHT).mean() < 0.5


@pytest.mark.parametrize("kind", ggml.PLAIN_KINDS, ids=lambda kind: kind.name)
def test_plain_numbers_are_gguf_pys(kind) -> None:
    numbers = np.concatenate([WEIGHT, WEIGHT * 1e-30, WEIGHT * 1e4])
    rounded = ggml.quantize_rows(kind, numbers, None)
    theirs = gguf.quantize(numbers, kind).view(np.uint8)
    np.testing.assert_array_equal(rounded, theirs)
    np.testing.assert_array_equal(
        ggml.dequantize_rows(kind, rounded, 512), gguf.dequantize(theirs, kind)
    )


def test_a_type_that_libgguf_lacks_is_said() -> None:
    stored = np.empty((6, 144), np.uint8)
    with pytest.raises(UserError, match="has no Q2_0; leave Q2_0 out of the recipe"):
        ggml.InLibgguf().quantize(GgmlType.Q2_0, WEIGHT, stored, None)
    assert ggml.quantize_rows(GgmlType.Q2_0, WEIGHT, None).shape == stored.shape

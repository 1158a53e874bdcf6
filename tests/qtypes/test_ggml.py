"""GGUF types against ggml's own bytes and gguf-py's dequantization, or ggml's where it has none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import qtypes
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType
from bitquilt.qtypes.ggml import GgmlQuantType
from tests.ggml import ggml_dequantizes, ggml_quantizes

QTYPES = [
    qtype for name in qtypes.names("gguf") if isinstance(qtype := qtypes.get(name), GgmlQuantType)
]
every_qtype = pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)

# Bytes in a block, from ggml's documentation of its formats: name → (bytes, weights).
COSTS = {
    "Q2_K": (84, 256), "Q3_K": (110, 256), "Q4_K": (144, 256), "Q5_K": (176, 256),
    "Q6_K": (210, 256), "IQ4_XS": (136, 256), "IQ3_S": (110, 256), "IQ3_XXS": (98, 256),
    "IQ2_S": (82, 256), "IQ2_XS": (74, 256), "IQ2_XXS": (66, 256), "Q4_0": (18, 32),
    "Q4_1": (20, 32), "Q5_0": (22, 32), "Q5_1": (24, 32), "IQ4_NL": (18, 32), "Q8_0": (34, 32),
    "Q2_0": (18, 64), "MXFP4": (17, 32), "NVFP4": (36, 64), "TQ1_0": (54, 256),
    "TQ2_0": (66, 256), "IQ1_S": (50, 256), "IQ1_M": (56, 256),
}  # fmt: skip


def awkward_matrix(columns: int) -> torch.Tensor:
    """Rows of every kind that trips quantizers: zeros, constants, tiny, large, outliers."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, columns, generator=generator)
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] *= 1e-30
    weight[4] *= 1e-6
    weight[5] *= 1e4
    weight[6] = weight[6].abs()
    weight[7] = -weight[7].abs()
    weight[8, 5] = 60.0
    weight[9, : columns // 2] = 0
    weight[10] = torch.where(torch.rand(columns, generator=generator) < 0.05, weight[10], 0)
    return weight


def some_importance(columns: int) -> torch.Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(2)) ** 2 + 0.01


def test_every_format_is_here() -> None:
    assert {qtype.name for qtype in QTYPES} == set(COSTS)


@every_qtype
def test_costs(qtype: GgmlQuantType) -> None:
    size, block = COSTS[qtype.name]
    assert (qtype.block_bits, qtype.block) == (8 * size, block)
    assert qtype.nbytes(3, 512) == 3 * 512 // block * size
    assert GGML_BLOCKS[GgmlType[qtype.name]] == (block, size)


@every_qtype
def test_unpacks_and_packs_what_ggml_made(qtype: GgmlQuantType) -> None:
    made = ggml_quantizes(qtype.name, awkward_matrix(512).numpy(), some_importance(512).numpy())
    packed = {"data": torch.from_numpy(made)}
    assert packed["data"].numel() == qtype.nbytes(12, 512)
    assert qtype.dequantize(packed).isfinite().all()
    assert np.array_equal(qtype.dequantize(packed).numpy(), ggml_dequantizes(qtype.name, made))
    assert torch.equal(qtype.pack(qtype.unpack(packed))["data"], packed["data"])


@every_qtype
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 3), blocks=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_bytes_survive_and_decode_as_in_ggml(
    qtype: GgmlQuantType, seed: int, rows: int, blocks: int
) -> None:
    """Every bit pattern, not only those that ggml writes; equality is exact, not within an ulp."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, blocks * qtype.block_bits // 8)
    noise = {"data": torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
    sections = {name: part.clone() for name, part in qtype.split(noise).items()}
    for name in qtype.half_sections:
        sections[name][..., 1] &= 0xBF  # exponent below 16: no infinity, no NaN
    if qtype.name == "IQ1_M":  # the top of its scale is in the last of the words
        sections["scales"][..., 7] &= 0xBF
    if "e" in sections:
        sections["e"].clamp_(max=252)  # the largest of which every level is a float32
    packed = qtype.join(**sections)
    kept = qtype.pack(qtype.unpack(packed))
    if qtype.name == "TQ1_0":  # has two bytes for some numbers, of which ggml writes one
        assert torch.equal(qtype.pack(qtype.unpack(kept))["data"], kept["data"])
        packed = kept if seed % 2 else packed
    else:
        assert torch.equal(kept["data"], packed["data"])
    assert np.array_equal(
        qtype.dequantize(packed).numpy(), ggml_dequantizes(qtype.name, packed["data"].numpy())
    )

"""MLX types against mx.quantize and mx.dequantize, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt import qtypes
from bitquilt.qtypes.mlx_affine import AFFINE_BITS, Affine
from bitquilt.qtypes.qtype import Packed, QuantType
from bitquilt.runtime.bit_stream import from_stream, to_stream

mx = pytest.importorskip("mlx.core")

AFFINE = [qtype for name in qtypes.names("mlx") if isinstance(qtype := qtypes.get(name), Affine)]
FLOATS = [qtypes.get(name) for name in ("mxfp4", "nvfp4", "mxfp8")]
every_qtype = pytest.mark.parametrize("qtype", [*AFFINE, *FLOATS], ids=lambda qtype: qtype.name)


def awkward_matrix(seed: int = 0, columns: int = 256) -> torch.Tensor:
    """Rows of every kind that trips quantizers, over the magnitudes that bfloat16 keeps apart."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(14, columns, generator=generator)
    weight *= torch.logspace(-6, 3, 14).unsqueeze(1)
    weight[0] = 0
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] = weight[3].abs()
    weight[4] = -weight[4].abs()
    weight[5, 7] = 60.0
    weight[6, : columns // 2] = 0
    weight[7] = torch.round(weight[7] * 4) / 4  # exact ties between levels
    weight[8] = 1.0 + weight[8].abs() * 1e-3  # zero far outside the range
    return weight


def mode(qtype: QuantType) -> dict[str, object]:
    if isinstance(qtype, Affine):
        return {"group_size": qtype.block, "bits": qtype.width}
    return {
        "group_size": qtype.block,
        "bits": 8 if qtype.name == "mxfp8" else 4,
        "mode": qtype.name,
    }


def mlx_rounds(qtype: QuantType, weight: torch.Tensor) -> Packed:
    """What stock mlx makes of the matrix in bfloat16."""
    with mx.stream(mx.cpu):
        parts = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), **mode(qtype))
        wide = [p.astype(mx.float32) if p.dtype == mx.bfloat16 else p for p in parts]
    packed = {
        name: torch.from_numpy(np.array(part))
        for name, part in zip(("weight", "scales", "biases"), wide, strict=False)
    }
    halves = {name: part.bfloat16() for name, part in packed.items() if part.is_floating_point()}
    return packed | halves


def as_numpy(packed: Packed) -> dict[str, np.ndarray]:
    return {
        name: (part.float() if part.dtype == torch.bfloat16 else part).numpy()
        for name, part in packed.items()
    }


def mlx_dequantizes(qtype: QuantType, packed: Packed) -> np.ndarray:
    with mx.stream(mx.cpu):
        parts = [mx.array(part) for part in as_numpy(packed).values()]
        return np.array(mx.dequantize(*parts, dtype=mx.float32, **mode(qtype)))


def test_every_pair_of_bits_and_group_is_here() -> None:
    expected = {f"{bits}bit-g{group}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)}
    assert {qtype.name for qtype in AFFINE} == expected
    assert qtypes.get("4bit-g64").bits == 4.5
    assert qtypes.get("3bit-g128").bits == 3.25
    assert [qtype.bits for qtype in FLOATS] == [4.25, 4.5, 8.25]


@every_qtype
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-5, 0.02, 1.0, 300.0]))
@settings(max_examples=5, deadline=None)
def test_holds_what_mlx_makes_bit_for_bit(qtype: QuantType, seed: int, scale: float) -> None:
    packed = mlx_rounds(qtype, awkward_matrix(seed) * scale)
    assert sum(part.nbytes for part in packed.values()) == qtype.nbytes(14, 256)
    decoded = qtype.dequantize(packed)
    assert decoded.isfinite().all()
    assert np.array_equal(decoded.numpy(), mlx_dequantizes(qtype, packed))
    again = qtype.pack(qtype.unpack(packed))
    assert all(torch.equal(again[name], part) for name, part in packed.items())


@pytest.mark.parametrize("width", AFFINE_BITS)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 3), eights=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_streams_hold_their_codes_low_bits_first(
    width: int, seed: int, rows: int, eights: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << width, (rows, 32 * eights), generator=generator, dtype=torch.uint8)
    words = to_stream(codes, width)
    assert torch.equal(from_stream(words, width), codes)
    # Independent: each row read as one big integer.
    for row, stored in zip(codes.tolist(), words.numpy(), strict=True):
        expected = sum(code << width * i for i, code in enumerate(row))
        assert int.from_bytes(stored.tobytes(), "little") == expected

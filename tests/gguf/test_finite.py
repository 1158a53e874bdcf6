"""Scales that are no numbers are found where gguf-py's decoder finds them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from bitquilt.engines.weights import require_finite_weights
from bitquilt.errors import UserError
from bitquilt.gguf.container import TensorInfo, encode_header
from bitquilt.gguf.dequantize import decoded as decode
from bitquilt.gguf.finite import PLAIN_NUMBERS, SCALE_PLACES, broken_tensor
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType

BLOCKS = 6
TYPES = [*PLAIN_NUMBERS, *SCALE_PLACES]


def file_of(folder, qtype, data):
    block, _ = GGML_BLOCKS[qtype]
    columns = data.nbytes // 2 * block // GGML_BLOCKS[qtype][1]
    info = TensorInfo("blk.0.attn_q.weight", (2, columns), qtype, data.nbytes)
    norm = TensorInfo("output_norm.weight", (8,), GgmlType.F32, 32)
    path = folder / "model.gguf"
    header = encode_header({}, [norm, info])
    path.write_bytes(header + np.ones(8, np.float32).tobytes() + data.tobytes() + bytes(64))
    return path


@pytest.mark.parametrize("qtype", TYPES, ids=lambda qtype: qtype.name)
def test_a_number_is_found_exactly_where_it_makes_weights_that_are_none(tmp_path, qtype):
    """Every place of a block gets NaN or infinity in turn; gguf-py's decoder is asked, too."""
    random = np.random.default_rng(0)
    block, nbytes = GGML_BLOCKS[qtype]
    count = BLOCKS * max(1, 32 // block)
    sound = random.integers(0, 0x30, (2, count * nbytes), np.uint8)  # exponents below infinity's
    decoded = decode(sound, qtype)
    assert np.isfinite(decoded).all()
    assert broken_tensor(file_of(tmp_path, qtype, sound)) is None
    width = 4 if qtype.name == "F32" else 2
    wrong = {2: {"BF16": 0x7FC0}.get(qtype.name, 0x7C00), 4: 0x7F80_0001}[width]
    found = []
    for at in range(0, nbytes - width + 1, width):
        data = sound.copy()
        place = nbytes * (count - 1) + at
        data[1, place : place + width] = np.frombuffer(
            struct.pack(f"<{'HI'[width // 4]}", wrong), np.uint8
        )
        with np.errstate(all="ignore"):
            broken = not np.isfinite(decode(data, qtype)).all()
        named = broken_tensor(file_of(tmp_path, qtype, data))
        assert named == ("blk.0.attn_q.weight" if broken else None), at
        found.append(broken)
    assert any(found)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01, 0xFFFF, 0x7BFF, 0xFBFF, 0x0001, 0x3C7F])
def test_the_scale_that_iq1_m_keeps_in_four_quarters_is_put_together(tmp_path, bits):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (2, BLOCKS, 56), np.uint8)
    data[..., 55] &= 0x3F  # the other scales have exponents below infinity's
    for word in range(4):
        data[1, 3, 49 + 2 * word] = (bits >> 4 * word & 15) << 4 | 0x0A
    data = data.reshape(2, -1)
    broken = not np.isfinite(decode(data, GgmlType.IQ1_M)).all()
    assert broken == (bits & 0x7C00 == 0x7C00)
    named = broken_tensor(file_of(tmp_path, GgmlType.IQ1_M, data))
    assert named == ("blk.0.attn_q.weight" if broken else None)


@pytest.mark.parametrize("codes", [0x00, 0x91, 0x02, 0x30, 0x0B, 0x40, 0x05, 0x60, 0x0F])
def test_scales_of_mxfp4_are_too_large_for_some_codes(tmp_path, codes):
    for exponent in (127, 252, 253, 254, 255):
        data = np.full((2, BLOCKS, 17), 0x7F, np.uint8)  # the others are 2^-1 times 12 and -12
        data[1, 3], data[1, 3, 0] = 0, exponent
        data[1, 3, 5] = codes
        data = data.reshape(2, -1)
        with np.errstate(over="ignore"):
            broken = not np.isfinite(decode(data, GgmlType.MXFP4)).all()
        named = broken_tensor(file_of(tmp_path, GgmlType.MXFP4, data))
        assert named == ("blk.0.attn_q.weight" if broken else None), exponent


@pytest.mark.parametrize("scale", range(0, 256, 5))
def test_no_scale_of_nvfp4_is_infinite(tmp_path, scale):
    data = np.full((2, 36), 0x77, np.uint8)
    data[:, :4] = scale
    assert np.isfinite(decode(data, GgmlType.NVFP4)).all()
    assert broken_tensor(file_of(tmp_path, GgmlType.NVFP4, data)) is None


def test_what_is_not_gguf_is_told(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        broken_tensor(path)


def test_every_part_of_a_split_file_is_looked_at(tmp_path):
    sound, broken = np.zeros(4, np.float32), np.array([0, np.nan, 0, 0], np.float32)
    for part, numbers in ((1, sound), (2, broken)):
        file_of(tmp_path, GgmlType.F32, numbers.view(np.uint8)).rename(
            tmp_path / f"m-0000{part}-of-00002.gguf"
        )
    with pytest.raises(UserError, match="holds NaN"):
        require_finite_weights(tmp_path / "m-00001-of-00002.gguf")

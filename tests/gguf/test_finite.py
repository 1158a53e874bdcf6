"""Scales that are no numbers are found where gguf-py's decoder finds them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

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


def test_what_is_not_gguf_is_told(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(ValueError, match="does not begin with GGUF"):
        broken_tensor(path)

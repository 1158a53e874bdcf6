"""What is written of a header is what is read; whatever else a file holds is a ValueError."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.gguf.container import (
    ALIGNMENT,
    Container,
    MetadataValue,
    TensorInfo,
    aligned,
    encode,
    encode_header,
    metadata_bytes,
    read_container,
    read_pairs,
)

PREAMBLE_BYTES = 24
KINDS = gguf.GGMLQuantizationType
FLOATS = st.floats(width=32, allow_nan=False)
VALUES = st.one_of(
    st.text(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    FLOATS,
    st.lists(st.text()),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1),
    st.lists(FLOATS, min_size=1),
)
METADATA = st.dictionaries(
    st.text().filter(lambda key: key != "general.alignment"), VALUES, max_size=6
)
SHAPES = st.one_of(
    st.tuples(st.just(KINDS.F32), st.lists(st.integers(1, 9), min_size=1, max_size=3)),
    st.tuples(st.just(KINDS.Q8_0), st.tuples(st.integers(1, 9), st.sampled_from([32, 64]))),
    st.tuples(st.just(KINDS.Q4_K), st.tuples(st.integers(1, 9), st.sampled_from([256, 512]))),
)


@st.composite
def tensors(draw: st.DrawFn) -> list[TensorInfo]:
    """A tensor table."""
    names = draw(st.lists(st.text(min_size=1), unique=True, max_size=4))
    infos = []
    for name in names:
        kind, shape = draw(SHAPES)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        infos.append(TensorInfo(name, tuple(shape), kind, int(np.prod(shape)) // block * size))
    return infos


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("container") / "model.gguf"


def write(path: Path, metadata: dict[str, MetadataValue], infos: list[TensorInfo]) -> bytes:
    """Write a file whose tensors are zeros, and return its bytes."""
    pairs = {key: encode(value) for key, value in metadata.items()}
    raw = encode_header(pairs, infos) + bytes(sum(aligned(info.nbytes) for info in infos))
    path.write_bytes(raw)
    return raw


def as_read(value: MetadataValue) -> Any:
    """A float scalar comes back as the shortest decimal that rounds to it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


@given(metadata=METADATA, infos=tensors())
def test_what_is_written_is_read(
    path: Path, metadata: dict[str, MetadataValue], infos: list[TensorInfo]
) -> None:
    raw = write(path, metadata, infos)
    found = read_container(path)
    assert found.metadata == {key: as_read(value) for key, value in metadata.items()}
    assert list(found.metadata) == list(metadata)
    start = len(raw) - sum(aligned(info.nbytes) for info in infos)
    for info, (name, tensor) in zip(infos, found.tensors.items(), strict=True):
        assert (name, tensor.shape, tensor.type) == (info.name, info.shape, info.type)
        assert (tensor.nbytes, tensor.offset) == (info.nbytes, start)
        assert tensor.offset % ALIGNMENT == 0
        start += aligned(info.nbytes)


@given(metadata=METADATA, infos=tensors())
def test_pairs_are_copied_byte_for_byte(
    path: Path, metadata: dict[str, MetadataValue], infos: list[TensorInfo]
) -> None:
    raw = write(path, metadata, infos)
    pairs = read_pairs(path, read_container(path))
    assert pairs == {key: encode(value) for key, value in metadata.items()}
    assert raw.startswith(encode_header(pairs, infos))
    assert len(encode_header(pairs, [])) == aligned(PREAMBLE_BYTES + metadata_bytes(pairs))


@given(metadata=METADATA, infos=tensors().filter(bool), data=st.data())
def test_a_file_cut_anywhere_is_refused(
    path: Path, metadata: dict[str, MetadataValue], infos: list[TensorInfo], data: st.DataObject
) -> None:
    raw = write(path, metadata, infos)
    end = len(raw) - aligned(infos[-1].nbytes) + infos[-1].nbytes
    path.write_bytes(raw[: data.draw(st.integers(0, end - 1))])
    with pytest.raises(ValueError, match="it "):
        read_container(path)


@given(metadata=METADATA, infos=tensors(), data=st.data())
def test_damage_is_a_value_error(
    path: Path, metadata: dict[str, MetadataValue], infos: list[TensorInfo], data: st.DataObject
) -> None:
    raw = bytearray(write(path, metadata, infos))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(raw)
    with suppress(ValueError):
        assert isinstance(read_container(path), Container)


@pytest.mark.parametrize("alignment", [0, "32", -1.0])
def test_an_alignment_that_is_none_is_refused(path: Path, alignment: MetadataValue) -> None:
    write(path, {"general.alignment": alignment}, [])
    with pytest.raises(ValueError, match="it aligns its tensors to"):
        read_container(path)


def test_sizes_beyond_any_file_are_refused(path: Path) -> None:
    write(path, {}, [TensorInfo("t", (2**63, 2**63), KINDS.F32, 0)])
    with pytest.raises(ValueError, match="it ends within t"):
        read_container(path)


def test_arrays_within_arrays_end_somewhere(path: Path) -> None:
    nested = struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 1) * 100_000
    value = struct.pack("<I", gguf.GGUFValueType.ARRAY) + nested
    path.write_bytes(encode_header({"key": value}, []))
    with pytest.raises(ValueError, match="nests arrays too deeply"):
        read_container(path)

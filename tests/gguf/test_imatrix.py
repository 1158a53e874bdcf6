"""Importance matrices against gguf-py, libgguf, and files laid out by hand as llama.cpp does."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest

from bitquilt.errors import UserError
from bitquilt.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)

RNG = np.random.default_rng(0)
DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"


def matrix() -> ImportanceMatrix:
    """A plain matrix, and a stack of three experts of which no token reached the second."""
    sums = RNG.random((3, 8), np.float32)
    sums[1] = 0
    return ImportanceMatrix(
        entries={
            EXPERTS: ImportanceEntry(sums, np.array([700, 0, 324], np.float32)),
            DENSE: ImportanceEntry(RNG.random((1, 16), np.float32), np.array([1024], np.float32)),
        },
        datasets=("text.txt",),
        chunks=2,
        chunk_size=512,
    )


def test_both_forms_come_back(tmp_path: Path) -> None:
    before = matrix()
    write_imatrix(tmp_path / "imatrix.gguf", before)
    after = read_imatrix(tmp_path / "imatrix.gguf")
    assert list(after.entries) == [DENSE, EXPERTS]  # llama.cpp sorts them by name
    for name, entry in before.entries.items():
        np.testing.assert_array_equal(after.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(after.entries[name].counts, entry.counts)
    assert (after.datasets, after.chunks, after.chunk_size) == (("text.txt",), 2, 512)

    write_imatrix(tmp_path / "imatrix.dat", before, legacy=True)
    old = read_imatrix(tmp_path / "imatrix.dat")
    dense = old.entries[DENSE]
    np.testing.assert_allclose(dense.sums / dense.counts, before.entries[DENSE].sums / 1024, 1e-6)
    assert (old.datasets, old.chunks) == (("text.txt",), 2)


def test_gguf_has_the_keys_that_llama_quantize_asks_for(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", matrix())
    read = gguf.GGUFReader(tmp_path / "i.gguf")
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["text.txt"]
    assert fields["imatrix.chunk_count"] == 2
    assert fields["imatrix.chunk_size"] == 512
    kinds = {read.fields[f"imatrix.chunk_{key}"].types[0] for key in ("count", "size")}
    assert kinds == {gguf.GGUFValueType.UINT32}
    shapes = {tensor.name: tensor.shape.tolist() for tensor in read.tensors}
    assert shapes == {  # fastest first, as ggml_new_tensor_2d is given them
        f"{DENSE}.in_sum2": [16, 1],
        f"{DENSE}.counts": [1, 1],
        f"{EXPERTS}.in_sum2": [8, 3],
        f"{EXPERTS}.counts": [1, 3],
    }


@pytest.mark.parametrize("name", ["i.gguf", "i.dat"])
def test_libgguf_reads_the_same_means(name: str, tmp_path: Path) -> None:
    before = matrix()
    write_imatrix(tmp_path / name, before, legacy=name.endswith(".dat"))
    theirs = libgguf.load_imatrix(tmp_path / name)
    assert theirs.keys() == before.entries.keys()
    for module, entry in before.entries.items():
        counts = entry.counts[:, None]
        means = np.where(counts > 0, entry.sums / np.maximum(counts, 1), 1.0)
        np.testing.assert_allclose(theirs[module], means.ravel(), rtol=1e-6)


def test_old_files_by_hand_are_read(tmp_path: Path) -> None:
    name = DENSE.encode()
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii2f", 4, 2, 8.0, 2.0)
    path = tmp_path / "imatrix.dat"
    path.write_bytes(struct.pack("<i", 1) + entry)  # without what later versions add
    found = read_imatrix(path).entries[DENSE]
    assert (found.sums / found.counts).tolist() == [[2.0, 0.5]]
    path.write_bytes(struct.pack("<i", 1) + entry + struct.pack("<ii", 7, 5) + b"a.txt")
    assert read_imatrix(path).chunks == 7
    assert read_imatrix(path).datasets == ("a.txt",)


def test_whatever_else_a_file_holds_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "i"
    write_imatrix(path, matrix())
    whole = path.read_bytes()
    write_imatrix(tmp_path / "i.dat", matrix(), legacy=True)
    old = (tmp_path / "i.dat").read_bytes()
    cut = [part[:n] for part in (whole, old) for n in range(0, 3 * len(part) // 4, 7)]
    for content in [*cut, b"\xff" * 40, struct.pack("<i", -1)]:
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as an importance matrix"):
            read_imatrix(path)
    with pytest.raises(UserError, match=r"none\.gguf cannot be read .* No such file"):
        read_imatrix(tmp_path / "none.gguf")


def test_nan_is_named(tmp_path: Path) -> None:
    bad = ImportanceEntry(np.array([[1, np.nan]], np.float32), np.ones(1, np.float32))
    write_imatrix(tmp_path / "i.gguf", ImportanceMatrix(entries={DENSE: bad}))
    with pytest.raises(UserError, match=r"NaN or infinite importance for blk\.0\.attn_q\.weight"):
        read_imatrix(tmp_path / "i.gguf")


def test_a_model_is_not_an_importance_matrix(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"without \.in_sum2 tensors"):
        read_imatrix(tmp_path / "m.gguf")

"""What an importance matrix says of a model, and how one of another model is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitquilt.errors import UserError
from bitquilt.gguf.imatrix import ImportanceEntry, read_imatrix, write_imatrix
from bitquilt.streaming.importance import importance_of
from bitquilt.streaming.source import GgufSource
from tests.streaming.models import importance, tensors, write_model

DOWN = "blk.0.ffn_down_exps.weight"


@pytest.fixture
def source(tmp_path: Path) -> GgufSource:
    return GgufSource(write_model(tmp_path / "m.gguf", tensors()))


def test_experts_have_their_own_and_unreached_ones_the_others_mean(source) -> None:
    matrix = importance(tensors())
    found, entry = importance_of(source, matrix, "i.gguf")[DOWN], matrix.entries[DOWN]
    means = entry.sums[[0, 2]] / entry.counts[[0, 2], None]
    np.testing.assert_allclose(found.squares[[0, 2]], means, rtol=1e-5)
    np.testing.assert_allclose(found.squares[1], entry.sums.sum(0) / 1048, rtol=1e-5)
    np.testing.assert_allclose(found.shares, np.array([900, 0, 148]) / 1048, rtol=1e-6)
    assert found.unreached == 1


def test_old_files_have_experts_side_by_side(source, tmp_path: Path) -> None:
    matrix = importance(tensors())
    write_imatrix(tmp_path / "i.dat", matrix, legacy=True)
    found = importance_of(source, read_imatrix(tmp_path / "i.dat"), "i.dat")[DOWN]
    entry = matrix.entries[DOWN]
    np.testing.assert_allclose(found.squares[2], entry.sums[2] / 148, rtol=1e-5)
    np.testing.assert_array_equal(found.shares, np.full(3, np.float32(1 / 3)))


def test_the_output_matrix_reads_what_the_last_norm_makes(source) -> None:
    found = importance_of(source, importance(tensors()), "i.gguf")
    expected = tensors()["output_norm.weight"] ** 2
    np.testing.assert_allclose(found["output.weight"].squares[0], expected, rtol=1e-5)
    assert "token_embd.weight" not in found  # its rows are looked up


def test_zeros_become_little(source) -> None:
    matrix = importance(tensors())
    name = "blk.0.attn_q.weight"
    sums = matrix.entries[name].sums.copy()
    sums[0, :5] = 0
    entries = {**matrix.entries, name: ImportanceEntry(sums, matrix.entries[name].counts)}
    squares = importance_of(source, replace(matrix, entries=entries), "i.gguf")[name].squares
    assert 0 < squares[0, :5].max() < 2e-6 * squares.mean()


def test_another_models_matrix_names_the_first_tensor_that_does_not_fit(source) -> None:
    matrix = importance(tensors())
    wrong = ImportanceEntry(np.ones((1, 128), np.float32), np.ones(1, np.float32))
    entries = {**matrix.entries, "blk.0.attn_v.weight": wrong, DOWN: wrong}
    with pytest.raises(UserError, match=r"i\.gguf has 128 numbers for blk\.0\.attn_v\.weight") as e:
        importance_of(source, replace(matrix, entries=entries), "i.gguf")
    assert "256 inputs; give the importance matrix of this model" in str(e.value)
    with pytest.raises(UserError, match=r"no entry for any matrix of m\.gguf \(its first is x\)"):
        importance_of(source, replace(matrix, entries={"x": wrong}), "i.gguf")

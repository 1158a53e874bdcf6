"""Sources of any architecture: which tensors stay, parts, and damaged weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from bitquilt.errors import UserError
from bitquilt.streaming.source import GgufSource
from tests.streaming.models import ODD, WIDTH, tensors, write_model


def test_tensors_that_llama_cpp_keeps_are_kept_and_why(tmp_path: Path) -> None:
    source = GgufSource(write_model(tmp_path / "m.gguf", tensors(blocks=1)))
    assert source.kept == {
        "blk.0.attn_norm.weight": "it has one row",
        "blk.0.ssm_conv1d.weight": "llama.cpp keeps such tensors",
        "blk.0.ssm_a": "its name does not end with weight",
        "blk.0.ffn_gate_inp.weight": "llama.cpp keeps such tensors",
        "blk.0.thin.weight": "no block divides its rows of 10",
        "output_norm.weight": "it has one row",
    }
    down = source.matrices["blk.0.ffn_down_exps.weight"]
    assert (down.experts, down.rows, down.columns) == (3, WIDTH, 2 * WIDTH)
    assert source.matrices["blk.0.ssm_out.weight"].columns == ODD


def test_any_part_gives_the_whole_model(tmp_path: Path) -> None:
    weights = tensors()
    whole = GgufSource(write_model(tmp_path / "whole.gguf", weights))
    write_model(tmp_path / "m.gguf", weights, parts=3)
    for number in (1, 2, 3):
        source = GgufSource(tmp_path / f"m-0000{number}-of-00003.gguf")
        assert list(source.tensors) == list(whole.tensors)
        for matrix in source.matrices.values():
            np.testing.assert_array_equal(source.rows(matrix, 1, 4), whole.rows(matrix, 1, 4))


def test_missing_and_repeated_parts_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", tensors(), parts=3)
    second = tmp_path / "m-00002-of-00003.gguf"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match=r"3 parts .* m-00002-of-00003\.gguf is missing"):
        GgufSource(tmp_path / "m-00003-of-00003.gguf")
    second.write_bytes((tmp_path / "m-00001-of-00003.gguf").read_bytes())
    with pytest.raises(UserError, match=r"both have token_embd\.weight"):
        GgufSource(tmp_path / "m-00001-of-00003.gguf")
    (tmp_path / "mine.gguf").write_bytes(content)
    with pytest.raises(UserError, match="its name does not say which"):
        GgufSource(tmp_path / "mine.gguf")


def test_nan_is_a_sentence_not_the_end_of_the_process(tmp_path: Path) -> None:
    weights = tensors()
    weights["blk.1.attn_q.weight"][7, 3] = np.nan
    source = GgufSource(write_model(tmp_path / "m.gguf", weights))
    with pytest.raises(UserError, match=r"NaN or infinity in blk\.1\.attn_q\.weight"):
        source.rows(source.matrices["blk.1.attn_q.weight"], 0, 8)


def test_quantized_sources_are_decoded(tmp_path: Path) -> None:
    weight = tensors()["blk.0.attn_q.weight"]
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "madeup")
    writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "m.gguf")
    expected = gguf.dequantize(gguf.quantize(weight, kind), kind)
    found = source.rows(source.matrices["blk.0.attn_q.weight"], 3, 10)
    np.testing.assert_array_equal(found, expected[3:13])

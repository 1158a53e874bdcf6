"""A header without numbers: the converter gives the bytes that it would have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitquilt import UserError
from bitquilt.bases import converter, served_base
from bitquilt.bases.base_file import BaseMatrices
from bitquilt.bases.converter import ConverterError, convert
from bitquilt.bases.served_base import can_be_served, end_served, serve_base
from bitquilt.gguf.container import HEADER_ONLY, read_pairs
from bitquilt.gguf.header import read_header
from bitquilt.gguf.header_only import stored_bytes
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.test_converter import FAKE
from tests.streaming.test_from_base import stored_in_mxfp4


def assert_serves_what_it_writes(directory: Path, folder: Path) -> None:
    whole, header = folder / "whole.gguf", folder / "header.part"
    convert(directory, whole)
    serve_base(directory, header)
    try:
        written, served = read_header(whole), read_header(header)
        own = read_pairs(header, served.container)
        assert own.pop(HEADER_ONLY)
        assert own == read_pairs(whole, written.container)
        assert served.tensors.keys() == written.tensors.keys()
        for name, tensor in written.tensors.items():
            assert served.tensors[name].type == tensor.type
            bytes_of = [
                stored_bytes(path, name, one.tensors[name], 0, tensor.nbytes)
                for path, one in ((whole, written), (header, served), (header, served))
            ]
            assert np.array_equal(bytes_of[0], bytes_of[1])
            assert np.array_equal(bytes_of[0], bytes_of[2])
            assert np.array_equal(stored_bytes(header, name, tensor, 8, 4), bytes_of[0][8:12])
        matrices = BaseMatrices(header)
        for name, matrix in BaseMatrices(whole).items():
            assert torch.equal(matrices[name], matrix)
    finally:
        end_served(header)
    assert not header.exists()


@needs_converter
@pytest.mark.parametrize("kind", ["granite", "qwen3_moe", "phi3"])
def test_every_tensor_has_the_bytes_of_a_file_as_often_as_it_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_base, "KEPT_BYTES", 1)
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    assert can_be_served(directory)
    assert_serves_what_it_writes(directory, tmp_path)


@needs_converter
def test_stacks_that_a_converter_keeps_in_mxfp4_are_given_as_they_are(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "gpt_oss", torch.bfloat16)
    stored_in_mxfp4(directory)
    assert_serves_what_it_writes(directory, tmp_path)


@needs_converter
def test_a_header_that_nothing_serves_is_refused(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    header, left = tmp_path / "header.part", tmp_path / "left.gguf"
    serve_base(directory, header)
    left.write_bytes(header.read_bytes())  # a run that was killed leaves it
    end_served(header)
    with pytest.raises(UserError, match=f"left by a run that was stopped.*: {directory}$"):
        read_header(left)


def test_a_converter_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "llama.cpp"
    (checkout / "gguf").mkdir(parents=True)
    (checkout / "gguf" / "__init__.py").write_text(
        "OTHER = True\nclass GGUFWriter:\n    def write_header_to_file(self): ...\n"
    )
    (checkout / converter.CONVERTER_SCRIPT).write_text(FAKE.format(body="sys.exit('too odd')"))
    monkeypatch.setenv(converter.CHECKOUT, str(checkout))
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    header = tmp_path / "header.part"
    with pytest.raises(ConverterError, match=r"did not convert .*: too odd; try a newer one"):
        serve_base(directory, header)
    assert not header.exists()

"""Matrices of a file and stacks of them, decoded by bitquilt's own types: as gguf-py does."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType

from bitquilt.errors import UserError
from bitquilt.gguf.dequantize import dequantize
from bitquilt.gguf.header import read_header
from bitquilt.targets.gguf import decoding
from bitquilt.targets.gguf.decoding import decode_on_device


@pytest.fixture
def path(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(3, 8, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored = gguf.quants.quantize(numbers, GgmlType.Q8_0)
    writer.add_tensor("stack", stored, raw_dtype=GgmlType.Q8_0)
    writer.add_tensor("matrix", stored[0], raw_dtype=GgmlType.Q8_0)
    writer.add_tensor("norm", numbers[0, 0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


SHAPES = {"stack": (3, 8, 64), "matrix": (8, 64), "norm": (64,)}


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_the_same_numbers(path, name, shape):
    tensor = read_header(path).tensors[name]
    found = decode_on_device(path, tensor)
    assert tuple(found.shape) == shape
    assert torch.equal(found.cpu(), dequantize(path, tensor))


def test_gguf_py_decodes_no_stack_of_a_known_type_as_a_whole(path, monkeypatch):
    asked = []

    def watched(*given):
        asked.append(given)
        return dequantize(*given)

    monkeypatch.setattr(decoding, "dequantize", watched)
    decode_on_device(path, read_header(path).tensors["stack"])
    ((_, _, rows),) = asked
    assert rows
    assert max(rows) == 3 * 8 - 1


def test_other_numbers_are_refused(path, monkeypatch):
    monkeypatch.setattr(decoding, "dequantize", lambda *given: dequantize(*given) + 1)
    with pytest.raises(UserError, match="gguf-py decodes the Q8_0"):
        decode_on_device(path, read_header(path).tensors["stack"])

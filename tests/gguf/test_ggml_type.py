"""Numbers and blocks of ggml's types against gguf-py and the library that runs the files."""

import ctypes

import gguf
import numpy as np
import pytest

from bitquilt.engines.llama_api import load_library
from bitquilt.gguf.dequantize import decoded
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType
from tests.ggml import ggml_dequantizes


class TypeTraits(ctypes.Structure):
    """The beginning of struct ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
    )


def test_gguf_py_has_the_same_numbers():
    theirs = {kind.name: int(kind) for kind in gguf.GGMLQuantizationType}
    assert theirs.items() <= {kind.name: int(kind) for kind in GgmlType}.items()


@pytest.mark.parametrize("kind", set(GgmlType) - {GgmlType.Q8_1, GgmlType.Q8_K}, ids=str)
def test_the_library_has_the_same_names_and_blocks(kind):
    library = load_library()
    library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    traits = library.ggml_get_type_traits(int(kind)).contents
    assert traits.name.decode().lower() == kind.name.lower()
    assert (traits.block, traits.nbytes) == GGML_BLOCKS[kind]


def test_what_gguf_py_cannot_decode_is_decoded_as_in_ggml():
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (3, 5 * 18), np.uint8)
    data.reshape(3, 5, 18)[..., 1] &= 0xBF  # exponents below infinity's
    assert np.array_equal(decoded(data, GgmlType.Q2_0), ggml_dequantizes("Q2_0", data))

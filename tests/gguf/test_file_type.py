"""What a GGUF file is called as a whole, by its header or by most of its matrices."""

from __future__ import annotations

import pytest
from gguf import LlamaFileType

from bitquilt.gguf.file_type import file_type_name, file_type_of


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        (LlamaFileType.MOSTLY_Q4_K_M, "Q4_K_M"),
        (LlamaFileType.ALL_F32, "F32"),
        (41, "Q2_0"),
        (LlamaFileType.MOSTLY_IQ4_XS | LlamaFileType.GUESSED, "IQ4_XS"),
    ],
)
def test_what_the_header_says(stated, name):
    assert file_type_name({"general.file_type": int(stated)}, ["Q8_0"]) == name


@pytest.mark.parametrize("metadata", [{}, {"general.file_type": 999}, {"general.file_type": "?"}])
def test_where_the_header_says_nothing(metadata):
    assert file_type_name(metadata, ["Q8_0", "Q4_K", "Q4_K"]) == "mostly Q4_K"


def test_a_mix_of_our_own_is_called_a_mix():
    ours = {"general.file_type": int(LlamaFileType.MOSTLY_Q5_0), "bitquilt.recipe": "{}"}
    assert file_type_name(ours, ["Q5_0", "Q8_0", "Q5_0"]) == "a mix of types"
    assert file_type_name(ours, ["Q5_0", "Q5_0"]) == "Q5_0"


def test_the_file_type_of_a_type():
    assert file_type_of("Q4_K") == LlamaFileType.MOSTLY_Q4_K_M
    assert file_type_of("F32") == LlamaFileType.ALL_F32
    assert file_type_of("Q4_0") == LlamaFileType.MOSTLY_Q4_0
    assert file_type_of("MXFP4") == LlamaFileType.MOSTLY_MXFP4_MOE
    assert file_type_of("Q2_0") == 41  # llama.h; gguf-py does not know it yet

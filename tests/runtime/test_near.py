"""Names that are nearly right are found."""

from __future__ import annotations

import os

import pytest

from bitquilt.runtime.near import did_you_mean, nearest, suggestion

PRESETS = ["Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ4_XS", "4bit-g64"]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("q4_k_m", ["Q4_K_M"]),
        ("Q4-K-M", ["Q4_K_M"]),
        ("iq4xs", ["IQ4_XS"]),
        ("4BIT_G64", ["4bit-g64"]),
        ("Q4_K_L", ["Q4_K_S", "Q4_K_M"]),
        ("nothing like it", []),
    ],
)
def test_nearest(typed, found):
    assert sorted(nearest(typed, PRESETS, count=2)) == sorted(found)


def test_the_end_of_a_sentence():
    assert did_you_mean("q4_k_m", PRESETS) == "; did you mean Q4_K_M?"
    assert did_you_mean("x", PRESETS) == ""


def test_a_path(tmp_path):
    (tmp_path / "Model-4.5bit.gguf").touch()
    (tmp_path / ".model_4.5bit.gguf.part").touch()  # half-written
    typed = tmp_path / "model_4.5bit.gguf"
    assert suggestion(typed) == f"; did you mean {tmp_path / 'Model-4.5bit.gguf'}?"
    assert suggestion(tmp_path / "model-4.5bit.ggf") == suggestion(typed)
    assert suggestion(tmp_path / "zzz") == "; check the path"
    assert "nor does" in suggestion(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to("gone.gguf")
    assert "a link to gone.gguf, which is not there" in suggestion(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")  # no file to read, and not meant either
    assert suggestion(tmp_path / "pipe") == "; check the path"


def test_a_suffix_alone_makes_no_two_names_alike(tmp_path):
    """Every file of a directory may end in .gguf."""
    for name in ("trunc.gguf", "nan.gguf"):
        (tmp_path / name).touch()
    for typed in ("missing.gguf", "nothing.gguf", "x.gguf", "qwen.gguf"):
        assert suggestion(tmp_path / typed) == "; check the path"
    assert suggestion(tmp_path / "trun.gguf") == f"; did you mean {tmp_path / 'trunc.gguf'}?"

"""What is known of a model before it is loaded, of each kind of source."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitquilt.demo import path as demo_path
from bitquilt.serve.ollama import listed
from bitquilt.serve.served import ServedModel, served_model


def test_a_directory() -> None:
    found = served_model("d", str(demo_path()))
    weights = demo_path() / "model.safetensors"
    assert (found.format, found.file_type) == ("safetensors", "BF16")
    assert found.parameters == 13_114_624  # of its card
    assert found.nbytes == weights.stat().st_size
    assert found.metadata["llama4_text.embedding_length"] == 256


@pytest.mark.parametrize(
    "content", [None, b"", b"GGUF", b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 16]
)
def test_what_cannot_be_read_is_left_to_the_engine(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.gguf"
    if content is not None:
        file.write_bytes(content)
    found = served_model("x", str(file))
    assert (found.format, found.parameters, found.name) == ("", 0, "x")


@pytest.mark.parametrize(
    ("parameters", "written"),
    [
        (0, ""),
        (999, "999"),
        (140_248_512, "140.25M"),
        (7_000_000, "7M"),
        (1_235_814_432, "1.2B"),
        (8 * 10**9, "8B"),
    ],
)
def test_sizes_are_written_as_ollama_does(parameters: int, written: str) -> None:
    """Worked out by hand from format/format.go of ollama."""
    told = listed(ServedModel(name="x", parameters=parameters))
    assert told["details"]["parameter_size"] == written

"""What the verbs say of a model whose family bitquilt does not know itself: what helps there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from bitquilt.cli.main import bitquilt
from bitquilt.cli.unknown_family import ADVICE
from bitquilt.errors import UnknownFamilyError, UserError
from bitquilt.models import from_config, open_checkpoint
from tests.quick import invoke


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "granitx"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "granitx"}))
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "granitx.gguf"
    writer = GGUFWriter(path, "granitx")
    writer.add_tensor("token_embd.weight", np.ones((8, 64), np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    return path


def test_every_verb_of_the_table_is_one() -> None:
    assert set(ADVICE) <= set(bitquilt.commands)


@pytest.mark.parametrize(
    ("words", "helps"),
    [
        (["eval", "FILE", "--against", "FILE"], "give the Hugging Face directory or hub id that"),
        (["plan", "FILE", "--bits", "5"], "`bitquilt plan FILE --imatrix IMATRIX --bits 4.5`"),
        (["search", "MODEL", "--bits", "5"], "`bitquilt recipe from` takes them from its file"),
        (["run", "MODEL", "hello"], "give a GGUF file or an MLX directory of it"),
        (["quantize", "FILE", "--bits", "5"], "give --imatrix FILE too, or quantize"),
        (["recipe", "from", "FILE", "--for", "MODEL"], "leave out --for"),
        (["card", "FILE", "--against", "FILE", "--repo", "me/x"], "give --against the original"),
        (["bench", "MODEL"], "give a GGUF file or an MLX directory of it"),
    ],
)
def test_a_verb_that_needs_tables_says_what_helps_instead(
    words: list[str], helps: str, directory: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"MODEL": str(directory), "FILE": str(file)}
    assert invoke(*(named.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("bitquilt: ")
    assert "granitx" in said
    assert helps in said


def test_python_has_the_general_advice(file: Path) -> None:
    with pytest.raises(UnknownFamilyError, match=r"others, use `bitquilt quantize`"):
        from_config({"model_type": "granitx"}, "granitx")
    with pytest.raises(UserError, match=r"give the Hugging Face directory that it was made from"):
        open_checkpoint(file)

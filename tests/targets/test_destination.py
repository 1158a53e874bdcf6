"""No file is replaced but what bitquilt wrote."""

from __future__ import annotations

from pathlib import Path

import gguf as reference
import pytest

from bitquilt.errors import UserError
from bitquilt.targets.destination import RECIPE_KEY, check_file


def write_gguf(path: Path, key: str) -> None:
    """A GGUF file of one metadata pair and no tensors."""
    writer = reference.GGUFWriter(path, "qwen3")
    writer.add_string(key, "{}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_only_a_file_with_our_recipe_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tiny-4.5bit.gguf"
    check_file(path, None)
    path.write_text("precious")
    with pytest.raises(UserError, match=r"4\.5bit\.gguf exists, .* give another -o, or move it"):
        check_file(path, None)
    write_gguf(path, "general.name")
    with pytest.raises(UserError, match="bitquilt did not write it"):
        check_file(path, None)
    write_gguf(path, RECIPE_KEY)
    check_file(path, tmp_path / "other.gguf")


def test_the_model_itself_is_not_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "tiny.gguf", tmp_path / "link.gguf"
    write_gguf(path, RECIPE_KEY)
    link.symlink_to(path)
    for source in (path, link):
        with pytest.raises(UserError, match=r"tiny\.gguf is the model itself; give another -o"):
            check_file(path, source)

"""No file is replaced but what bitquilt wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitquilt.errors import UserError
from bitquilt.stitch.destination import check_file, recipe_beside


def test_only_a_file_with_our_recipe_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tiny-4.5bit.gguf"
    check_file(path, None)
    path.write_text("precious")
    with pytest.raises(UserError, match=r"4\.5bit\.gguf is there .* give another -o, or move it"):
        check_file(path, None)
    recipe_beside(path).write_text("{}")
    check_file(path, tmp_path / "other.gguf")


def test_the_model_itself_is_not_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "tiny.gguf", tmp_path / "link.gguf"
    path.write_text("precious")
    link.symlink_to(path)
    recipe_beside(path).write_text("{}")
    for source in (path, link):
        with pytest.raises(UserError, match=r"tiny\.gguf is the model itself; give another -o"):
            check_file(path, source)

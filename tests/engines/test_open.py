"""Which engine a path is for, and damage that keeps that from being known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitquilt.engines import is_mlx
from bitquilt.errors import UserError


@pytest.mark.parametrize(("stated", "mlx"), [({"format": "mlx"}, True), (None, False)])
def test_the_weights_say_whose_they_are(
    stated: dict[str, str] | None, mlx: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata=stated)
    assert is_mlx(tmp_path) is mlx


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_damaged_config(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json"):
        is_mlx(tmp_path)


@pytest.mark.parametrize("weights", [b"", b"short", b"\xff" * 64])
def test_damaged_weights(weights: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        is_mlx(tmp_path)

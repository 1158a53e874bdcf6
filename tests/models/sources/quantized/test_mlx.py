"""Directories that mlx-lm quantized are read as mlx reads them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.targets import MLX
from tests.models.sources.quantized.checkpoints import Q, StoredParts, quantized
from tests.targets.conftest import Model

MODES = {
    **{f"{bits}bit-g64": {"group_size": 64, "bits": bits} for bits in (2, 3, 4, 5, 6, 8)},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_is_read_as_mlx_dequantizes_it(kind: str, tmp_path: Path) -> None:
    wanted = []

    def make(weight: torch.Tensor) -> StoredParts:
        parts = mx.quantize(mx.array(weight.numpy()), **MODES[kind])
        wanted.append(np.array(mx.dequantize(*parts, **MODES[kind]).astype(mx.float32)))
        stored = [torch.from_numpy(np.array(part)) for part in parts]
        return dict(zip(("weight", "scales", "biases"), stored, strict=False))

    directory = quantized(tmp_path, MODES[kind], make, "quantization")
    checkpoint = open_checkpoint(directory)
    found = [checkpoint.load(name).numpy() for name in checkpoint.shapes if "proj.weight" in name]
    assert len(found) == len(wanted) == 7
    for one in found:
        same = [w for w in wanted if w.shape == one.shape and np.allclose(one, w, atol=1e-7)]
        assert len(same) == 1
    assert checkpoint.quantized
    assert kind in checkpoint.source_types


def test_what_bitquilt_writes_for_mlx_it_reads(tmp_path: Path) -> None:
    """Modules differ in their types, some are not quantized, and there are two fields."""
    (tmp_path / "source").mkdir()
    directory = quantized(tmp_path / "source", {}, lambda weight: {"weight": weight})
    checkpoint = open_checkpoint(directory)
    model = Model(directory, checkpoint)
    allocation = model.on("6bit-g32") | {Q.removesuffix(".weight"): "BF16"}
    MLX.write(checkpoint, allocation, model.packed, tmp_path / "m-mlx", "{}")
    again = open_checkpoint(tmp_path / "m-mlx")
    assert torch.equal(again.load(Q), checkpoint.load(Q).bfloat16().float())
    for name in checkpoint.shapes:
        assert torch.allclose(again.load(name), checkpoint.load(name), atol=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 64, "bits": 7},
        {"group_size": 64, "bits": None},
        {"group_size": 32, "bits": 4, "mode": "mxfp8"},
        {"group_size": 32, "bits": None, "mode": "mxfp5"},
        {"group_size": 32, "bits": 4, "mode": []},
    ],
)
def test_other_modes_are_refused_by_name(settings: dict[str, object], tmp_path: Path) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = weight.shape
        words = torch.zeros(rows, columns // 8, dtype=torch.uint32)
        groups = torch.zeros(rows, columns // 64)
        return {"weight": words, "scales": groups, "biases": groups.clone()}

    with pytest.raises(UserError, match=rf"mode .*, {settings['bits']} bits\).* does not read"):
        open_checkpoint(quantized(tmp_path, settings, make, "quantization"))

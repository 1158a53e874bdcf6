"""Checkpoints that are published quantized are read as those who quantized them mean it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bitquilt.engines import open_engine
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.inspection import inspect
from bitquilt.models.sources.quantized import QuantizedTensor, joined
from bitquilt.models.sources.safetensors import scan
from bitquilt.targets import MLX
from tests.models.sources.quantized.checkpoints import Q, StoredParts, quantized, words_of
from tests.targets.conftest import Model

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


def fp8(shape: tuple[int, int] | None) -> Callable[[torch.Tensor], StoredParts]:
    """Codes in float8 with a scale for each block of a shape, or for the whole matrix."""

    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = shape or weight.shape
        blocks = weight.unfold(0, rows, rows).unfold(1, columns, columns)
        scale = blocks.abs().amax((2, 3)) / 448
        spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return {
            "weight": (weight / spread).to(torch.float8_e4m3fn),
            "weight_scale_inv": scale if shape else scale.reshape(()),
            **({} if shape else {"activation_scale": torch.tensor(1.0)}),
        }

    return make


@pytest.mark.parametrize("block", [(64, 32), (64, 128), None])
def test_fp8_is_read_as_transformers_reads_it(
    block: tuple[int, int] | None, tmp_path: Path
) -> None:
    settings = FP8 | {"weight_block_size": None if block is None else list(block)}
    directory = quantized(tmp_path, settings, fp8(block))
    stored = load_file(directory / "model.safetensors")
    checkpoint = open_checkpoint(directory)
    names = [name for name in checkpoint.shapes if stored[name].dtype == torch.float8_e4m3fn]
    assert len(names) == 7
    own = Fp8Dequantize(SimpleNamespace())
    for name in names:
        scale = stored[name.replace(".weight", ".weight_scale_inv")]
        wanted = own._dequantize_one(stored[name], scale, torch.float32)
        assert torch.equal(checkpoint.load(name), wanted)


def test_blocks_that_do_not_divide_a_matrix_end_at_its_edge(tmp_path: Path) -> None:
    """DeepSeek's: the last block of rows or columns has fewer."""

    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = (-(-side // 96) for side in weight.shape)
        codes = torch.ones(weight.shape).to(torch.float8_e4m3fn)
        scale = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
        return {"weight": codes, "weight_scale_inv": scale}

    settings = FP8 | {"weight_block_size": [96, 96]}
    weight = open_checkpoint(quantized(tmp_path, settings, make)).load(Q)
    assert weight.shape == (128, 128)

    assert [weight[0, 0], weight[0, 96], weight[95, 95], weight[96, 0], weight[127, 127]] == [
        0.0,
        1.0,
        0.0,
        2.0,
        3.0,
    ]


def codes_of(weight: torch.Tensor, group: int, bits: int, symmetric: bool) -> tuple:
    """Rounded groups of columns by numpy: codes, scales [R, G], zero points [R, G]."""
    rows, columns = weight.shape
    parts = weight.numpy().reshape(rows, columns // group, group)
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    if symmetric:
        scale = np.abs(parts).max(2) / most
        zero = np.zeros_like(scale)
    else:
        scale = (parts.max(2) - parts.min(2)) / (most - least)
        zero = np.round(least - parts.min(2) / scale)
    zero = np.clip(zero, least, most)
    codes = np.clip(np.round(parts / scale[..., None] + zero[..., None]), least, most)
    return codes.reshape(rows, columns), scale.astype(np.float32), zero


def packed(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Rows of int32, of numbers around 0."""
    return words_of(codes + (1 << bits - 1), bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128])
def test_packed_codes_are_read_as_compressed_tensors_means_them(
    group: int, symmetric: bool, bits: int, tmp_path: Path
) -> None:
    wanted: list[torch.Tensor] = []

    def make(weight: torch.Tensor) -> StoredParts:
        codes, scale, zero = codes_of(weight, group, bits, symmetric)
        spread = [np.repeat(one, group, 1) for one in (zero, scale)]
        wanted.append(torch.from_numpy(((codes - spread[0]) * spread[1]).astype(np.float32)))
        parts = {
            "weight_packed": packed(codes, bits),
            "weight_scale": torch.from_numpy(scale),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts["weight_zero_point"] = packed(zero.T, bits).T
        return parts

    directory = quantized(tmp_path, PACKED, make)
    checkpoint = open_checkpoint(directory)
    found = [checkpoint.load(name) for name in sorted(checkpoint.shapes) if "proj.weight" in name]
    assert len(found) == len(wanted) == 7
    for one in found:
        assert any(one.shape == w.shape and torch.allclose(one, w, atol=1e-7) for w in wanted)


def test_columns_may_belong_to_groups_in_another_order(tmp_path: Path) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        rows, columns = weight.shape
        return {
            "weight_packed": packed(np.ones((rows, columns)), 4),
            "weight_scale": torch.tensor([[1.0, 2.0]]).repeat(rows, 1),
            "weight_shape": torch.tensor(weight.shape),
            "weight_g_idx": torch.arange(columns, dtype=torch.int32) % 2,
        }

    weight = open_checkpoint(quantized(tmp_path, PACKED, make)).load(Q)
    assert weight[0, :4].tolist() == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("per_row", [True, False])
def test_codes_of_eight_bits_have_a_scale_for_each_row_or_one(
    per_row: bool, tmp_path: Path
) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        most = weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()[None]
        return {"weight": (weight / most * 127).round().to(torch.int8), "weight_scale": most / 127}

    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    directory = quantized(tmp_path, settings, make)
    stored = load_file(directory / "model.safetensors")
    scale = stored[Q.replace(".weight", ".weight_scale")]
    assert torch.equal(open_checkpoint(directory).load(Q), stored[Q].float() * scale)


def test_what_is_made_of_one_is_no_longer_quantized_by_its_config(tmp_path: Path) -> None:
    directory = quantized(tmp_path, FP8 | {"weight_block_size": [64, 64]}, fp8((64, 64)))
    checkpoint = open_checkpoint(directory)
    assert checkpoint.quantized
    assert "quantization_config" not in checkpoint.config
    (said,) = [f for f in inspect(str(directory)).findings if f.subject == "quantization"]
    assert "F8_E4M3" in said.message
    model = Model(directory, checkpoint)
    MLX.write(checkpoint, model.on("8bit-g64"), model.packed, tmp_path / "m-mlx", "{}")
    written = json.loads((tmp_path / "m-mlx" / "config.json").read_text())
    assert written["quantization"]["bits"] == 8
    assert written.get("quantization_config", written["quantization"]) == written["quantization"]
    assert len(open_engine(directory).tokenize("hello")) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "hqq"}, "by hqq, and bitquilt reads fp8, compressed-tensors, "),
        (FP8, "weight in .* and its scales, .5, 5., do not fit together"),
    ],
)
def test_others_are_refused_by_name(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    def make(weight: torch.Tensor) -> StoredParts:
        codes = torch.ones(weight.shape).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale_inv": torch.ones(5, 5)}

    with pytest.raises(UserError, match=words):
        open_checkpoint(quantized(tmp_path, settings, make)).load(Q)


def test_fp8_that_nothing_is_said_of_is_told_so(tmp_path: Path) -> None:
    directory = quantized(tmp_path, {}, fp8(None))
    with pytest.raises(UserError, match=r"in F8_E4M3, and config.json has no quantization_config"):
        open_checkpoint(directory)


def test_stacks_in_mxfp4_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 64, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 135, (3, 64, 2), dtype=torch.uint8, generator=generator)
    path = tmp_path / "model.safetensors"
    save_file({"a.gate_up_proj_blocks": blocks, "a.gate_up_proj_scales": scales}, path)
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    (one,) = joined(scan([path]), config).values()
    assert isinstance(one, QuantizedTensor)
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert one.shape == wanted.shape == (3, 64, 64)
    assert torch.equal(one.decoded(), wanted)


def nvfp4(weight: torch.Tensor) -> tuple[StoredParts, torch.Tensor]:
    """Codes by mlx, of a matrix times a number of its own, and what they mean."""
    own = 448 * 6 / weight.abs().max()
    parts = mx.quantize(mx.array((weight * own).numpy()), mode="nvfp4")
    again = mx.dequantize(*parts, mode="nvfp4").astype(mx.float32)
    codes, scales = (torch.from_numpy(np.array(part)) for part in parts)
    stored = {
        "weight_packed": codes.view(torch.uint8),
        "weight_scale": scales.view(torch.float8_e4m3fn),
        "weight_global_scale": own[None],
        "input_global_scale": torch.ones(1),
    }
    return stored, torch.from_numpy(np.array(again)) / own


def by_modelopt(weight: torch.Tensor) -> tuple[StoredParts, torch.Tensor]:
    stored, wanted = nvfp4(weight)
    return {
        "weight": stored["weight_packed"],
        "weight_scale": stored["weight_scale"],
        "weight_scale_2": 1 / stored["weight_global_scale"][0],
        "input_scale": torch.ones(()),
    }, wanted


def mxfp4(weight: torch.Tensor) -> tuple[StoredParts, torch.Tensor]:
    parts = mx.quantize(mx.array(weight.numpy()), mode="mxfp4")
    codes, scales = (torch.from_numpy(np.array(part)) for part in parts)
    again = mx.dequantize(*parts, mode="mxfp4").astype(mx.float32)
    wanted = torch.from_numpy(np.array(again))
    return {"weight_packed": codes.view(torch.uint8), "weight_scale": scales}, wanted


@pytest.mark.parametrize(
    ("make", "method", "kind"),
    [
        (nvfp4, "compressed-tensors", "NVFP4"),
        (by_modelopt, "modelopt", "NVFP4"),
        (mxfp4, "compressed-tensors", "MXFP4"),
    ],
)
def test_four_bit_floats_are_read_as_mlx_reads_them(
    make: Callable[[torch.Tensor], tuple[StoredParts, torch.Tensor]],
    method: str,
    kind: str,
    tmp_path: Path,
) -> None:
    wanted = []

    def stored(weight: torch.Tensor) -> StoredParts:
        parts, meant = make(weight)
        wanted.append(meant)
        return parts

    checkpoint = open_checkpoint(quantized(tmp_path, {"quant_method": method}, stored))
    assert kind in checkpoint.source_types
    found = [checkpoint.load(name) for name in checkpoint.shapes if "proj.weight" in name]
    assert len(found) == len(wanted) == 7
    for one in found:
        same = [w for w in wanted if w.shape == one.shape and torch.allclose(one, w, rtol=1e-6)]
        assert len(same) == 1

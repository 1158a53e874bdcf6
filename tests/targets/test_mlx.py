"""MLX directories: their size, their bytes, and what mlx finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bitquilt.errors import UserError
from bitquilt.targets import MLX
from tests.factories import FAMILIES
from tests.targets.conftest import Model

MIXES = (
    ("F32",),
    ("4bit-g64",),
    ("4bit-g32", "mxfp8", "8bit-g128"),
    ("3bit-g64", "BF16", "mxfp4", "6bit-g32", "F32"),
)


def write(model: Model, allocation: tuple[str, ...], directory: Path) -> dict[str, str]:
    """Write a mix and return its assignment."""
    allocation = model.on(*allocation)
    recipe = json.dumps(allocation, indent=4)
    MLX.write(model.checkpoint, allocation, model.packed, directory, recipe)
    return allocation


def contents(directory: Path) -> dict[str, bytes]:
    """File name → bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("allocation", MIXES, ids="-".join)
def test_plan_is_the_size_on_disk(
    model: Model, allocation: tuple[str, ...], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    layout = MLX.plan(model.checkpoint, write(model, allocation, directory))
    assert sum(map(len, contents(directory).values())) == layout.total_bytes
    assert layout.total_bytes == layout.fixed_bytes + sum(layout.tensor_bytes.values())
    assert layout.total_bytes == sum(layout.breakdown.values())


def test_sizes_are_additive(model: Model) -> None:
    layouts = [MLX.plan(model.checkpoint, model.on(*allocation)) for allocation in MIXES]
    assert len({layout.fixed_bytes for layout in layouts}) == 1


def test_bits_are_those_that_mlx_lm_counts(model: Model, tmp_path: Path) -> None:
    utils = pytest.importorskip("mlx_lm.utils")
    layout = MLX.plan(model.checkpoint, write(model, MIXES[1], tmp_path / "model"))
    loaded, _ = utils.load_model(tmp_path / "model")
    assert layout.bits == pytest.approx(utils.compute_bits_per_weight(loaded), rel=1e-12)
    assert MLX.data_bytes(tmp_path / "model") * 8 / layout.weights == layout.bits
    assert MLX.count_weights(tmp_path / "model") == layout.weights == model.checkpoint.weights
    assert layout.bits_on_disk == layout.total_bytes * 8 / layout.weights


def test_templates_with_names_are_those_of_transformers(model: Model, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    named = {"tool_use": "{{ tools }}"}
    model = replace(model, checkpoint=replace(model.checkpoint, named_templates=named))
    layout = MLX.plan(model.checkpoint, write(model, MIXES[0], directory))
    assert sum(map(len, contents(directory).values())) == layout.total_bytes
    found = AutoTokenizer.from_pretrained(directory).chat_template
    assert found == {"default": model.checkpoint.chat_template, **named}


def test_same_inputs_same_bytes(model: Model, tmp_path: Path) -> None:
    write(model, MIXES[3], tmp_path / "a")
    write(model, MIXES[3], tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_weights_come_back(
    family: str, make_model: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_model(family, tied=False)
    allocation = write(model, ("F32",), tmp_path / "model")
    MLX.check(tmp_path / "model", model.checkpoint, allocation, model.packed)
    weights = MLX.read_weights(tmp_path / "model")
    assert set(weights) == set(model.checkpoint.shapes)
    assert all(torch.equal(weight, model.checkpoint.load(name)) for name, weight in weights.items())


def test_mlx_reads_what_the_qtypes_say(model: Model, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    allocation = write(model, MIXES[2], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    parts = mx.load(str(tmp_path / "model" / "model.safetensors"))
    weights = MLX.read_weights(tmp_path / "model")
    for module, qtype in allocation.items():
        entry = config["quantization"][module]
        stored = [parts.get(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        # mlx computes in the dtype of the scales: take float32, as our types do
        wide = [
            p.astype(mx.float32) if p is not None and p.dtype == mx.bfloat16 else p for p in stored
        ]
        matrix = torch.tensor(mx.dequantize(*wide, **entry).astype(mx.float32).tolist())
        meant = model.dequantized(module, qtype)
        torch.testing.assert_close(matrix, meant, rtol=1e-6, atol=1e-7)
        assert torch.equal(weights[f"{module}.weight"], meant)


def test_config_names_every_module(model: Model, tmp_path: Path) -> None:
    allocation = write(model, MIXES[3], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    quantization = config["quantization"]
    assert quantization == config["quantization_config"]
    assert set(allocation) < set(quantization)
    assert quantization["model.layers.0.self_attn.q_proj"] is False
    assert quantization["model.layers.0.self_attn.k_proj"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "mxfp4",
    }
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 8e6


def test_earlier_results_are_replaced_and_nothing_else(model: Model, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    write(model, ("4bit-g64",), directory)
    write(model, ("8bit-g64",), directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UserError, match="did not write"):
        write(model, ("4bit-g64",), tmp_path / "photos")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        write(model, ("4bit-g64",), tmp_path / "file")


def test_check_finds_a_flipped_bit(model: Model, tmp_path: Path) -> None:
    allocation = write(model, ("4bit-g64",), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="differ from what was written"):
        MLX.check(tmp_path / "model", model.checkpoint, allocation, model.packed)


def test_gguf_qtypes_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="mlx files cannot hold Q4_K"):
        MLX.plan(model.checkpoint, model.on("Q4_K"))

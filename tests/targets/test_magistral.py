"""Magistral Small as published, in small, all the way: its files run in stock engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Mistral3ForConditionalGeneration

from bitquilt.models import open_checkpoint
from bitquilt.models.inspection import inspect
from bitquilt.models.tokenizer import load_tokenizer
from bitquilt.targets import GGUF, MLX
from bitquilt.targets.same_tokens import refuse_other_tokens
from tests.bases.parity import difference, kl, llamacpp_logits, mlx_logits, transformers_logits
from tests.magistral import RESERVED, SHARDS, magistral_checkpoint
from tests.targets.conftest import Model


@pytest.fixture(scope="module")
def magistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return magistral_checkpoint(tmp_path_factory.mktemp("magistral"))


def test_it_opens_with_what_is_odd_about_it(magistral: Path) -> None:
    assert len(list(magistral.glob("*.safetensors"))) == SHARDS
    subjects = {finding.subject for finding in inspect(str(magistral)).findings}
    assert {"tekken.json", "SYSTEM_PROMPT.txt", "model_type"} <= subjects


def test_its_text_has_transformers_logits_in_llamacpp_and_in_mlx_lm(
    magistral: Path, tmp_path: Path
) -> None:
    original = AutoModelForImageTextToText.from_pretrained(magistral, dtype=torch.float32).eval()
    wanted = transformers_logits(original)
    checkpoint = open_checkpoint(magistral)
    model = Model(magistral, checkpoint)
    file, directory = tmp_path / "m.gguf", tmp_path / "m-mlx"
    GGUF.write(checkpoint, model.on("F32"), model.packed, file, "{}")
    MLX.write(checkpoint, model.on("F32"), model.packed, directory, "{}")
    assert difference(wanted, llamacpp_logits(file)) < 1e-3
    assert difference(wanted, mlx_logits(directory)) < 1e-3


@pytest.fixture(scope="module")
def in_mlx(magistral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeing") / "Magistral-Tiny-mlx"
    checkpoint = open_checkpoint(magistral)
    model = Model(magistral, checkpoint)
    MLX.write(checkpoint, model.on("8bit-g32"), model.packed, directory, "{}")
    return directory


def test_its_vision_are_in_the_mlx_directory_beside_what_mlx_lm_reads(
    magistral: Path, in_mlx: Path
) -> None:
    original = Mistral3ForConditionalGeneration.from_pretrained(magistral, dtype=torch.bfloat16)
    vision = load_file(in_mlx / "vision.safetensors")
    wanted = {
        name.removeprefix("model."): tensor
        for name, tensor in original.named_parameters()
        if "vision_tower" in name or "multi_modal_projector" in name
    }
    assert len(vision) == len(wanted) > 30
    inner = "vision_tower."
    for name, tensor in wanted.items():
        found = vision[name.replace(inner, "vision_tower.vision_model.", 1)]
        moved = tensor.permute(0, 2, 3, 1) if name.endswith("patch_conv.weight") else tensor
        assert torch.equal(found, moved), name
    text = load_file(in_mlx / "model.safetensors")
    assert all(name.startswith("language_model.") for name in text)
    config = json.loads((in_mlx / "config.json").read_text())
    assert config["model_type"] == "mistral3"
    assert (
        config["vision_config"]
        == json.loads((magistral / "config.json").read_text())["vision_config"]
    )
    assert (in_mlx / "preprocessor_config.json").exists()
    # mlx-lm takes the files whose names begin with model
    truth = transformers_logits(original.float())
    assert kl(truth, mlx_logits(in_mlx)) < 1e-3


def test_its_size_is_known_with_weights_and_from_the_config_alone(
    magistral: Path, in_mlx: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(magistral)
    alone = tmp_path / "config.json"
    alone.write_bytes((magistral / "config.json").read_bytes())
    types = dict.fromkeys(checkpoint.matrices, "8bit-g32")
    whole = MLX.plan(checkpoint, types)
    assert whole.total_bytes == sum(file.stat().st_size for file in in_mlx.iterdir())
    vision = (in_mlx / "vision.safetensors").stat().st_size
    assert whole.breakdown["vision"] == vision
    assert MLX.plan(open_checkpoint(alone), types).breakdown["vision"] == vision


def test_bitquilt_reads_what_it_wrote(magistral: Path, in_mlx: Path) -> None:
    original, written = open_checkpoint(magistral), open_checkpoint(in_mlx)
    assert written.shapes == original.shapes
    for stored in MLX.stored(in_mlx):
        weight = original.load(f"{stored.module}.weight")
        for read in (
            MLX.read_weights(in_mlx)[f"{stored.module}.weight"],
            written.load(f"{stored.module}.weight"),
        ):
            assert 0 < (read - weight).norm() / weight.norm() < 0.01
    assert {stored.module for stored in MLX.stored(in_mlx)} == set(original.matrices)


def test_mlx_vlm_sees_with_it(magistral: Path, in_mlx: Path) -> None:
    """Where mlx-vlm is installed, which this project does not need."""
    load_model = pytest.importorskip("mlx_vlm.utils").load_model
    import mlx.core as mx

    torch.manual_seed(0)
    sizes, picture = [[56, 84]], torch.randn(1, 3, 56, 84)
    tokens = torch.tensor([[1, 5, 6, *[10] * 6, 30, 31, 32, 33]])
    original = Mistral3ForConditionalGeneration.from_pretrained(magistral, dtype=torch.float32)
    with torch.inference_mode():
        shown = {"pixel_values": picture, "image_sizes": torch.tensor(sizes)}
        truth = original(input_ids=tokens, **shown).logits[0].numpy()
    model = load_model(in_mlx)
    model.set_dtype(mx.float32)
    read = [mx.array(one.numpy()) for one in (tokens, picture)]
    found = model(*read, mask=None, image_sizes=mx.array(np.array(sizes))).logits
    assert kl(truth, np.array(found.astype(mx.float32))[0]) < 1e-3


def test_its_thinking_is_control_tokens_that_engines_read_alike(magistral: Path) -> None:
    checkpoint = open_checkpoint(magistral)
    assert refuse_other_tokens(checkpoint, [GGUF, MLX]) == []
    tokens = load_tokenizer(checkpoint.tokenizer_dir)
    assert tokens.encode("[THINK]a[/THINK]", add_special_tokens=False) == [
        22,
        RESERVED + ord("a"),
        23,
    ]

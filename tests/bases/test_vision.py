"""What sees of a model goes into a file of its own, with the numbers that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from bitquilt import quantize, quantize_base
from bitquilt.allocation.plan import plan
from bitquilt.bases.converter import CHECKOUT
from bitquilt.bases.vision import vision_bytes, write_vision
from bitquilt.engines.llamacpp import vision_beside
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.magistral import SPECIALS, magistral_checkpoint
from tests.png import colours, png
from tests.quick import QUICK, invoke


@pytest.fixture(scope="module")
def magistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return magistral_checkpoint(tmp_path_factory.mktemp("magistral"))


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory."""
    weights: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        weights |= load_file(file)
    return weights


@needs_converter
def test_magistrals_is_written_with_its_own_numbers(magistral: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(magistral)
    path = tmp_path / "mmproj-m.gguf"
    write_vision(checkpoint, path)
    reader = GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "mmproj"
    assert fields["clip.projector_type"] == "pixtral"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = stored(magistral)
    seeing = [name for name in weights if not name.startswith("language_model.")]
    assert len(tensors) >= len(seeing)  # and the token that breaks rows of an image
    row = tensors["v.token_embd.img_break"].data  # llama.cpp refuses the file without it
    embedding = weights["language_model.model.embed_tokens.weight"]
    assert torch.equal(
        torch.from_numpy(row.copy()), embedding[SPECIALS.index("[IMG_BREAK]")].float()
    )
    down = torch.from_numpy(tensors["v.blk.2.ffn_down.weight"].data.copy()).view(torch.bfloat16)
    own = "vision_tower.transformer.layers.2.feed_forward.down_proj.weight"
    assert torch.equal(down, weights[own])
    counted = sum(tensor.n_bytes for tensor in reader.tensors)
    assert counted == pytest.approx(vision_bytes(checkpoint.original_config), rel=0.1)


@needs_converter
def test_gemmas_is_about_as_large_as_its_config_says(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "gemma3")
    inner, published = "vision_tower.", "vision_tower.vision_model."
    weights = {name.replace(inner, published): t for name, t in stored(directory).items()}
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(halves, directory / "model.safetensors", {"format": "pt"})
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": 4}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    checkpoint = open_checkpoint(directory)
    path = tmp_path / "mmproj-g.gguf"
    write_vision(checkpoint, path)
    counted = sum(tensor.n_bytes for tensor in GGUFReader(path).tensors)
    assert counted == pytest.approx(vision_bytes(checkpoint.original_config), rel=0.3)


@needs_converter
def test_quantize_writes_it_beside_the_file_and_plan_tells_its_size(
    magistral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (note,) = [note for note in plan(magistral, recipe="Q8_0")[0].notes if "mmproj" in note]
    said = "Magistral-Tiny's vision tower goes into mmproj-Magistral-Tiny.gguf beside the gguf file"
    assert note.startswith(said)
    result = quantize(magistral, recipe="Q8_0", output=tmp_path, work_dir=tmp_path / "w", **QUICK)
    assert result.vision == tmp_path / "mmproj-Magistral-Tiny.gguf"
    assert result.vision.is_file()
    json.dumps(result.to_dict())


def test_without_a_converter_plan_says_how_to_get_it(
    magistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitquilt.allocation.plan.find_converter", lambda: None)
    notes = plan(magistral, recipe="Q8_0")[0].notes
    assert any("once llama.cpp's converter is installed: run `" in note for note in notes)


def test_where_the_tower_is_in_mlx_is_told(magistral: Path, tmp_path: Path) -> None:
    notes = plan(magistral, recipe="8bit-g64", to="mlx")[0].notes
    assert any("vision tower is in the mlx directory, unquantized" in note for note in notes)
    gemma = unknown_checkpoint(tmp_path, "gemma3")
    notes = plan(gemma, recipe="8bit-g64", to="mlx")[0].notes
    assert any("mlx output has the language model only" in note for note in notes)


@needs_converter
def test_a_converter_that_fails_is_one_sentence(magistral: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in magistral.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "preprocessor_config.json").write_text("[")
    with pytest.raises(UserError, match=f"did not convert .*{CHECKOUT}"):
        write_vision(open_checkpoint(broken), tmp_path / "mmproj.gguf")
    assert not (tmp_path / "mmproj.gguf").exists()


@needs_converter
def test_that_of_a_model_without_tables_is_written_beside_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen2_5_vl")
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 14, "merge_size": 2}
    sizes = {"size": {"shortest_edge": 28, "longest_edge": 56}, "temporal_patch_size": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(images | sizes))
    (made,) = quantize_base(directory, recipe="Q8_0", output=tmp_path, **QUICK)
    path = tmp_path / "mmproj-qwen2_5_vl.gguf"
    assert vision_beside(made.paths[0]) == path
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    seen = torch.from_numpy(tensors["v.blk.1.attn_out.weight"].data.copy())
    (own,) = (t for n, t in stored(directory).items() if n.endswith("blocks.1.attn.proj.weight"))
    assert torch.equal(seen, own)
    # its positions of an image are two-dimensional, which the engine's loop does not count
    image = tmp_path / "image.png"
    image.write_bytes(png(colours(56, 56)))
    capsys.readouterr()
    assert invoke("run", made.paths[0], "What is it?", "--image", image) == 2
    assert "two-dimensional positions for images" in capsys.readouterr().err

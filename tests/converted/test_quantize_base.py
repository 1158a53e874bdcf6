"""Models without tables become MLX directories that stock mlx-lm runs, and gain by feedback."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import bitquilt
from bitquilt import UserError
from bitquilt.bases.importance import BaseModel, load_transformers_model, match_base
from bitquilt.bases.mlx_base import MlxBase, convert_to_mlx
from bitquilt.converted.formats.mlx_directory import MlxDirectory
from bitquilt.gguf.header import read_header
from bitquilt.streaming import base as streamed_base
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import (
    decoded_by_gguf,
    decoded_by_mlx,
    decoded_model,
    kl,
    llamacpp_logits,
    mlx_logits,
    transformers_logits,
)
from tests.models.sources.quantized.checkpoints import store_in_parts
from tests.progress import Recorded
from tests.quick import QUICK, invoke
from tests.streaming.test_from_base import stored_in_mxfp4

TEXT = {name: QUICK[name] for name in ("text_budget", "calibration")}
QUIET = {"progress": bitquilt.Silent(), **TEXT}


@pytest.fixture(autouse=True)
def _yield_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads wait by spinning, which starves them on busy machines."""
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "PASSIVE")


MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def in_fp8(directory: Path) -> None:
    """Store matrices as FP8 with a scale for each, as Mistral publishes them."""

    def make(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.abs().max() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale_inv": scale, "activation_scale": torch.ones(())}

    store_in_parts(directory, {"quant_method": "fp8", "activation_scheme": "static"}, make)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("kind", ["granite", "qwen3_moe", "lfm2", "apertus", "phi", "deepseek_v3"])
def test_an_mlx_directory_has_the_size_that_was_asked_for_and_the_kl_of_its_numbers(
    kind: str, tmp_path: Path
) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    (made,) = bitquilt.quantize_base(directory, bits=5, to="mlx", output=tmp_path, **QUIET)
    (path,) = made.paths
    assert size_of(path) == made.plan.nbytes
    assert made.plan.bits == pytest.approx(5, abs=0.1)
    assert len(set(made.plan.types.values())) > 1
    base = MlxBase(made.source)
    model = load_transformers_model(directory)
    found = BaseModel(made.source, model, match_base(base, made.source, model, directory))
    truth = transformers_logits(model)
    decoded = kl(truth, transformers_logits(decoded_model(found, path)))
    assert decoded > 0.005
    near = 0.1 if kind == "qwen3_moe" else 0.03  # a token between two experts goes to the other one
    assert kl(truth, mlx_logits(path)) == pytest.approx(decoded, rel=near)


@pytest.mark.parametrize(("kind", "store"), [("mistral3", in_fp8), ("gpt_oss", stored_in_mxfp4)])
def test_what_is_published_quantized_becomes_the_same_model_in_mlx(
    kind: str, store: Callable[[Path], None], tmp_path: Path
) -> None:
    """mlx-lm misreads FP8 of the first, and keeps the experts of the second in MXFP4."""
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    store(directory)
    (made,) = bitquilt.quantize_base(directory, bits=8.6, to="mlx", output=tmp_path, **QUIET)
    (path,) = made.paths
    truth = transformers_logits(load_transformers_model(directory))
    assert kl(truth, mlx_logits(made.source)) < 1e-4
    assert kl(truth, mlx_logits(path)) < 0.02
    written = json.loads((path / "config.json").read_text())["quantization"]
    kept = {name for name, entry in written.items() if "experts" in name}
    assert len(kept) == (6 if kind == "gpt_oss" else 0)
    assert all(written[name] == MXFP4 for name in kept)


def test_a_template_that_only_a_processor_has_is_in_the_directory(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    (directory / "chat_template.jinja").unlink()
    template = {"chat_template": "{{ messages[0].content }}"}
    (directory / "chat_template.json").write_text(json.dumps(template))
    convert_to_mlx(directory, tmp_path / "made")
    found = (tmp_path / "made" / "chat_template.jinja").read_text()
    assert found == template["chat_template"]


def test_what_sees_is_kept_beside_what_mlx_lm_reads(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "mistral3", torch.bfloat16)
    (made,) = bitquilt.quantize_base(directory, bits=8, to="mlx", output=tmp_path, **QUIET)
    (path,) = made.paths
    vision = load_file(path / "vision.safetensors")
    stored = load_file(directory / "model.safetensors")
    own = {name for name in stored if "vision_tower" in name or "projector" in name}
    assert len(vision) == len(own) > 10
    linear = "multi_modal_projector.linear_1.weight"
    assert torch.equal(vision[linear], stored[linear])
    assert size_of(path) == made.plan.nbytes
    assert kl(transformers_logits(load_transformers_model(directory)), mlx_logits(path)) < 0.001


def test_a_directory_without_the_vision_tower_is_said_to_be_so(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen2_5_vl", torch.bfloat16)
    options = {**TEXT, "progress": (said := Recorded()), "output": tmp_path}
    (made,) = bitquilt.quantize_base(directory, recipe="8bit-g64", to="mlx", **options)
    assert not (made.paths[0] / "vision.safetensors").exists()
    note = "the mlx output has the language model only, without qwen2_5_vl's vision tower"
    assert note in said.lines


def test_a_size_in_bytes_is_kept_to_and_the_same_directory_is_made_again(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    options = {"to": "mlx", "output": tmp_path, **QUIET}
    (made,) = bitquilt.quantize_base(directory, size="280kB", **options)
    (path,) = made.paths
    assert 270_000 < size_of(path) == made.plan.nbytes <= 280_000
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    bitquilt.quantize_base(directory, size="280kB", **options)
    assert before == {file.name: file.read_bytes() for file in path.iterdir()}
    text = "def f(x): return x**2  # 347 + 585"
    own, theirs = (AutoTokenizer.from_pretrained(place) for place in (directory, path))
    assert own.encode(text) == theirs.encode(text)
    with pytest.raises(UserError, match=r"smallest possible mlx file has \S+ bytes"):
        bitquilt.quantize_base(directory, size="100kB", **options)


def test_codes_are_those_that_mlx_decodes_to_numbers_near_the_weights(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16)
    recipe = tmp_path / "recipe.json"
    pin = {"model.layers.1.mlp.switch_mlp.up_proj": "3bit-g32"}
    recipe.write_text(json.dumps({"default": "8bit-g32", "pin": pin}))
    (made,) = bitquilt.quantize_base(directory, recipe=recipe, to="mlx", output=tmp_path, **QUIET)
    (path,) = made.paths
    base, decoded = MlxBase(made.source), decoded_by_mlx(path)
    assert made.plan.types["model.layers.1.mlp.switch_mlp.up_proj"] == "3bit-g32"
    for name in base:
        weight = base[name].float()
        error = (decoded(name) - weight).norm() / weight.norm()
        assert error < (0.3 if made.plan.types[name] == "3bit-g32" else 0.01), name


@needs_converter
def test_feedback_has_less_kl_than_nearest_rounding_to_the_same_types(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    truth = transformers_logits(load_transformers_model(directory))
    budget = dataclasses.replace(QUICK["text_budget"], calibration=32, window=64)
    kls, options = {}, {**QUIET, "text_budget": budget, "output": tmp_path}
    for rounding in ("nearest", "full"):
        (made,) = bitquilt.quantize_base(directory, recipe="Q4_0", rounding=rounding, **options)
        kls[rounding] = kl(truth, llamacpp_logits(made.paths[0]))
    assert kls["full"] < 0.95 * kls["nearest"]


@needs_converter
def test_matrices_that_were_rounded_for_another_base_are_not_used(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    options = {"recipe": "Q8_0", "output": tmp_path, **QUIET}
    (made,) = bitquilt.quantize_base(directory, **options)
    name = "blk.0.attn_v.weight"
    before = decoded_by_gguf(made.paths[0])(name)
    place = read_header(made.source).tensors[name]
    with made.source.open("r+b") as file:  # as a converter has it that orders rows otherwise
        file.seek(place.offset)
        rows = file.read(place.nbytes)
        half = len(rows) // 2
        file.seek(place.offset)
        file.write(rows[half:] + rows[:half])
    (made,) = bitquilt.quantize_base(directory, **options)
    after = decoded_by_gguf(made.paths[0])(name)
    assert torch.equal(after, before.roll(len(before) // 2, 0))


def test_what_mlx_does_not_know_is_one_sentence(tmp_path: Path, capsys) -> None:
    directory = unknown_checkpoint(tmp_path, "arcee")
    assert invoke("quantize", directory, "--bits", "5", "--to", "mlx", "-o", tmp_path) == 2
    said = capsys.readouterr().err
    assert "Model type arcee not supported" in said
    assert "give --to gguf" in said
    assert not list(tmp_path.glob("*-mlx"))


def test_a_directory_that_bitquilt_did_not_write_stays(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    place = tmp_path / "granite-5bit-mlx"
    place.mkdir()
    (place / "mine").write_text("mine")
    with pytest.raises(UserError, match="bitquilt did not write"):
        bitquilt.quantize_base(directory, bits=5, to="mlx", output=tmp_path, **QUIET)
    assert (place / "mine").read_text() == "mine"


@pytest.mark.parametrize(("columns", "group"), [(128, 64), (32, 32)])
def test_a_matrix_of_which_nothing_is_known_has_a_type_that_fits_its_rows(
    columns: int, group: int, tmp_path: Path
) -> None:
    stem = "model.layers.0.self_attn.embed_q"  # deepseek_v3's: for each head a matrix
    stack = torch.ones(4, 8, columns).bfloat16()
    save_file({f"{stem}.weight": stack}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}))
    (tmp_path / "quantizable.json").write_text(json.dumps({stem: True}))
    base = MlxDirectory(tmp_path, check=False)
    assert base.safe_type(stem) == f"8bit-g{group}"
    scales_and_biases = 2 * 2 * stack.numel() // group
    assert base.nbytes(stem, base.safe_type(stem)) == stack.numel() + scales_and_biases


@needs_converter
@pytest.mark.parametrize("rounding", ["full", "nearest"])
def test_a_disk_without_room_for_the_base_gets_the_same_file(
    rounding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16)
    options = {"bits": 6.0, "rounding": rounding, **QUIET}
    (usual,) = bitquilt.quantize_base(directory, output=tmp_path / "usual", **options)
    monkeypatch.setattr(streamed_base, "has_room", lambda *_: False)
    options["progress"] = said = Recorded()
    (made,) = bitquilt.quantize_base(directory, output=tmp_path / "full", **options)
    assert made.paths[0].read_bytes() == usual.paths[0].read_bytes()
    assert any("too little room for qwen3_moe-BF16.gguf" in line for line in said.lines)
    assert any("cannot be tried before the work" in line for line in said.lines)
    left = {path.name for path in (tmp_path / "full").iterdir() if path.is_file()}
    assert left == {made.paths[0].name, "qwen3_moe-imatrix.gguf"}


@needs_converter
def test_a_plan_writes_no_base(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    (plan,) = bitquilt.plan_base(directory, recipe="Q4_0", output=tmp_path / "made", **QUIET)
    assert not list((tmp_path / "made").iterdir())
    (made,) = bitquilt.quantize_base(
        directory, recipe="Q4_0", output=tmp_path / "made", rounding="nearest", **QUIET
    )
    assert plan.nbytes == made.paths[0].stat().st_size

"""A model of an unknown type becomes a file that stock llama.cpp runs as transformers does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bitquilt
from bitquilt import UserError
from bitquilt.bases.importance import open_base
from bitquilt.gguf.container import read_container
from bitquilt.gguf.imatrix import read_imatrix
from bitquilt.rounding import METHODS
from bitquilt.streaming.base import needs_base
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import (
    decoded_model,
    difference,
    kl,
    llamacpp_logits,
    transformers_logits,
)
from tests.factories import tiny_checkpoint
from tests.models.sources.quantized.checkpoints import store_in_parts
from tests.models.sources.quantized.test_gptq import AWQ, random_awq
from tests.quick import QUICK, invoke

TEXT = {name: QUICK[name] for name in ("text_budget", "calibration")}
TYPES = (
    *("granite", "qwen3_moe", "lfm2", "ministral3", "mistral3", "qwen3_5_text", "llama4_text"),
    "mimo_v2_flash",
)
"""Those of docs/model-types.md that are tried each time: a stack of experts, convolutions, a gguf
package that lacks members of other architectures, one that sees, a config that speaks of weights
which are not there, a family of ours with experts, a
field that the converter does not find inside rope_parameters."""
SAME = 1e-3
"""Logits that differ by less are the same."""
ACTIVATIONS = 0.05
"""What share of the KL may differ because llama.cpp rounds activations to 8 bits, too."""


@pytest.fixture(autouse=True)
def _yield_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads wait by spinning, which starves them on busy machines."""
    monkeypatch.setitem(os.environ, "OMP_WAIT_POLICY", "PASSIVE")


@needs_converter
@pytest.mark.parametrize("kind", TYPES)
def test_every_matrix_has_a_partner_and_the_base_the_models_logits(
    kind: str, tmp_path: Path
) -> None:
    directory = unknown_checkpoint(tmp_path, kind)
    made = bitquilt.make_imatrix(
        directory, output=tmp_path / "imatrix.gguf", progress=bitquilt.Silent(), **TEXT
    )
    path = tmp_path / f"{kind}-F32.gguf"
    base = open_base(path, directory, bitquilt.Silent())
    assert base.alone == []
    looked_up = {"token_embd.weight"} & (base.partners.keys() - made.entries.keys())
    assert base.partners.keys() - made.entries.keys() == looked_up
    truth = transformers_logits(base.model)
    assert difference(truth, llamacpp_logits(path)) < SAME


@needs_converter
@pytest.mark.parametrize(
    ("kind", "rounding"), [("granite", "nearest"), ("granite", "full"), ("qwen3_moe", "gptq")]
)
def test_one_command_makes_a_file_of_the_same_kl_in_llamacpp_as_decoded_in_torch(
    kind: str, rounding: str, tmp_path: Path
) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    (made,) = bitquilt.quantize_base(
        directory, bits=5, output=tmp_path, rounding=rounding, progress=bitquilt.Silent(), **TEXT
    )
    assert made.source == tmp_path / f"{kind}-BF16.gguf"
    assert made.plan.without_importance == []
    assert read_imatrix(tmp_path / f"{kind}-imatrix.gguf").datasets == ("calibration.jsonl",)
    (file,) = made.paths
    assert file.stat().st_size == made.plan.nbytes
    base = open_base(made.source, directory, bitquilt.Silent())
    truth = transformers_logits(base.model)
    decoded = kl(truth, transformers_logits(decoded_model(base, file)))
    assert decoded > 0.01
    assert kl(truth, llamacpp_logits(file)) == pytest.approx(decoded, rel=ACTIVATIONS)


@needs_converter
def test_a_base_that_is_given_is_used_and_one_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    output = {"output": tmp_path / "im.gguf", "progress": bitquilt.Silent(), **TEXT}
    bitquilt.make_imatrix(directory, **output)
    base = (tmp_path / "granite-F32.gguf").rename(tmp_path / "mine.gguf")
    bitquilt.make_imatrix(directory, base=base, **output)
    assert not (tmp_path / "granite-F32.gguf").exists()
    other = unknown_checkpoint(tmp_path, "olmo2", seed=1)
    with pytest.raises(UserError, match=r"none of the 16 matrices .* equals a parameter of"):
        bitquilt.make_imatrix(other, base=base, **output)


def test_a_known_model_with_its_base_has_the_importance_of_the_usual_way(tmp_path: Path) -> None:
    from tests.streaming.bases import base_file

    directory = tiny_checkpoint(tmp_path, "llama", tied=False)
    quiet = {"progress": bitquilt.Silent(), **TEXT}
    usual = bitquilt.make_imatrix(directory, output=tmp_path / "usual.gguf", **quiet)
    base = base_file(directory, tmp_path / "base.gguf")
    found = bitquilt.make_imatrix(directory, output=tmp_path / "b.gguf", base=base, **quiet)
    assert found.entries.keys() == usual.entries.keys()
    for name, entry in found.entries.items():
        np.testing.assert_allclose(entry.sums, usual.entries[name].sums, rtol=2e-3)
        assert entry.counts.tolist() == usual.entries[name].counts.tolist()


@pytest.mark.parametrize("rounding", METHODS[:2])
def test_a_matrix_without_a_partner_is_named_and_kept_at_a_safe_type(
    rounding: str, tmp_path: Path
) -> None:
    from tests.streaming.bases import base_file

    directory = tiny_checkpoint(tmp_path, "llama", tied=False)
    base = base_file(directory, tmp_path / "base.gguf")
    tensor = read_container(base).tensors["blk.1.ffn_up.weight"]
    with base.open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(np.float32(7).tobytes())  # as if the converter had changed it
    said: list[str] = []
    progress = bitquilt.Silent()
    progress.say = said.append  # type: ignore[method-assign]
    (made,) = bitquilt.quantize_base(
        directory,
        base=base,
        bits=4,
        output=tmp_path,
        rounding=rounding,
        progress=progress,
        engine_check=False,
        **TEXT,
    )
    assert made.plan.types["blk.1.ffn_up.weight"] == "Q8_0"
    assert made.plan.types["blk.0.ffn_up.weight"] != "Q8_0"
    assert any("importance is unknown: blk.1.ffn_up.weight" in line for line in said)


def test_which_models_go_by_a_base(tmp_path: Path) -> None:
    granite = unknown_checkpoint(tmp_path, "granite")
    assert needs_base(granite)
    config = {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}
    (granite / "config.json").write_text(json.dumps(config))
    assert needs_base(granite)
    assert not needs_base(tiny_checkpoint(tmp_path, "llama4_text"))
    assert not needs_base("demo")


@pytest.mark.parametrize("words", [["--tune"], ["--search", "knapsack"]])
def test_what_has_no_effect_is_refused_before_any_work(words, tmp_path: Path, capsys) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    assert invoke("quantize", directory, "--bits", "6", "-o", tmp_path, *words) == 2
    assert "a converter wrote first is rounded once, without a search" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.gguf"))


def stored_in_fp8(directory: Path) -> None:
    """Store matrices of blocks as FP8 with scales for blocks, as DeepSeek and Qwen publish them."""
    path, found = directory / "model.safetensors", {}
    for name, weight in load_file(path).items():
        if weight.ndim == 2 and ".layers." in name and "gate.weight" not in name:
            codes = (weight.float() * 64).to(torch.float8_e4m3fn)
            found[name] = codes
            grid = [side // 32 for side in weight.shape]
            found[f"{name}_scale_inv"] = torch.full(grid, 1 / 64)
        else:
            found[name] = weight
    save_file(found, path, {"format": "pt"})
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    _add(directory / "config.json", {"quantization_config": settings})


def stored_in_mxfp4(directory: Path) -> None:
    """Store experts as MXFP4, as gpt-oss is published."""
    path, found = directory / "model.safetensors", {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in load_file(path).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = weight.shape
            shape = experts, rows, columns // 32, 16
            blocks = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            found[f"{name}_blocks"] = blocks
            found[f"{name}_scales"] = torch.full(shape[:3], 123, dtype=torch.uint8)
        else:
            found[name] = weight
    save_file(found, path, {"format": "pt"})
    _add(directory / "config.json", {"quantization_config": {"quant_method": "mxfp4"}})


def stored_in_awq(directory: Path) -> None:
    """Store matrices as AWQ, which the converter does not know."""
    store_in_parts(directory, AWQ, random_awq)


def _add(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@needs_converter
@pytest.mark.parametrize(
    ("kind", "store"),
    [("qwen3_moe", stored_in_fp8), ("gpt_oss", stored_in_mxfp4), ("granite", stored_in_awq)],
)
def test_checkpoints_that_are_published_quantized_have_partners_and_logits_too(
    kind: str, store: Callable[[Path], None], tmp_path: Path
) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    store(directory)
    (made,) = bitquilt.quantize_base(
        directory,
        recipe="Q8_0",
        output=tmp_path,
        progress=bitquilt.Silent(),
        engine_check=False,
        **TEXT,
    )
    assert made.plan.without_importance == []
    base = open_base(made.source, directory, bitquilt.Silent())
    assert base.alone == []
    truth = transformers_logits(base.model)
    # llama.cpp rounds activations for MXFP4
    assert kl(truth, llamacpp_logits(made.source)) < 2e-3
    (file,) = made.paths
    assert kl(truth, llamacpp_logits(file)) < 0.05

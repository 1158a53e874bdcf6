"""What inspect says about MobileLLM-R1, and how it says it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from bitquilt.cli.inspect import render
from bitquilt.models import from_config
from bitquilt.models.audit import added_text, audit_template
from bitquilt.models.chat_template import ChatTemplate
from bitquilt.models.inspection import Inspection, inspect, inspection_of
from tests.factories import CHAT_TEMPLATE, tiny_checkpoint
from tests.models.test_canonical import SIZES
from tests.models.tiny_gguf import write_gguf


@pytest.fixture
def mobilellm() -> Inspection:
    return inspection_of(from_config(SIZES["140M"][0], "MobileLLM-R1-140M"))


def test_sizes_by_part(mobilellm: Inspection) -> None:
    parts = {part.name: part for part in mobilellm.parts}
    assert mobilellm.parameters == 140_248_512
    assert mobilellm.bytes == 4 * 140_248_512
    assert parts["embedding"].parameters == 128256 * 576
    assert parts["mlp"].parameters == 15 * 3 * 576 * 2048
    assert parts["norms"].parameters == 31 * 576
    assert parts["head"].parameters == 0
    assert (mobilellm.architecture, mobilellm.canonical_architecture) == ("llama4_text", "qwen3")


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("num_local_experts", "rewrites it as qwen3, which computes the same"),
        ("intermediate_size_mlp", "one SwiGLU of width 2048"),
        ("no_rope_layers", "22 flags for 15 layers"),
        ("attn_scale", "0.1 has no effect"),
        ("num_key_value_heads", "9 query heads share 3 KV heads"),
        ("tie_word_embeddings", "53% of the weights"),
        ("hidden_size", "length (576) is not a multiple of 256"),
    ],
)
def test_findings(mobilellm: Inspection, subject: str, words: str) -> None:
    (message,) = (f.message for f in mobilellm.findings if f.subject == subject)
    assert words in message


def test_findings_stay_away_where_they_do_not_apply() -> None:
    plain = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
    assert from_config(plain, "plain").findings == ()
    (shared,) = from_config({**plain, "num_key_value_heads": 1}, "plain").findings
    assert "8 query heads share 1 KV head, so" in shared.message


def test_a_sliding_window_is_said() -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 1, "sliding_window": 4096}
    subjects = {finding.subject for finding in from_config(config, "m").findings}
    assert "sliding_window" in subjects


@pytest.mark.parametrize(
    ("template", "added"),
    [
        (
            CHAT_TEMPLATE,
            "Please reason step by step, and put your final answer within \\boxed{}.",
        ),
        ("{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}{% endfor %}", ""),
        ("[INST] {{ messages[0].content }} [/INST]", ""),
    ],
)
def test_what_a_template_adds(template: str, added: str) -> None:
    assert added_text(ChatTemplate.compile(template)) == added


def test_templates_missing_or_broken() -> None:
    assert "There is none" in audit_template(None, None)[0].message
    broken = audit_template("{% if %}", "chat_template.jinja")[0].message
    assert "in chat_template.jinja cannot be rendered" in broken


def test_for_people(mobilellm: Inspection) -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(render(mobilellm))
    text = output.getvalue()
    for words in ("MobileLLM-R1-140M", "llama4_text, written as qwen3", "140,248,512", "52.7%"):
        assert words in text
    assert "the embedding" in text


def test_as_json(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, hidden=64, heads=2, layers=1)
    printed = json.loads(json.dumps(inspect(str(directory)).to_dict()))
    assert printed["canonical_architecture"] == "qwen3"
    assert {part["name"] for part in printed["parts"]} >= {"embedding", "attention", "mlp"}


def printed(inspection: Inspection) -> str:
    output = io.StringIO()
    Console(file=output, width=120).print(render(inspection))
    return output.getvalue()


def test_types_are_told_by_bytes_with_llama_cpps_name(mobilellm: Inspection) -> None:
    """A Q4_K_M file of a small model is mostly Q8_0 by bytes: its embedding."""
    shares = {"Q8_0": 0.73, "Q4_K": 0.22, "Q6_K": 0.048, "F32": 0.002}
    types = {qtype: round(share * mobilellm.bytes) for qtype, share in shares.items()}
    found = dataclasses.replace(mobilellm, types=types, file_type="Q4_K_M")
    assert "Q4_K_M: 73% Q8_0, 22% Q4_K, 5% Q6_K of the bytes" in printed(found)
    assert "\nF32\n" in printed(mobilellm).replace(" ", "")


def test_types_of_a_gguf_file(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", hidden=64, heads=2, layers=1)
    path = write_gguf(directory, tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    found = inspect(str(path))
    assert found.file_type == "mostly Q8_0"  # gguf-py states none
    assert list(found.types) == ["Q8_0", "F32"]
    assert sum(found.types.values()) == found.bytes
    assert "mostly Q8_0: 99% Q8_0, 1% F32 of the bytes" in printed(found)


def test_a_model_without_tables_is_shown_by_its_config_and_headers(tmp_path: Path) -> None:
    from tests.bases.models import unknown_checkpoint

    directory = unknown_checkpoint(tmp_path, "granite")
    found = inspect(str(directory))
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert found.parameters == model.num_parameters()
    assert (found.architecture, found.layers, found.hidden_size) == ("granite", 2, 128)
    assert found.types == {"F32": found.bytes}
    assert not found.tied
    (finding,) = found.findings
    assert "bitquilt does not know granite models itself" in finding.message
    assert "mlx-lm (for MLX)" in finding.message


def test_a_config_without_weights_and_tables_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    said = printed(inspect(str(tmp_path)))
    assert "bert · 2 layers\n" in said
    assert "parameters" not in said
    assert re.search(r"weights +There are none here, and bitquilt cannot count them", said)


def test_a_gguf_file_of_an_unknown_architecture_is_shown_by_its_header(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "granitx-Q8_0.gguf"
    writer = GGUFWriter(path, "granitx")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_tensor("token_embd.weight", np.ones((300, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((64, 64), np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    found = inspect(str(path))
    assert (found.name, found.architecture, found.context) == ("granitx", "granitx", 512)
    assert found.parameters == 300 * 64 + 64 + 64 * 64
    assert {part.name: part.tensors for part in found.parts if part.tensors} == {
        **{"embedding": 1, "attention": 1, "norms": 1}
    }
    assert found.tied
    assert "takes GGUF files of any architecture" in found.findings[0].message


def test_packed_matrices_of_mlx_count_the_weights_that_they_hold(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": torch.zeros(8, 64, dtype=torch.bfloat16),
        "model.layers.0.mlp.experts.weight": torch.zeros(3, 8, 64 * 5 // 32, dtype=torch.uint32),
        "model.layers.0.mlp.experts.scales": torch.zeros(3, 8, 2, dtype=torch.bfloat16),
        "model.layers.0.mlp.experts.biases": torch.zeros(3, 8, 2, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"model_type": "granitx", "n_layer": 1, "n_positions": 512, "d_model": 64}
    config["quantization"] = {"group_size": 32, "bits": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect(str(tmp_path))
    assert found.parameters == 8 * 64 + 3 * 8 * 64
    assert found.bytes == sum(one.numel() * one.element_size() for one in tensors.values())
    assert list(found.types) == ["5bit-g32", "BF16"]
    assert (found.layers, found.context, found.hidden_size) == (1, 512, 64)
    assert "mlx-lm runs what is written here" in found.findings[0].message

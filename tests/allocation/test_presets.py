"""Presets, against llama.cpp's own quantizer and mlx-lm's own predicate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitquilt import qtypes
from bitquilt.allocation import presets
from bitquilt.allocation.llama_cpp import LLAMA_CPP
from bitquilt.allocation.preset_names import MLX_MIXED, preset_names
from bitquilt.allocation.presets import preset
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from tests.shapes import shaped_checkpoint

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# What llama_model_quantize answered, with an importance matrix; make_llama_quantize_types.py asks.
ANSWERS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "llama_quantize_types.json").read_text()
)["models"]


def model_like(answer: dict[str, Any]) -> Checkpoint:
    architecture = answer["architecture"]
    sizes = {k: v for k, v in answer.items() if k not in ("architecture", "types")}
    return shaped_checkpoint("gemma3_text" if architecture == "gemma3" else architecture, **sizes)


def expand(table: dict[str, str]) -> dict[str, str]:
    """``{"attn_v": "Q6_K*1 Q4_K*1"}`` → module path → type."""
    types = {}
    for role, runs in table.items():
        blocks = [qtype for run in runs.split() for qtype in _repeat(run)]
        if role in MODULES:
            for layer, qtype in enumerate(blocks):
                types[f"model.layers.{layer}.{MODULES[role]}"] = qtype
        else:
            types[{"token_embd": "model.embed_tokens", "output": "lm_head"}[role]] = blocks[0]
    return types


def _repeat(run: str) -> list[str]:
    qtype, count = run.split("*")
    return [qtype] * int(count)


@pytest.mark.parametrize("name", preset_names("gguf"))
@pytest.mark.parametrize("model", ANSWERS)
def test_gguf_presets_choose_as_llama_quantize_does(model: str, name: str) -> None:
    answer = ANSWERS[model]
    assert preset(name, model_like(answer), "gguf") == expand(answer["types"][name])


def test_llama_quantize_was_asked_about_every_preset() -> None:
    assert all(set(answer["types"]) == set(LLAMA_CPP) for answer in ANSWERS.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 7, 8, 15, 22])
@pytest.mark.parametrize("name", MLX_MIXED)
def test_mixed_presets_choose_as_mlx_lm_does(name: str, layers: int, tied: bool) -> None:
    convert = pytest.importorskip("mlx_lm.convert", reason="mlx-lm is not installed")
    from mlx_lm.models import qwen3

    checkpoint = shaped_checkpoint(
        layers=layers, heads=2, kv_heads=1, head_dim=32, width=64, mlp=64, tied=tied, vocabulary=64
    )
    fields = checkpoint.config | {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
    }
    model = qwen3.Model(qwen3.ModelArgs.from_dict(fields))
    predicate = convert.mixed_quant_predicate_builder(name, model, 64)
    modules = dict(model.named_modules())
    asked = {module: predicate(module, modules[module]) for module in checkpoint.matrices}
    expected = {m: f"{answer['bits']}bit-g{answer['group_size']}" for m, answer in asked.items()}
    assert preset(name, checkpoint, "mlx") == expected


def test_uniform_mlx_presets_are_every_affine_qtype() -> None:
    uniform = [name for name in preset_names("mlx") if name not in MLX_MIXED]
    assert uniform == [name for name in qtypes.names("mlx") if "bit-g" in name]
    assert len(uniform) == 18
    checkpoint = shaped_checkpoint(tied=False)
    for name in uniform:
        assert preset(name, checkpoint, "mlx") == dict.fromkeys(checkpoint.matrices, name)


def test_names_that_are_known_beforehand_are_those_of_the_rules() -> None:
    assert [*presets.PRESETS["llama.cpp"]] == preset_names("gguf")
    assert [*presets.PRESETS["mlx-lm"]] == preset_names("mlx")


def test_an_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r'no preset "Q4_K_XL" for gguf.*Q4_K_M.*path of a recipe'):
        preset("Q4_K_XL", shaped_checkpoint(), "gguf")
    with pytest.raises(UserError, match=r'no preset "Q4_K_M" for mlx.*4bit-g64.*mixed_3_6'):
        preset("Q4_K_M", shaped_checkpoint(), "mlx")


def test_a_preset_that_the_width_cannot_take_is_refused() -> None:
    narrow = shaped_checkpoint(width=576, heads=9, kv_heads=3)
    with pytest.raises(UserError, match=r"4bit-g128 asks .* rows of 576 .*4bit-g64"):
        preset("4bit-g128", narrow, "mlx")
    with pytest.raises(UserError, match=r"Q4_K_M asks for Q8_0 .* rows of 80"):
        preset("Q4_K_M", shaped_checkpoint(width=80), "gguf")

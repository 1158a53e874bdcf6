"""Rewrites are exact, and whatever has no exact rewrite is refused by name."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from bitquilt.errors import UnknownFamilyError, UserError
from bitquilt.models import from_config, open_checkpoint
from bitquilt.models.canonical import has_tables, who_lacks_tables
from tests.factories import FAMILIES, tiny_checkpoint
from tests.models.reference import canonical_logits, original_logits

MOBILELLM = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "attention_bias": False,
    "attention_chunk_size": 32768,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "floor_scale": 8192,
    "head_dim": 64,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 0,
    "intermediate_size": 8192,
    "max_position_embeddings": 32768,
    "moe_layers": [],
    "no_rope_layers": [1] * 22,
    "num_experts_per_tok": 0,
    "num_local_experts": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 8000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_qk_norm": True,
    "vocab_size": 128256,
}
"""The fields that facebook/MobileLLM-R1 publishes, sizes aside."""


def mobilellm(layers: int, heads: int, kv: int, width: int, mlp: int) -> dict[str, Any]:
    return {
        **MOBILELLM,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": width,
        "intermediate_size_mlp": mlp,
    }


SIZES = {
    "140M": (mobilellm(15, 9, 3, 576, 2048), 140_248_512),
    "360M": (mobilellm(15, 16, 4, 1024, 4096), 359_000_000),
    "950M": (mobilellm(22, 24, 6, 1536, 6144), 949_000_000),
}
SMALL = SIZES["140M"][0]
LONG_ROPE = {
    **{"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 512},
    **{"short_factor": [1.0] * 64, "long_factor": [2.0] * 64},
}
EXPERTS = {"moe_layers": None, "num_local_experts": 16, "interleave_moe_layer_step": 1}


@pytest.mark.parametrize(
    ("tied", "qk_norm", "hidden"), list(itertools.product((True, False), (True, False), (576, 256)))
)
def test_llama4_computes_the_same(tmp_path: Path, tied: bool, qk_norm: bool, hidden: int) -> None:
    directory = tiny_checkpoint(tmp_path, tied=tied, qk_norm=qk_norm, hidden=hidden)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config["model_type"] == ("qwen3" if qk_norm else "llama")
    difference = canonical_logits(checkpoint) - original_logits(directory)
    assert difference.abs().max() <= 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llama4_text"])
def test_the_others_pass_through(tmp_path: Path, family: str, tied: bool) -> None:
    directory = tiny_checkpoint(tmp_path, family, tied=tied, hidden=640)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config["model_type"] == family
    assert checkpoint.tied == tied
    difference = canonical_logits(checkpoint) - original_logits(directory)
    assert difference.abs().max() <= 1e-4


def test_the_comparison_would_notice(tmp_path: Path) -> None:
    """Rows left in their order put the logits far off, so the tolerance above means something."""
    directory = tiny_checkpoint(tmp_path)
    checkpoint = open_checkpoint(directory)
    stored = load_file(directory / "model.safetensors")
    q = "model.layers.1.self_attn.q_proj.weight"
    wrong = dataclasses.replace(
        checkpoint, reader=lambda name: stored[q] if name == q else checkpoint.load(name)
    )
    assert (canonical_logits(wrong) - original_logits(directory)).abs().max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_mobilellm_sizes(size: str) -> None:
    config, parameters = SIZES[size]
    checkpoint = from_config(config, f"MobileLLM-R1-{size}")
    counted = sum(
        math.prod(shape)
        for name, shape in checkpoint.shapes.items()
        if checkpoint.source_bytes[name]
    )
    if size == "140M":
        assert counted == parameters
    assert abs(counted - parameters) < 1_000_000
    assert checkpoint.layers == config["num_hidden_layers"]
    assert len(checkpoint.matrices) == 7 * checkpoint.layers + 1
    assert checkpoint.source_dtype == "F32"
    with pytest.raises(UserError, match="config without weights"):
        checkpoint.load("model.norm.weight")


def test_matrices_are_listed_once() -> None:
    checkpoint = from_config(SMALL, "m")
    assert checkpoint.matrices is checkpoint.matrices


def test_matrices_come_in_model_order() -> None:
    matrices = list(from_config({**SMALL, "tie_word_embeddings": False}, "m").matrices)
    assert matrices[0] == "model.embed_tokens"
    assert matrices[-1] == "lm_head"
    blocks = [int(name.split(".")[2]) for name in matrices[1:-1]]
    assert blocks == sorted(blocks)


def test_rope_is_stated_in_both_ways() -> None:
    """Engines read the old place or the new one; see DESIGN's config traps."""
    for config in (SMALL, {**SMALL, "use_qk_norm": False}):
        canonical = from_config(config, "m").config
        assert canonical["rope_theta"] == 8_000_000.0
        assert canonical["rope_parameters"]["rope_theta"] == 8_000_000.0
        assert canonical["rope_scaling"] is None
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    llama = from_config(
        {
            "model_type": "llama",
            "num_hidden_layers": 1,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": scaling,
        },
        "m",
    ).config
    assert "rope_theta" not in scaling, "the config that was passed stays as it was"
    assert llama["rope_scaling"] == scaling
    assert llama["rope_parameters"] == {**scaling, "rope_theta": 500000.0}


def test_a_canonical_config_is_a_fixed_point() -> None:
    canonical = from_config(SMALL, "m").config
    assert from_config(canonical, "m").config == canonical
    assert json.loads(json.dumps(canonical)) == canonical


@pytest.mark.parametrize(
    "change",
    [
        {"moe_layers": None},
        {"moe_layers": None, "interleave_moe_layer_step": 0},
        {"no_rope_layers": [], "no_rope_layer_interval": 99},
        {"attention_chunk_size": None},
        {"num_local_experts": 16},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 8e6}},
    ],
)
def test_configs_that_mean_the_same(change: dict[str, Any]) -> None:
    changed = {k: v for k, v in {**SMALL, **change}.items() if v is not None or k in change}
    if changed["rope_theta"] is None:
        del changed["rope_theta"]
    assert from_config(changed, "m").config == from_config(SMALL, "m").config


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"moe_layers": [1, 3]}, "moe_layers"),
        (
            {"moe_layers": None, "num_local_experts": 16, "interleave_moe_layer_step": 1},
            "moe_layers",
        ),
        ({"no_rope_layers": []}, "no_rope_layers"),
        ({"no_rope_layers": [1] * 14 + [0]}, "no_rope_layers"),
        ({"no_rope_layers": [1] * 3}, "no_rope_layers"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization_config"),
        ({"model_type": "phi3"}, "model_type phi3"),
        ({"model_type": "llama4"}, "model_type llama4"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
    ],
)
def test_what_is_not_exact_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field):
        from_config({**SMALL, **change}, "m")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act"),
        (
            {"model_type": "gemma3_text", "layer_types": ["full_attention"] * 26},
            "layer_types",
        ),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 168}, "query_pre_attn_scalar"),
        ({"model_type": "llama", "rope_scaling": LONG_ROPE}, "rope_parameters"),
        (
            {
                **{"model_type": "llama", "hidden_act": "gelu"},
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            },
            "hidden_act",
        ),
        ({**SMALL, **EXPERTS, "hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_family_conditions(config: dict[str, Any], field: str) -> None:
    assert has_tables(config)
    with pytest.raises(UserError, match=field) as refused:
        from_config(config, "m")
    assert not isinstance(refused.value, UnknownFamilyError)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({**SMALL, **EXPERTS}, r"llama4_text models with moe_layers = \[0, "),
        ({**SMALL, **EXPERTS, "no_rope_layers": []}, r"llama4_text models with moe_layers"),
        (
            {
                "model_type": "qwen3",
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            },
            r"qwen3 models with rope_parameters = \{",
        ),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4},
            },
            r"llama models with rope_parameters = \{",
        ),
        (
            {"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
            r"gemma3_text models with final_logit_softcapping = 30\.0",
        ),
    ],
)
def test_what_only_converters_write_goes_by_a_base(config: dict[str, Any], what: str) -> None:
    assert not has_tables(config)
    assert re.search(f"bitquilt does not know {what}.* itself$", who_lacks_tables(config))
    with pytest.raises(UnknownFamilyError, match=f"{what}.* use `bitquilt quantize`"):
        from_config(config, "m")

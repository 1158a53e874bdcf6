"""Tiny random checkpoints of many types, for llama.cpp's converter."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from bitquilt.bases.converter import find_converter
from tests.factories import VOCABULARY, tiny_tokenizer

needs_converter = pytest.mark.skipif(
    find_converter() is None, reason="llama.cpp's converter is not installed; see CONTRIBUTING.md"
)

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": VOCABULARY - 6,
    "eos_token_id": VOCABULARY - 5,
    "pad_token_id": VOCABULARY - 5,
}
_LARGER = {"vocab_size": VOCABULARY + 32}
"""For tokenizers to which something is added."""
_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 64}
_SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "head_dim": 32,
}
_TIED = {"tie_word_embeddings": True}
_GEMMA = {**_SLIDING, **_TIED, "query_pre_attn_scalar": 32}
# one layer in six has full attention: llama.cpp reads it in no file
_GEMMA_3 = {
    "head_dim": 32,
    "num_hidden_layers": 6,
    "sliding_window": 16,
    **_TIED,
    "query_pre_attn_scalar": 32,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_n_groups": 1}
_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
_LATENT = {
    **{"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32},
    **{"v_head_dim": 32, "num_key_value_heads": 4},
}
_ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 64},
}
_GPT2 = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 512}
_STATES = {"state_size": 16, "time_step_rank": 8, "intermediate_size": 256}
# llama.cpp reads an MLP as wide as its stream the wrong way round
_VISION = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
_IDEFICS = {
    "text_config": {"model_type": "llama", **_SHARED},
    "vision_config": _VISION,
    **{"scale_factor": 2, "image_token_id": 5, "tie_word_embeddings": False},
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "ministral3": {"head_dim": 32},
    "mistral3": {
        "text_config": {"model_type": "ministral3", **_SHARED, "head_dim": 32},
        "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 32},
        "tie_word_embeddings": False,
    },
    "qwen2": _LARGER,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 96},
    "qwen2_5_vl": {
        "text_config": {
            **{"model_type": "qwen2_5_vl_text", **_SHARED},
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 1e6},
                "mrope_section": [4, 6, 6],
            },
        },
        "vision_config": {
            **{"hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 14},
            **{"out_hidden_size": 128, "fullatt_block_indexes": [0]},
            "depth": 3,  # the converter knows a merger's matrix 2 only where there is a block 2
        },
    },
    "qwen3": {"head_dim": 32},
    # as published ones have it; llama.cpp reads no such key of qwen3moe
    "qwen3_moe": {**_EXPERTS, "head_dim": 64, "norm_topk_prob": True},
    "qwen3_next": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_5_text": {**_DELTA, **_LARGER},
    "qwen3_5_moe_text": {
        **{**_DELTA, **_EXPERTS, **_LARGER},
        "shared_expert_intermediate_size": 64,
    },
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA_3,
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **_SHARED, **_GEMMA_3},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": True,
    },
    "gemma3n_text": {
        **{"head_dim": 32, "num_hidden_layers": 30, "sliding_window": 16, **_TIED},
        # all as in E2B, because llama.cpp reads it in no file
        **{"num_kv_shared_layers": 10, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20},
        **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": VOCABULARY},
        "laurel_rank": 64,
    },
    "gemma4_text": {
        **{"head_dim": 32, "global_head_dim": 64, "num_hidden_layers": 6, **_TIED},
        **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": VOCABULARY},
        **{"sliding_window": 16, "num_kv_shared_layers": 0},
        "final_logit_softcapping": 30.0,  # as all have; llama.cpp has it without being told
    },
    "smollm3": {"num_hidden_layers": 4},
    "granite": {},
    "granitemoehybrid": {
        **_MAMBA,
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "mamba_expand": 2},
        "shared_intermediate_size": 96,
        "layer_types": ["mamba", "attention"],
        "position_embedding_type": "nope",  # as Granite 4.0's
    },
    "phi3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 16, "num_hidden_layers": 4},
    "olmoe": {**_EXPERTS, "num_key_value_heads": 4},
    "lfm2": {
        **{"block_ff_dim": 192, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
        "layer_types": ["conv", "full_attention"],
    },
    "gpt_oss": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "ernie4_5": {"head_dim": 32},
    "glm4": {"head_dim": 32, **_LARGER},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},  # as 1.2B
    "seed_oss": {"head_dim": 32},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 256, "head_dim": 32},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        **{"mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 32, "n_groups": 1},
        **{"n_routed_experts": 4, "moe_intermediate_size": 64, "head_dim": 32},
        "moe_shared_expert_intermediate_size": 96,
    },
    "nemotron": {},
    "starcoder2": {},
    "stablelm": {},
    "cohere2": {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, **_TIED},
    "apertus": {},
    "arcee": {},
    "hunyuan_v1_dense": {"head_dim": 32},
    "phi": {"num_key_value_heads": 4, "intermediate_size": 512},  # the converter knows no others
    # those that nothing was written or mended for
    "cohere": _TIED,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2_moe": {
        **{**_EXPERTS, **_TIED, "num_dense_layers": 1},
        "layer_types": ["conv", "full_attention"],
    },
    "jais2": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "granitemoeshared": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 96},
    },
    "gpt_neox": {},
    "deepseek_v2": {
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_routed_experts": 4},
        **{"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
        **{"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32},
        **{"v_head_dim": 32, "num_key_value_heads": 4, "topk_method": "greedy"},
    },
    "dots1": {
        **{**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
        **{"n_group": 1, "topk_group": 1, "head_dim": 32, "norm_topk_prob": True},
        **{"num_key_value_heads": 4, "sliding_window": None},
    },
    "ernie4_5_moe": {
        # the converter takes an MLP's width over the KV heads for that of shared experts
        **{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 96},
        **{"moe_num_shared_experts": 1, "moe_layer_start_index": 1, "head_dim": 32},
    },
    "glm4_moe": {
        **{**_EXPERTS, **_LARGER, "n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 32},
        **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    },
    "exaone": {"head_dim": 32},
    "cohere2_moe": {
        **{"num_experts_per_tok": 2, "num_experts": 4, "num_shared_experts": 1},
        **{"head_dim": 32, "sliding_window": 16},
    },
    "internlm3": {"head_dim": 32},
    "iquestcoder": {"head_dim": 32},
    "gemma": {"head_dim": 32, **_TIED},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, **_TIED},
    "minicpm3": {**_LATENT, **_TIED, "head_dim": 32},
    "youtu": {**_LATENT, **_TIED},
    "helium": {"head_dim": 32},
    "laguna": {
        **{**_EXPERTS, **_SLIDING, "shared_expert_intermediate_size": 64},
        **{"num_attention_heads_per_layer": [4, 4], "mlp_layer_types": ["dense", "sparse"]},
    },
    "mellum": {
        **{**_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 64, "mlp_layer_types": ["sparse", "sparse"]},
    },
    "mamba": _STATES,
    "falcon_mamba": _STATES,
    "llava": {
        "text_config": {"model_type": "llama", **_SHARED},
        "vision_config": {"model_type": "clip_vision_model", **_VISION},
        **{"image_token_index": 5, "tie_word_embeddings": False},
    },
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    # and those that nobody had looked at
    "gpt2": {**_GPT2, **_TIED},
    "gpt_bigcode": {**_GPT2, **_TIED},
    "olmo": {},
    "mamba2": {
        **{"num_heads": 8, "head_dim": 32, "state_size": 32, "n_groups": 1, "expand": 2},
        "intermediate_size": 256,
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "glm": {"head_dim": 32, **_LARGER},
    "deepseek_v3": {**_LATENT, **_ROUTED, "first_k_dense_replace": 1},
    "glm4_moe_lite": {
        **{**_LATENT, **_ROUTED, **_LARGER},
        "mlp_layer_types": ["dense", "sparse"],
    },
}
"""model_type → fields of its config, beside those that all have."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "phi": {"partial_rotary_factor": 0.5},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "ME*E"},
    "gemma4_text": {"global_head_dim": 64},
    "cohere2": {"rotary_pct": 1.0},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {"partial_rotary_factor": 0.5},
    "dots1": {"scoring_func": "sigmoid"},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "glm4_moe_lite": {"first_k_dense_replace": 1, "scoring_func": "sigmoid"},
    "gpt_neox": {"rotary_pct": 0.25},
    "lfm2": {"block_dim": 128},
    "qwen3_moe": {"num_experts": 4},
    "olmo3": {"rope_theta": 500_000.0},
    "exaone4": {"head_dim": 32, "rope_scaling": None},
    "apertus": {
        **{"mlp_bias": False, "post_norm": False, "qk_norm": True},
        "rope_scaling": {
            **{"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
            **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
        },
    },
    "qwen3_next": {"num_experts": 4, "partial_rotary_factor": 0.25},
    "stablelm": {"partial_rotary_factor": 0.25},
}
"""model_type → fields that published configs have, where transformers saves others."""
SENTENCEPIECE = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"), False),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "internlm3", "minicpm3", "nemotron"), True),
}
"""Types whose tokenizer the converter reads from tokenizer.model → whether a space goes before all
text there."""


def unknown_checkpoint(
    tmp_path: Path, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a random checkpoint with its tokenizer under ``tmp_path`` and return its directory."""
    # llama.cpp looks for special tokens in what is named phi-3
    directory = tmp_path / ("phi-4" if kind == "phi3" else kind)
    fields = TYPES[kind] if "text_config" in TYPES[kind] else {**_SHARED, **TYPES[kind]}
    config = AutoConfig.for_model(kind, **fields)
    torch.manual_seed(seed)
    known = type(config) in AutoModelForCausalLM._model_mapping
    auto = AutoModelForCausalLM if known else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(directory)
    _tokenizer(kind).save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text("utf-8"))
    theta = written.get("rope_parameters", {}).get("rope_theta")
    published = {} if theta is None else {"rope_theta": theta}  # where transformers had it before
    _edit(directory / "config.json", published | PUBLISHED.get(kind, {}))
    if kind == "phi3":  # as Phi-4-mini has it; others have a tokenizer.model
        _edit(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    if kind == "gemma3n_text":
        _add_shared_keys(directory / "model.safetensors")
    if kind in SENTENCEPIECE:
        (directory / "tokenizer.model").write_bytes(_pieces(SENTENCEPIECE[kind]))
    return directory


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with what the converter asks of a type's."""
    if kind == "gemma4_text":
        return _byte_fallback()
    if kind in SENTENCEPIECE:
        return _of_pieces(SENTENCEPIECE[kind])
    tokenizer = copy.deepcopy(tiny_tokenizer())
    if kind in ("glm", "glm4", "glm4_moe", "glm4_moe_lite"):
        marks = ["<|endoftext|>", "<|user|>", "<|observation|>", "[gMASK]"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def _byte_fallback() -> PreTrainedTokenizerFast:
    """Gemma 4's kind: BPE over characters, with spaces as U+2581, and bytes for what is unknown."""
    tokenizer = _over_characters()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([inspect.getsource(textwrap)], trainer)
    content = json.loads(tokenizer.to_str())
    # bytes are tokens like others, which text does not name
    content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] < len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    _begin_with(tokenizer, "<bos>")
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _over_characters(**vocabulary: Any) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>", **vocabulary)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _begin_with(tokenizer: Tokenizer, bos: str) -> None:
    """Put a token before each text, as llama.cpp does."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def _of_pieces(spaced: bool) -> PreTrainedTokenizerFast:
    """The tokenizer.json of :func:`_pieces`: what makes a piece is merged in the pieces' order."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=_pieces(spaced))
    vocabulary = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=lambda one: -pieces.get_score(vocabulary[one]))
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = _over_characters(vocab=vocabulary, merges=merges)
    if spaced:
        prefix = normalizers.Prepend("\u2581")
        tokenizer.normalizer = normalizers.Sequence([prefix, tokenizer.normalizer])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    _begin_with(tokenizer, "<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _add_shared_keys(path: Path) -> None:
    """Add what published files of Gemma 3n have, llama.cpp asks for, and nobody reads."""
    tensors = load_file(path)
    for name in [name for name in tensors if ".layers.0." in name and re.search(r"\.[kv]_", name)]:
        for layer in range(20, 30):
            other = name.replace(".layers.0.", f".layers.{layer}.")
            tensors.setdefault(other, torch.zeros_like(tensors[name]))
    save_file(tensors, path, {"format": "pt"})


def _edit(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")


@functools.cache
def _pieces(spaced: bool) -> bytes:
    """A tokenizer.model of a few hundred pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(inspect.getsource(textwrap).splitlines()),
        model_writer=written,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=spaced,
        remove_extra_whitespaces=False,
        bos_id=_SHARED["bos_token_id"],
        eos_id=_SHARED["eos_token_id"],
        minloglevel=2,
    )
    return written.getvalue()

"""Configs of tiny models of many types, as published ones have them."""

from __future__ import annotations

from typing import Any

from tests.bases.newer_types import NEWER_TYPES, PUBLISHED_NEWER
from tests.bases.shared_fields import DELTA, LARGER, SHARED, VISION
from tests.factories import VOCABULARY

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
_LATENT = {
    **{"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32},
    **{"v_head_dim": 32, "num_key_value_heads": 4},
}
_ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 64},
}
_GPT2 = {
    **{"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 512},
    "max_position_embeddings": 64,  # their table stays in float32
}
_STATES = {"state_size": 16, "time_step_rank": 8, "intermediate_size": 256}
_IDEFICS = {
    "text_config": {"model_type": "llama", **SHARED},
    "vision_config": VISION,
    **{"scale_factor": 2, "image_token_id": 5, "tie_word_embeddings": False},
}
_QWEN_VISION = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "patch_size": 14},
    **{"out_hidden_size": 128, "depth": 3},
}
_ROTATED_IN_THREE = {
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 1e6},
        "mrope_section": [4, 6, 6],
    },
}
_ROTATED_IN_TURNS = {
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True},
        # others than those of published ones llama.cpp does not rotate all of
        "mrope_section": [6, 5, 5],
    },
}
_HALF_ROTATED = {
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "mrope_section": [2, 3, 3],
    },
}
_INDEXED = {
    **{"index_topk": 2048, "index_head_dim": 64, "index_n_heads": 2},
    "first_k_dense_replace": 1,
}
_FULL = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
_LFM2 = {
    **{"block_ff_dim": 192, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
    "layer_types": ["conv", "full_attention"],
}
_GEMMA_4 = {
    **{"head_dim": 32, "global_head_dim": 64, "num_hidden_layers": 6, **_TIED},
    **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": VOCABULARY},
    **{"sliding_window": 16, "num_kv_shared_layers": 0},
    "final_logit_softcapping": 30.0,  # as all have; llama.cpp has it without being told
}
_GLM_MOE = {
    **{**_EXPERTS, **LARGER, "n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 32},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
# every fourth layer without RoPE, which llama.cpp reads in no file
_LLAMA_4 = {
    **{"intermediate_size_mlp": 192, "head_dim": 32, "num_hidden_layers": 4},
    **{"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2},
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 32, "sliding_window": None},
    "ministral3": {"head_dim": 32},
    "mistral3": {
        "text_config": {"model_type": "ministral3", **SHARED, "head_dim": 32},
        "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 32},
        "tie_word_embeddings": False,
    },
    "qwen2": LARGER,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 96},
    "qwen2_5_vl": {
        "text_config": {
            **{"model_type": "qwen2_5_vl_text", **SHARED},
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
    "qwen3_next": {**DELTA, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_5_text": {**DELTA, **LARGER},
    "qwen3_5_moe_text": {
        **{**DELTA, **_EXPERTS, **LARGER},
        "shared_expert_intermediate_size": 64,
    },
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA_3,
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **SHARED, **_GEMMA_3},
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
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
    "gemma4_text": _GEMMA_4,
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
    "lfm2": _LFM2,
    "gpt_oss": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "ernie4_5": {"head_dim": 32},
    "glm4": {"head_dim": 32, **LARGER},
    "exaone4": _FULL,  # as 1.2B
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
    "glm4_moe": _GLM_MOE,
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
        "text_config": {"model_type": "llama", **SHARED},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
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
    "glm": {"head_dim": 32, **LARGER},
    "deepseek_v3": {**_LATENT, **_ROUTED, "first_k_dense_replace": 1},
    "glm4_moe_lite": {
        **{**_LATENT, **_ROUTED, **LARGER},
        "mlp_layer_types": ["dense", "sparse"],
    },
    # and those of which many are asked for in 2026
    "qwen2_vl": {
        "text_config": {"model_type": "qwen2_vl_text", **SHARED, **_ROTATED_IN_THREE},
        "vision_config": {
            **{"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2, "num_heads": 2},
            **{"patch_size": 14, "depth": 3},
        },
    },
    "qwen3_vl": {
        "text_config": {
            **{"model_type": "qwen3_vl_text", **SHARED, **_ROTATED_IN_TURNS, "head_dim": 32},
        },
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_vl_moe": {
        "text_config": {
            **{"model_type": "qwen3_vl_moe_text", **SHARED, **_EXPERTS, **_ROTATED_IN_TURNS},
            # transformers tells by the sides whether stacks are turned round
            **{"head_dim": 32, "moe_intermediate_size": 96},
        },
        "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5": {
        "text_config": {"model_type": "qwen3_5_text", **SHARED, **DELTA, **LARGER},
        "vision_config": {**_QWEN_VISION, "depth": 2},
    },
    "qwen3_5_moe": {
        "text_config": {
            **{"model_type": "qwen3_5_moe_text", **SHARED, **DELTA, **_EXPERTS, **LARGER},
            "shared_expert_intermediate_size": 64,
        },
        "vision_config": {**_QWEN_VISION, "depth": 2},
    },
    "gemma4": {"text_config": {"model_type": "gemma4_text", **SHARED, **_GEMMA_4}, **_TIED},
    "lfm2_vl": {
        "text_config": {"model_type": "lfm2", **SHARED, **_LFM2},
        "vision_config": {"model_type": "siglip2_vision_model", **VISION, "num_patches": 16},
        **{"image_token_id": 5, "tie_word_embeddings": True},
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **SHARED, **LARGER},
        "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        **{"image_token_id": 5, "tie_word_embeddings": False},
    },
    "exaone4_5": {
        "text_config": {"model_type": "exaone4", **SHARED, **_FULL},
        "vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [0]},
    },
    "glm4v": {
        "text_config": {"model_type": "glm4v_text", **SHARED, **LARGER, **_HALF_ROTATED},
        "vision_config": {**_QWEN_VISION, "image_size": 28},
    },
    "glm4v_moe": {
        "text_config": {"model_type": "glm4v_moe_text", **SHARED, **_GLM_MOE, **_HALF_ROTATED},
        "vision_config": {**_QWEN_VISION, "image_size": 28},
    },
    "glm_ocr": {
        "text_config": {
            **{"model_type": "glm_ocr_text", **SHARED, **LARGER, "head_dim": 32},
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
                "mrope_section": [4, 6, 6],
            },
        },
        "vision_config": {**_QWEN_VISION, "image_size": 28},
    },
    "paddleocr_vl": {
        "text_config": {
            **{"model_type": "paddleocr_vl_text", **SHARED, **_ROTATED_IN_THREE, "head_dim": 32},
        },
        "vision_config": VISION,
    },
    "afmoe": {
        **{**_EXPERTS, "head_dim": 32, "num_dense_layers": 1, "num_shared_experts": 1},
        **{"num_hidden_layers": 4, "sliding_window": 16, "mup_enabled": True},
    },
    "exaone_moe": {
        **{**_EXPERTS, "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16},
        **{"num_shared_experts": 1, "first_k_dense_replace": 1},
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "minimax_m2": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    "solar_open": {**LARGER, **_ROUTED, "head_dim": 32},
    "jamba": {
        **{"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2},
        **{"attn_layer_period": 4, "attn_layer_offset": 2, "mamba_dt_rank": 8},
        "use_mamba_kernels": False,
    },
    "dbrx": {
        **{"d_model": 128, "n_heads": 4, "n_layers": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            **{"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 128},
        },
    },
    "kimi_linear": {
        **{**_LATENT, "q_lora_rank": None, "num_hidden_layers": 4, "num_experts": 4},
        **{"num_experts_per_token": 2, "moe_intermediate_size": 64, "num_shared_experts": 1},
        **{"linear_head_dim": 32, "linear_num_heads": 4, "mlp_layer_types": ["sparse"] * 4},
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "deepseek_v32": {**_LATENT, **_ROUTED, **_INDEXED, "mlp_layer_types": ["dense", "sparse"]},
    "glm_moe_dsa": {
        **{**_LATENT, **_ROUTED, **_INDEXED, **LARGER, "mlp_layer_types": ["dense", "sparse"]},
    },
    "sarvam_mla": {**_LATENT, **_ROUTED, "q_lora_rank": None, "first_k_dense_replace": 1},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 32},
    "hy_v3": {
        **{**_EXPERTS, "head_dim": 32, "num_shared_experts": 1},
        "mlp_layer_types": ["dense", "sparse"],
    },
    "bitnet": _TIED,
    "llama4_text": _LLAMA_4,
    "llama4": {
        "text_config": {"model_type": "llama4_text", **SHARED, **_LLAMA_4},
        "vision_config": {
            **{**VISION, "projector_input_dim": 64, "projector_output_dim": 64},
            **{"vision_output_dim": 64, "pixel_shuffle_ratio": 0.5},
        },
        "tie_word_embeddings": False,
    },
    **NEWER_TYPES,
}
"""model_type → fields of its config, beside those that all have."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "phi": {"partial_rotary_factor": 0.5},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "ME*E"},
    "gemma4_text": {"global_head_dim": 64},
    "gemma4": {"text_config": {"global_head_dim": 64}},
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
    "afmoe": {"route_norm": True},
    "bamba": {"attn_rotary_emb": 16},
    "exaone_moe": {"scoring_func": "sigmoid", "is_moe_layer": [False, True, True, True]},
    "minimax_m2": {"rotary_dim": 32, "scoring_func": "sigmoid", "shared_intermediate_size": 0},
    "solar_open": {"first_k_dense_replace": 0, "partial_rotary_factor": 1.0},
    "hunyuan_v1_moe": {
        **{"moe_intermediate_size": [192] * 2, "moe_topk": [2] * 2},
        "num_shared_expert": [1] * 2,
    },
    "kimi_linear": {
        "linear_attn_config": {
            **{"full_attn_layers": [2, 4], "kda_layers": [1, 3], "head_dim": 32},
            **{"num_heads": 4, "short_conv_kernel_size": 4},
        },
        **{"first_k_dense_replace": 0, "moe_router_activation_func": "sigmoid"},
        "rope_theta": 10000.0,
    },
    "qwen3_next": {"num_experts": 4, "partial_rotary_factor": 0.25},
    "stablelm": {"partial_rotary_factor": 0.25},
    **PUBLISHED_NEWER,
}
"""model_type → fields that published configs have, where transformers saves others."""
SENTENCEPIECE = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"), False),
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "internlm3", "minicpm3", "nemotron"), True),
    **dict.fromkeys(("bitnet", "jamba", "paddleocr_vl", "phimoe"), True),
    "paligemma": False,
}
"""Types whose tokenizer the converter reads from tokenizer.model → whether a space goes before all
text there."""

"""Configs of tiny models of types that were added in autumn 2026; see :mod:`.model_types`."""

from __future__ import annotations

from typing import Any

from tests.bases.shared_fields import DELTA, LARGER, SHARED, VISION
from tests.bases.wrapped_types import WRAPPED_TYPES

_ROUTED = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "moe_intermediate_size": 64,
}
_IN_TURNS = {
    **{"num_hidden_layers": 4, "sliding_window": 16, "head_dim": 32},
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}
_CODEBOOK = {
    **{"base_channels": 32, "latent_channels": 32, "channel_multiplier": [1, 1]},
    "num_res_blocks": 1,
}
_WIDE_VISION = {**VISION, "num_hidden_layers": 2}
NEWER_TYPES: dict[str, dict[str, Any]] = {
    "mimo_v2_flash": {**_ROUTED, **_IN_TURNS, "head_dim": 48, "v_head_dim": 32},
    "sarvam_moe": {**_ROUTED, "n_shared_experts": 1, "head_dim": 32},
    "janus": {
        "text_config": {"model_type": "llama", **SHARED},
        "vision_config": {
            **{**VISION, "image_size": 32, "patch_size": 16},
            **{"projection_dim": 128, "num_image_tokens": 4},
        },
        "vq_config": {
            **{**_CODEBOOK, "num_embeddings": 64, "projection_dim": 128},
            "image_token_embed_dim": 128,
        },
        **{"image_token_id": 5, "tie_word_embeddings": False},
    },
    "hunyuan_vl": {
        "text_config": {
            **{"model_type": "hunyuan_vl_text", **SHARED, "head_dim": 32},
            "rope_parameters": {
                **{"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0},
                "mrope_section": [4, 4, 4, 4],
            },
        },
        "vision_config": {
            **{**VISION, "patch_size": 16, "out_hidden_size": 128, "text_hidden_size": 128},
        },
        **{"image_token_id": 5, "tie_word_embeddings": False},
    },
    "granite4_vision": {
        "text_config": {
            **{"model_type": "granite4_vision_text", **SHARED},
            "architectures": ["GraniteForCausalLM"],
        },
        "vision_config": {"model_type": "clip_vision_model", **_WIDE_VISION},
        "qformer_config": {
            **{**VISION, "model_type": "blip_2_qformer", "encoder_hidden_size": 64},
        },
        **{"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": []},
        **{"downsample_rate": "1/2", "vision_feature_layer": -1},
        **{"image_grid_pinpoints": [[28, 28]], "image_token_index": 5},
        "tie_word_embeddings": False,
    },
    "minicpmv4_6": {
        "text_config": {"model_type": "qwen3_5_text", **SHARED, **DELTA, **LARGER},
        "vision_config": {**_WIDE_VISION, "insert_layer_id": 0},
        **{"insert_layer_id": 0, "image_size": 28, "patch_size": 14},
        "tie_word_embeddings": False,
    },
    "step3p7": {
        "text_config": {
            **{"model_type": "step3p5", **SHARED, **LARGER, **_ROUTED, **_IN_TURNS},
            **{"share_expert_dim": 64, "num_sliding_attention_heads": 4},
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part}
                for kind, part in (("full_attention", 0.5), ("sliding_attention", 1.0))
            },
        },
        "vision_config": {"model_type": "step3p5_vision", **VISION},
        **{"image_token_id": 5, "tie_word_embeddings": False},
    },
    "minimax_m3_vl": {
        "text_config": {
            **{"model_type": "minimax_m3_vl_text", **SHARED, "head_dim": 32, "rotary_dim": 32},
            **{"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
            **{"dense_intermediate_size": 192, "shared_intermediate_size": 64},
            "mlp_layer_types": ["dense", "sparse"],
            "layer_types": ["full_attention"] * 2,
        },
        "vision_config": {"model_type": "minimax_m3_vl_vision", **VISION},
        **{"image_token_index": 5, "video_token_index": 6, "projector_hidden_size": 128},
        **{"merged_hidden_size": 512, "tie_word_embeddings": False},
    },
    "chameleon": {
        # llama.cpp takes tokens 4 to 8195 for those of images
        **{"vocab_size": 8704, "num_key_value_heads": 4},
        "vq_config": {**_CODEBOOK, "embed_dim": 32, "num_embeddings": 16, "resolution": 32},
        "vocabulary_map": {"<image>": 8703, **{f"IMGIMG{i}Z": i for i in range(4, 8196)}},
    },
    "deepseek_v4": {
        **{**_ROUTED, "n_shared_experts": 1, "num_hidden_layers": 4, "num_key_value_heads": 1},
        **{"head_dim": 64, "q_lora_rank": 48, "qk_rope_head_dim": 32, "sliding_window": 16},
        **{"o_groups": 2, "o_lora_rank": 32, "partial_rotary_factor": 0.5},
        **{"index_n_heads": 2, "index_head_dim": 32, "index_topk": 16},
        **{"layer_types": ["sliding_attention"] * 4, "mlp_layer_types": ["moe"] * 4},
        "num_nextn_predict_layers": 0,
    },
    # two of transformers, llama.cpp and mlx-lm know them
    "gptj": {
        **{"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 512},
        "rotary_dim": 16,
    },
    "mpt": {
        **{"d_model": 128, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        "tie_word_embeddings": True,
    },
    "phimoe": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True},
        "lm_head_bias": True,
    },
    "recurrent_gemma": {
        **{"num_hidden_layers": 3, "lru_width": 128, "attention_window_size": 16},
        **{"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
    },
    "mistral4": {
        **{**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 64},
        **{"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32},
        **{"qk_rope_head_dim": 32, "v_head_dim": 32, "num_key_value_heads": 4},
        "max_position_embeddings": 8192,
        "rope_parameters": {
            **{"type": "yarn", "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0},
            **{"original_max_position_embeddings": 1024, "beta_fast": 32.0, "beta_slow": 1.0},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
            "partial_rotary_factor": 0.5,
        },
    },
    "gemma4_unified": {
        "text_config": {
            **{"model_type": "gemma4_unified_text", **SHARED, "head_dim": 32},
            **{"num_hidden_layers": 6, "global_head_dim": 64, "sliding_window": 16},
            **{"num_kv_shared_layers": 0, "final_logit_softcapping": 30.0},
            **{"hidden_size_per_layer_input": 0, "moe_intermediate_size": None},
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
    },
    "nanochat": {"num_key_value_heads": 4},
    "olmo_hybrid": {
        **{"num_hidden_layers": 4, "linear_num_key_heads": 4, "linear_num_value_heads": 4},
        **{"linear_key_head_dim": 32, "linear_value_head_dim": 64},
    },
    "bailing_hybrid": {
        **{"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32},
        **{"v_head_dim": 32, "num_key_value_heads": 4, "head_dim": 32},
        **{"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_token": 2},
        **{"moe_intermediate_size": 64, "num_shared_experts": 1, "num_expert_group": 1},
        **{"topk_group": 1, "linear_head_dim": 32, "linear_num_heads": 4},
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "num_nextn_predict_layers": 0,
    },
    **WRAPPED_TYPES,
    # by lot
    "gpt-sw3": {
        **{"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 512},
        **{"max_position_embeddings": 64, "tie_word_embeddings": True},
    },
}
"""As ``TYPES`` of :mod:`.model_types`."""
PUBLISHED_NEWER: dict[str, dict[str, Any]] = {
    "mimo_v2_flash": {
        **{"hybrid_layer_pattern": [0, 1, 0, 1], "moe_layer_freq": [0, 1, 1, 1]},
        **{"add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False},
        **{"sliding_window_size": 16, "n_shared_experts": None, "topk_method": "noaux_tc"},
        **{"scoring_func": "sigmoid", "layernorm_epsilon": 1e-5, "rope_theta": 5e6},
        **{"swa_rope_theta": 1e4, "partial_rotary_factor": 0.334},
        **{"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4},
        **{"swa_head_dim": 48, "swa_v_head_dim": 32},
    },
    "sarvam_moe": {
        "architectures": ["SarvamMoEForCausalLM"],
        **{"num_experts": 4, "num_shared_experts": 1, "score_function": "sigmoid"},
    },
    "step3p7": {
        **{"partial_rotary_factors": [0.5, 1.0] * 2, "num_attention_groups": 2},
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
        **{"moe_num_experts": 4, "moe_top_k": 2, "moe_layers_enum": "1,2,3"},
        **{"moe_router_scaling_factor": 1.0, "norm_expert_weight": True},
        "num_nextn_predict_layers": 0,
    },
    "deepseek_v4": {"num_hash_layers": 0, "compress_ratios": [0] * 4},
    "phimoe": {"original_max_position_embeddings": 1024},
    "gemma4_unified": {"text_config": {"global_head_dim": 64}},
    "bailing_hybrid": {"group_norm_size": 1},
    "glm_moe_dsa": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
}
"""As ``PUBLISHED`` of :mod:`.model_types`."""

"""Configs of tiny models around language models that converters know; see :mod:`.model_types`."""

from __future__ import annotations

from typing import Any

from tests.bases.shared_fields import LARGER, SHARED, VISION

_LLAMA = {"model_type": "llama", **SHARED}
_QWEN2 = {"model_type": "qwen2", **SHARED, **LARGER}
_QWEN3 = {"model_type": "qwen3", **SHARED, "head_dim": 32}
_COHERE = {
    **{"model_type": "cohere2", **SHARED, "num_hidden_layers": 4, "head_dim": 32},
    **{"sliding_window": 16, "tie_word_embeddings": True, "rotary_pct": 1.0},
}
_GRANITE = {"model_type": "granite", **SHARED}
_CLIP = {"model_type": "clip_vision_model", **VISION}
_SIGLIP = {"model_type": "siglip_vision_model", **VISION}
_UNTIED = {"tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}
_ENCODER = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_mel_bins": 16, "max_source_positions": 32},
}
_WHISPER = {
    **{"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2},
    **{"encoder_ffn_dim": 96, "num_mel_bins": 16, "max_source_positions": 32},
}
_SPEECH = {
    "text_config": _GRANITE,
    "encoder_config": {
        **{"hidden_dim": 64, "num_layers": 1, "num_heads": 2, "dim_head": 32, "input_dim": 16},
        **{"output_dim": 16, "context_size": 8, "max_pos_emb": 16},
    },
    "projector_config": {"model_type": "blip_2_qformer", **VISION, "encoder_hidden_size": 64},
    **{"has_lora_adapter": False, "audio_token_index": 5, **_UNTIED},
}
_IMAGES = {"image_token_index": 5, **_UNTIED}
WRAPPED_TYPES: dict[str, dict[str, Any]] = {
    "kimi_k25": {
        "text_config": {
            **{"model_type": "deepseek_v3", **SHARED, "num_key_value_heads": 4},
            **{"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32},
            **{"qk_rope_head_dim": 32, "v_head_dim": 32, "scoring_func": "sigmoid"},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
            **{"n_group": 1, "topk_group": 1, "moe_intermediate_size": 64},
            "first_k_dense_replace": 1,
        },
        "vision_config": {
            **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "patch_size": 14},
        },
        **{"projection_hidden_size": 64, "image_token_id": 5, "video_token_id": 6, **_UNTIED},
    },
    "qwen2_audio": {
        **{"text_config": _QWEN2, "audio_config": _WHISPER, "audio_token_index": 5, **_UNTIED},
    },
    "voxtral": {
        **{"text_config": _LLAMA, "audio_config": _ENCODER, "audio_token_id": 5, **_UNTIED},
    },
    "qwen3_asr": {
        "text_config": {
            **_QWEN3,
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True},
                "mrope_section": [6, 5, 5],
            },
        },
        "audio_config": {
            **{**_WHISPER, "output_dim": 128, "n_window": 4, "downsample_hidden_size": 32},
        },
        **{"audio_token_id": 5, "pad_token_id": 3, "eos_token_id": [3], **_TIED},
    },
    "granite_speech": _SPEECH,
    "granite_speech_plus": _SPEECH,
    "llava_next": {
        **{"text_config": _LLAMA, "vision_config": _CLIP, **_IMAGES},
        "image_grid_pinpoints": [[28, 28]],
    },
    "llava_onevision": {
        **{"text_config": _QWEN2, "vision_config": _SIGLIP, **_IMAGES, "video_token_index": 6},
        "image_grid_pinpoints": [[28, 28]],
    },
    "video_llava": {
        **{"text_config": _LLAMA, "vision_config": _CLIP, **_IMAGES, "video_token_index": 6},
    },
    "vipllava": {
        **{"text_config": _LLAMA, "vision_config": _CLIP, **_IMAGES},
        "vision_feature_layers": [-1],
    },
    "paligemma": {
        "text_config": {"model_type": "gemma", **SHARED, **_TIED, "head_dim": 32},
        **{"vision_config": {**_SIGLIP, "projection_dim": 128}, "image_token_index": 5},
        **{"projection_dim": 128, "hidden_size": 128, **_TIED},
    },
    "aya_vision": {
        **{"text_config": _COHERE, "vision_config": {**_SIGLIP, "image_size": 28}},
        **{"image_token_index": 5, **_TIED},
    },
    "cohere2_vision": {
        **{"text_config": _COHERE, "vision_config": _SIGLIP, "image_token_id": 5, **_TIED},
    },
    "got_ocr2": {
        "text_config": _QWEN2,
        "vision_config": {
            **{**VISION, "output_channels": 32, "window_size": 2, "mlp_dim": 96},
            **{"image_size": 32, "patch_size": 16, "global_attn_indexes": [0]},
        },
        **{"image_token_index": 5, **_UNTIED},
    },
    "idefics2": {
        "text_config": {"model_type": "mistral", **SHARED},
        "vision_config": {"model_type": "idefics2_vision", **VISION},
        "perceiver_config": {
            **{"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2},
            **{"resampler_head_dim": 32, "num_key_value_heads": 2},
        },
        **{"image_token_id": 5, **_UNTIED},
    },
    "deepseek_vl": {
        **{"text_config": _LLAMA, "vision_config": _SIGLIP, "image_token_id": 5, **_UNTIED},
    },
    "ovis2": {
        **{"text_config": _QWEN2, "vision_config": {**VISION, "vocab_size": 64}},
        **{"image_token_id": 5, "visual_indicator_token_ids": [6, 7, 8, 9, 10]},
        **{"hidden_size": 128, "vocab_size": 544, **_UNTIED},
    },
    "lighton_ocr": {
        **{"text_config": _QWEN3, "image_token_id": 5, **_UNTIED},
        "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 32},
    },
    "video_llama_3": {
        **{"text_config": _QWEN2, "image_token_id": 5, "video_token_id": 6, **_UNTIED},
        "vision_config": VISION,
    },
    "glmasr": {
        **{
            "text_config": {**_LLAMA, **LARGER},
            "audio_config": _ENCODER,
            "audio_token_id": 5,
            **_UNTIED,
        },
    },
}
"""As ``TYPES`` of :mod:`.model_types`."""

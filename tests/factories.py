"""Tiny random checkpoints, saved as transformers saves real ones.

Weights are drawn wide enough for logits to tell right from wrong, norms and biases included. The
configs of ``llama4_text`` are written the way MobileLLM-R1 publishes its own.
"""

from __future__ import annotations

import functools
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CLASSES = {
    "llama4_text": (transformers.Llama4TextConfig, transformers.Llama4ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}
FAMILIES = tuple(CLASSES)

VOCABULARY = 512
SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nPlease reason step by step, and put your "
    "final answer within \\\\boxed{}.<|eot_id|>' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{- message.content + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens with Llama 3's splitting, special tokens and chat headers."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([inspect.getsource(textwrap)], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_checkpoint(
    tmp_path: Path,
    family: str = "llama4_text",
    *,
    tied: bool = True,
    qk_norm: bool = True,
    hidden: int = 256,
    intermediate: int | None = None,
    layers: int = 2,
    heads: int | None = None,
    kv_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a random checkpoint with its tokenizer under ``tmp_path`` and return its directory.

    Args:
        tmp_path: gets a directory ``tiny-{family}``.
        family: one of FAMILIES.
        tied: whether the embedding is the head.
        qk_norm: llama4_text only; the others have or lack it by architecture.
        hidden: model width, a multiple of 64; the default takes every type.
        intermediate: MLP width; twice ``hidden`` if not given.
        layers: transformer blocks.
        heads: query heads of 64; ``hidden // 64`` if not given.
        kv_heads: the largest proper divisor of ``heads`` if not given.
        dtype: of the stored weights.
        seed: of the random weights.
    """
    heads = heads or hidden // 64
    kv_heads = kv_heads or max(n for n in range(1, heads // 2 + 1) if heads % n == 0)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate or 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tied,
        "bos_token_id": VOCABULARY - 6,
        "eos_token_id": [VOCABULARY - 5, VOCABULARY - 2, VOCABULARY - 1],
        "pad_token_id": VOCABULARY - 5,
    }
    directory = tmp_path / f"tiny-{family}"
    model = _random_model(family, shared, qk_norm, seed).to(dtype)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    if family == "llama4_text":
        _publish_like_mobilellm(directory / "config.json")
    return directory


def _random_model(
    family: str, shared: dict[str, Any], qk_norm: bool, seed: int
) -> transformers.PreTrainedModel:
    """A float32 model whose every tensor, norms and biases included, is random."""
    rope = {"rope_type": "default", "rope_theta": 8_000_000.0}
    extra: dict[str, dict[str, Any]] = {
        "llama4_text": {
            "intermediate_size_mlp": shared["intermediate_size"],
            "intermediate_size": 4 * shared["hidden_size"],
            "use_qk_norm": qk_norm,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "interleave_moe_layer_step": 0,
            "moe_layers": [],
            "no_rope_layers": [1] * shared["num_hidden_layers"],
            "attn_temperature_tuning": False,
            "attention_chunk_size": 32768,
            "rope_parameters": rope,
        },
        "llama": {"rope_parameters": rope},
        "qwen2": {"rope_parameters": rope},
        "qwen3": {"rope_parameters": rope},
        "mistral": {"rope_parameters": rope, "sliding_window": None},
        "gemma3_text": {"query_pre_attn_scalar": 64, "sliding_window": 512},
    }
    config_class, model_class = CLASSES[family]
    settings = {**shared, **extra[family]}
    if family == "qwen2":
        del settings["head_dim"]
    torch.manual_seed(seed)
    model = model_class(config_class(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                centre = 1.0 if name.endswith("norm.weight") and family != "gemma3_text" else 0.0
                parameter.normal_(mean=centre, std=0.2)
    return model.eval()


def _publish_like_mobilellm(path: Path) -> None:
    """Rewrite a config in the fields that the MobileLLM-R1 repositories publish."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config.pop("layer_types")
    config.update(rope_scaling=None, attn_scale=0.1, floor_scale=8192)
    path.write_text(json.dumps(config, indent=2))

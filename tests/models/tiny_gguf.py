"""Write a tiny checkpoint as GGUF the way llama.cpp's ``convert_hf_to_gguf.py`` does.

Independent of bitquilt's own writer and of its names: the reference that reading is tested against.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, normalizers, trainers

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def write_gguf(
    directory: Path,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    pre: str = "llama-bpe",
    add_bos: bool | None = None,
    general: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Convert a directory of ``tiny_checkpoint``; matrices take ``kind``, the rest F32.

    ``general`` writes more keys; without ``add_bos`` the file does not say whether a start token
    is added.
    """
    config = json.loads((directory / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _write_config(writer, config)
    _write_tokenizer(writer, directory, config, pre)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    general(writer)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in load_file(directory / "model.safetensors").items():
        tensor = _convert(name, tensor, config)
        stored = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, gguf.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _convert(name: str, tensor: np.ndarray, config: dict) -> np.ndarray:
    tensor = tensor.astype(np.float32)
    if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
        return tensor + 1
    if config["model_type"] in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(tensor.shape))
    return tensor


def _write_config(writer: gguf.GGUFWriter, config: dict) -> None:
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])


def _write_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict, pre: str) -> None:
    stored = json.loads((directory / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in stored["added_tokens"]}
    vocabulary = {number: token for token, number in stored["model"]["vocab"].items()} | special
    numbers = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocabulary[n] for n in numbers])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if n in special else normal for n in numbers])
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"][2])
    writer.add_eot_token_id(config["eos_token_id"][2])
    writer.add_eom_token_id(config["eos_token_id"][1])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template((directory / "chat_template.jinja").read_text())


def write_sentencepiece_gguf(path: Path, architecture: str) -> Path:
    """A one-block random model with a SentencePiece vocabulary: bytes, merged pieces, letters."""
    pieces = _sentencepiece_pieces()
    width, vocabulary = 64, len(pieces)
    writer = gguf.GGUFWriter(path, architecture)
    config = {
        "model_type": {"gemma3": "gemma3_text"}.get(architecture, architecture),
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
        "hidden_size": width,
        "intermediate_size": width,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e4},
        "vocab_size": vocabulary,
        "sliding_window": 512,
    }
    _write_config(writer, config)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(architecture != "gemma3")
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    for tensor in gguf.MODEL_TENSORS[arch]:
        name = gguf.TENSOR_NAMES[tensor].format(bid=0)
        if not re.search(r"^output$|rope_freqs|rot_embd|_exps|_inp", name):
            shape = {"token_embd": (vocabulary, width)}.get(name, (width, width))
            shape = (width,) if name.endswith("norm") else shape
            writer.add_tensor(f"{name}.weight", np.full(shape, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sentencepiece_pieces() -> list[tuple[str, float, gguf.TokenType]]:
    """(piece, score, type): earlier merges score higher, as SentencePiece's BPE writes them."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False)
    trained.train_from_iterator([inspect.getsource(textwrap)], trainer)
    numbers = trained.get_vocab()
    ordered = sorted(numbers, key=lambda piece: (len(piece) == 1, numbers[piece]))
    kinds = gguf.TokenType
    return [
        ("<unk>", 0.0, kinds.UNKNOWN),
        ("<s>", 0.0, kinds.CONTROL),
        ("</s>", 0.0, kinds.CONTROL),
        *((f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)),
        *((piece, -float(rank), kinds.NORMAL) for rank, piece in enumerate(ordered)),
        ("<think>", 0.0, kinds.USER_DEFINED),
    ]

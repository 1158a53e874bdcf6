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
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from bitquilt.bases.converter import find_converter
from tests.bases.model_types import PUBLISHED, SENTENCEPIECE, TYPES
from tests.bases.shared_fields import SHARED
from tests.factories import VOCABULARY, tiny_tokenizer

needs_converter = pytest.mark.skipif(
    find_converter() is None, reason="llama.cpp's converter is not installed; see CONTRIBUTING.md"
)


def unknown_checkpoint(
    tmp_path: Path, kind: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Path:
    """Write a random checkpoint with its tokenizer under ``tmp_path`` and return its directory."""
    # llama.cpp looks for special tokens in what is named phi-3
    directory = tmp_path / ("phi-4" if kind == "phi3" else kind)
    fields = TYPES[kind] if "text_config" in TYPES[kind] else {**SHARED, **TYPES[kind]}
    config = AutoConfig.for_model(kind, **fields)
    torch.manual_seed(seed)
    # some wrappers have a class of their language model alone, too
    kinds = (
        *(AutoModelForImageTextToText, AutoModelForCausalLM, AutoModelForMultimodalLM),
        AutoModelForSeq2SeqLM,
    )
    auto = next(one for one in kinds if type(config) in one._model_mapping)
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
    if kind == "qwen3_vl_moe":
        _turn_experts(directory / "model.safetensors")
    if kind == "qwen3_5_moe":
        _stack_experts(directory / "model.safetensors")
    if kind in SENTENCEPIECE:
        (directory / "tokenizer.model").write_bytes(_pieces(SENTENCEPIECE[kind]))
    return directory


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with what the converter asks of a type's."""
    if kind.startswith("gemma4"):
        return _byte_fallback()
    if kind in SENTENCEPIECE:
        return _of_pieces(SENTENCEPIECE[kind])
    tokenizer = copy.deepcopy(tiny_tokenizer())
    if kind.startswith("glm"):
        marks = ["<|endoftext|>", "<|user|>", "<|observation|>", "[gMASK]"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    if kind == "solar_open":
        marks = ["<unk>", "<|startoftext|>", "<|endoftext|>"]
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


def _turn_experts(path: Path) -> None:
    """Store stacks of experts the other way round, as published files of Qwen 3 VL have them."""
    tensors = {
        name: one.transpose(1, 2).contiguous() if ".experts." in name else one
        for name, one in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


def _stack_experts(path: Path) -> None:
    """Store the experts of a layer together, as published files of Qwen 3.5 have them."""
    tensors = load_file(path)
    experts: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    for name in list(tensors):
        if found := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name):
            experts.setdefault(found[1], {}).setdefault(found[3], {})[int(found[2])] = tensors.pop(
                name
            )
    for place, kinds in experts.items():
        stacks = {
            kind: torch.stack([own[i] for i in range(len(own))]) for kind, own in kinds.items()
        }
        tensors[f"{place}.gate_up_proj"] = torch.cat([stacks["gate_proj"], stacks["up_proj"]], 1)
        tensors[f"{place}.down_proj"] = stacks["down_proj"]
    save_file(tensors, path, {"format": "pt"})


def _edit(path: Path, fields: dict[str, Any]) -> None:
    content = json.loads(path.read_text("utf-8"))
    text = (
        {"text_config": {**content["text_config"], **part}}
        if (part := fields.get("text_config"))
        else {}
    )
    path.write_text(json.dumps({**content, **fields, **text}), "utf-8")


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
        bos_id=SHARED["bos_token_id"],
        eos_id=SHARED["eos_token_id"],
        minloglevel=2,
    )
    return written.getvalue()

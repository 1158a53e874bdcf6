"""A GGUF file's tokenizer as a Hugging Face directory.

GGUF stores vocabulary, merges and the *name* of a pre-tokenizer; the splitting behind that name is
fixed in llama.cpp (``llama-vocab.cpp``, ``llm_tokenizer_bpe``) and stated again here.
SentencePiece vocabularies go through transformers' own converter.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from bitquilt.errors import UserError
from bitquilt.gguf.metadata_read import GgufHeader
from bitquilt.runtime.files import atomic_write

_CONTROL, _USER_DEFINED = 3, 4
"""gguf token types: ``gguf.TokenType``."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _TAIL
_QWEN2 = _WORDS + r"|\p{N}" + _TAIL
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True)
class _Splitting:
    """What a pre-tokenizer name stands for."""

    patterns: tuple[str, ...]
    """Applied one after the other, each inside the pieces of the one before."""
    whole_words: bool = False
    """Whether a piece that is a token needs no merges (``ignore_merges``)."""
    adds_bos: bool = False
    """Whether a beginning-of-text token is added where the file does not say."""


_LLAMA3_SPLITTING = _Splitting((_LLAMA3,), whole_words=True, adds_bos=True)
_SINGLE_DIGITS = _Splitting((r"\p{N}", _GPT2))

SPLITTINGS: dict[str, _Splitting] = {
    "default": _Splitting((_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Splitting((_GPT2,)),
    "llama3": _LLAMA3_SPLITTING,
    "llama-v3": _LLAMA3_SPLITTING,
    "llama-bpe": _LLAMA3_SPLITTING,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "qwen2": _Splitting((_QWEN2,)),
    "deepseek-r1-qwen": _Splitting((_QWEN2,)),
    "tekken": _Splitting((_TEKKEN,), whole_words=True, adds_bos=True),
}
"""``tokenizer.ggml.pre`` → splitting."""

_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""GGUF's word for a special token → Hugging Face's."""


def tokenizer_directory(header: GgufHeader, fingerprint: str) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json, converted once and kept.

    It lies in the user's cache (``XDG_CACHE_HOME``) under the file's fingerprint.

    Raises:
        UserError: the file has no tokenizer, or one of a kind that cannot be rebuilt.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = root / "bitquilt" / "tokenizers" / fingerprint[:32]
    if directory.exists():
        return directory
    kind = header.metadata.get("tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise UserError(f"{header.path} has no tokenizer; give a file that has one")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{header.path} has a tokenizer of kind {kind}; bitquilt rebuilds gpt2 (byte-level "
            "BPE) and llama (SentencePiece): quantize from the Hugging Face checkpoint"
        )
    with atomic_write(directory) as part:
        part.mkdir()
        if kind == "gpt2":
            _write_byte_level(header, part)
        else:
            _write_sentencepiece(header, part)
    return directory


def byte_level(header: GgufHeader) -> Tokenizer:
    """The byte-level BPE tokenizer that llama.cpp would run.

    Raises:
        UserError: its pre-tokenizer has an unknown name.
    """
    metadata = header.metadata
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITTINGS:
        raise UserError(
            f"{header.path} splits text by the pre-tokenizer {pre}; bitquilt knows "
            f"{', '.join(SPLITTINGS)}: quantize from the Hugging Face checkpoint"
        )
    splitting = SPLITTINGS[pre]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added(header))
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", splitting.adds_bos):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B:1",
            special_tokens=[(tokens[bos], bos)],
        )
    return tokenizer


def _added(header: GgufHeader) -> list[AddedToken]:
    """Tokens matched whole in the text: control tokens, and words that users added."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    types = header.metadata.get("tokenizer.ggml.token_type", [])
    return [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _write_byte_level(header: GgufHeader, directory: Path) -> None:
    byte_level(header).save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(header))


def _write_sentencepiece(header: GgufHeader, directory: Path) -> None:
    from transformers import AutoTokenizer

    source = header.path
    converted = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    backend = converted.backend_tokenizer
    if header.architecture == "llama":
        # llama.cpp adds its prefix space before any text, transformers' class only before words
        prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [
                *([normalizers.Prepend("▁")] if prefix else []),
                normalizers.Replace(" ", "▁"),
            ]
        )
    backend.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(header))


def _tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    special = {
        f"{ours}_token": tokens[number]
        for theirs, ours in _ROLES.items()
        if (number := header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")) is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.get("context_length"),
        **special,
    }
    template = header.metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")

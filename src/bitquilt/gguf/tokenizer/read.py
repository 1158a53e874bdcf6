"""A GGUF file's tokenizer as a Hugging Face directory.

Byte-level BPE is put together here, from the splitting that the file names. SentencePiece
vocabularies go through transformers' own converter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType
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
from bitquilt.gguf.header import GgufHeader
from bitquilt.gguf.tokenizer.conventions import (
    END_ROLES,
    FIM_TEXTS,
    NORMALIZER,
    SPACE,
    SPECIAL_TOKENS,
    SPLITTINGS,
    TEMPLATE,
    TEMPLATES,
    is_composed,
)
from bitquilt.runtime.cache import tokenizers_to_read
from bitquilt.runtime.files import atomic_write

_CONTROL, _USER_DEFINED = int(TokenType.CONTROL), int(TokenType.USER_DEFINED)

CONVERSION = 4
"""Raised whenever the same file would become another tokenizer: what older versions of bitquilt
have kept is then rebuilt."""


def tokenizer_directory(header: GgufHeader, fingerprint: str) -> Path:
    """A directory with tokenizer.json and tokenizer_config.json, converted once and kept.

    It lies in the user's cache under the file's fingerprint and :data:`CONVERSION`.

    Raises:
        UserError: the file has no tokenizer, or one of a kind that cannot be rebuilt.
    """
    directory = tokenizers_to_read() / f"{fingerprint[:32]}-{CONVERSION}"
    if directory.exists():
        return directory
    kind = header.metadata.get("tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise UserError(f"{header.path} has no tokenizer; give a file that has one")
    rebuild = {"gpt2": byte_level_tokenizer, "llama": _sentencepiece_tokenizer}.get(str(kind))
    if rebuild is None:
        raise UserError(
            f"{header.path} has a tokenizer of kind {kind}, and bitquilt can rebuild only gpt2 "
            "(byte-level BPE) and llama (SentencePiece); quantize from the Hugging Face "
            "checkpoint"
        )
    with atomic_write(directory) as part:
        part.mkdir()
        rebuild(header).save(str(part / "tokenizer.json"))
        _write_json(part / "tokenizer_config.json", _tokenizer_config(header))
    return directory


def byte_level_tokenizer(header: GgufHeader) -> Tokenizer:
    """The byte-level BPE tokenizer that llama.cpp would run.

    Raises:
        UserError: its pre-tokenizer has an unknown name.
    """
    metadata = header.metadata
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITTINGS:
        raise UserError(
            f"{header.path} has the pre-tokenizer {pre}, and bitquilt knows only "
            f"{', '.join(SPLITTINGS)}; quantize from the Hugging Face checkpoint"
        )
    splitting = SPLITTINGS[pre]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = _merges(header, vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words)
    )
    if is_composed(metadata.get(NORMALIZER), pre):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), "isolated") for p in splitting.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added(header))
    if adds_bos(header):
        bos = metadata["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B:1",
            special_tokens=[(tokens[bos], bos)],
        )
    return tokenizer


def _merges(header: GgufHeader, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges, whose parts and results must be tokens.

    Raises:
        UserError: there are none, or one names a token that is not there.
    """
    stated = header.metadata.get("tokenizer.ggml.merges")
    if stated is None:
        raise UserError(
            f"{header.path} has no tokenizer.ggml.merges, which its tokenizer needs; it is "
            "damaged: download it again"
        )
    merges = []
    for merge in stated:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise UserError(
                f"{header.path} merges {merge!r:.60} in tokenizer.ggml.merges, which are not all "
                "tokens; it is damaged: download it again"
            )
        merges.append((left, right))
    return merges


def adds_bos(header: GgufHeader) -> bool:
    """Whether llama.cpp puts a beginning-of-text token before any text.

    A file that does not say has what its kind of tokenizer does (``llama_vocab::impl::load``).
    """
    get = header.metadata.get
    if get("tokenizer.ggml.bos_token_id") is None:
        return False
    splitting = SPLITTINGS.get(get("tokenizer.ggml.pre", "default"))
    byte_level = get("tokenizer.ggml.model") == "gpt2"
    by_kind = splitting is not None and splitting.adds_bos if byte_level else True
    return bool(get("tokenizer.ggml.add_bos_token", by_kind))


def start_token(header: GgufHeader) -> str:
    """The text of the beginning-of-text token; empty where there is none."""
    bos = header.metadata.get("tokenizer.ggml.bos_token_id")
    return "" if bos is None else str(header.metadata["tokenizer.ggml.tokens"][bos])


def _added(header: GgufHeader) -> list[AddedToken]:
    """Tokens matched whole in the text: control tokens, and words that users added."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    types = header.metadata.get("tokenizer.ggml.token_type", [])
    return [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _sentencepiece_tokenizer(header: GgufHeader) -> Tokenizer:
    from transformers import AutoTokenizer

    source = header.path
    try:
        converted = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    except Exception as error:  # it reads the file in its own way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{source} has a tokenizer that transformers cannot rebuild ({reason}); quantize from "
            "the Hugging Face checkpoint"
        ) from error
    backend: Tokenizer = converted.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        # llama.cpp adds its prefix space before any text, transformers' class only before words
        prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True)
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [
                *([normalizers.Prepend(SPACE)] if prefix else []),
                normalizers.Replace(" ", SPACE),
            ]
        )
    return backend


def named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a header beside the default one: name → source."""
    named = {name: metadata.get(f"{TEMPLATE}.{name}") for name in metadata.get(TEMPLATES, ())}
    return {name: source for name, source in named.items() if isinstance(source, str)}


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """The tokens that end a turn, by a header's roles.

    Roles for filling in the middle count where their token is not one for that.
    """
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    found = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in END_ROLES}
    return list(
        dict.fromkeys(
            index
            for role, index in found.items()
            if index is not None
            and not (index < len(tokens) and tokens[index] in FIM_TEXTS.get(role, ()))
        )
    )


def _tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    special = {
        f"{ours}_token": tokens[number]
        for theirs, ours in SPECIAL_TOKENS.items()
        if (number := header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")) is not None
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.get("context_length"),
        **special,
    }
    template, named = header.metadata.get(TEMPLATE), named_templates(header.metadata)
    if named:
        every = {**({"default": template} if template else {}), **named}
        template = [{"name": name, "template": source} for name, source in every.items()]
    return config | ({"chat_template": template} if template else {})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")

"""A Hugging Face tokenizer as GGUF keys, or a refusal if llama.cpp would split text otherwise.

llama.cpp knows two tokenizers of the models we write. ``gpt2`` is byte-level BPE, whose text
splitting is compiled in and chosen by a name (``tokenizer.ggml.pre``); we find the name by
comparing what tokenizer.json does with what each name does. ``llama`` is SentencePiece BPE with
byte fallback, driven by a score per token.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from bitquilt.errors import UserError
from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.tokenizer.conventions import (
    END_ROLES,
    END_TEXTS,
    FIM_TEXTS,
    NFC,
    NO_NORMALIZER,
    NORMALIZER,
    PRE_TOKENIZERS,
    SPACE,
    SPECIAL_TOKENS,
    TEMPLATE,
    TEMPLATES,
    is_composed,
)
from bitquilt.gguf.tokenizer.tokenizer_json import read_tokenizer
from bitquilt.runtime.files import read_json

_NORMAL = int(TokenType.NORMAL)


@dataclass(frozen=True)
class _Files:
    """What a tokenizer directory says."""

    tokenizer: dict[str, Any]
    loaded: Tokenizer
    config: dict[str, Any]
    path: Path


def tokenizer_keys(
    directory: Path,
    model_config: dict[str, Any],
    generation_config: dict[str, Any],
    chat_template: str | None,
    named_templates: Mapping[str, str],
) -> dict[str, MetadataValue]:
    """Every ``tokenizer.*`` key of the file.

    Args:
        directory: holds tokenizer.json and, usually, tokenizer_config.json.
        model_config: gives the vocabulary size and the special token ids.
        generation_config: may give more tokens that end a turn.
        chat_template: Jinja source, stored as it is.
        named_templates: others, by name.

    Raises:
        UserError: no tokenizer.json, a damaged one, ids beyond the vocabulary, or a tokenizer
            that llama.cpp has no equal of.
    """
    files = _read(directory)
    _refuse_other_models(files)
    tokens, types = _vocabulary(files, int(model_config["vocab_size"]))
    keys = _model_keys(files, tokens)
    keys |= _normalizer_keys(files, str(keys["tokenizer.ggml.pre"]))
    keys["tokenizer.ggml.tokens"] = tokens
    keys["tokenizer.ggml.token_type"] = types
    stated = {
        "config.json": _as_list(model_config.get("eos_token_id")),
        "generation_config.json": _as_list(generation_config.get("eos_token_id")),
    }
    keys.update(_special_ids(files, model_config, _ends(stated, tokens), tokens))
    keys.update(_added_automatically(files, keys))
    if chat_template is not None:
        keys[TEMPLATE] = chat_template
    return keys | _named_templates(named_templates)


def _named_templates(named: Mapping[str, str]) -> dict[str, MetadataValue]:
    """Templates beside the default one, as llama.cpp's converter writes them."""
    if not named:
        return {}
    allowed = string.ascii_letters + string.digits
    by_key = {
        "".join(letter if letter in allowed else "_" for letter in name): source
        for name, source in named.items()
    }
    keys: dict[str, MetadataValue] = {f"{TEMPLATE}.{key}": one for key, one in by_key.items()}
    return keys | {TEMPLATES: list(by_key)}


def pre_tokenizer_name(directory: Path) -> str:
    """Return llama.cpp's name for how a tokenizer splits text, found in tokenizer.json's rules.

    Raises:
        UserError: there is no such tokenizer, or llama.cpp has no name for what it does.
    """
    files = _read(directory)
    _refuse_other_models(files)
    return _pre_tokenizer_name(files)


def normalizer_keys(directory: Path, pre: str | None) -> dict[str, str]:
    """What a file has to say of a tokenizer's normalizer, where the name of its splitting does not.

    Args:
        directory: holds tokenizer.json.
        pre: llama.cpp's name for how it splits text.

    Raises:
        UserError: there is no tokenizer.json, or it is damaged.
    """
    return _normalizer_keys(_read(directory), pre)


def _normalizer_keys(files: _Files, pre: str | None) -> dict[str, str]:
    composed = NFC in _normalizers(files.tokenizer.get("normalizer"))
    if composed == is_composed(None, pre):
        return {}
    return {NORMALIZER: NFC if composed else NO_NORMALIZER}


def _read(directory: Path) -> _Files:
    path = directory / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{directory} has no tokenizer.json, which a GGUF file needs; "
            "save the tokenizer with transformers' save_pretrained and try again"
        )
    config_path = directory / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    loaded = read_tokenizer(path)
    # as tokenizers has understood it: files may be in older forms
    return _Files(json.loads(loaded.to_str()), loaded, config, path)


def _refuse_other_models(files: _Files) -> None:
    kind = type(files.loaded.model).__name__
    if kind != "BPE":
        raise UserError(
            f"{files.path} is a {kind} tokenizer; a GGUF file needs byte-level or SentencePiece "
            "BPE, so give --to=mlx"
        )


def _refuse_normalizers(files: _Files) -> None:
    """Refuse what changes text before it is split: llama.cpp does nothing but move spaces.

    NFC is let through: Qwen's tokenizers have it, and our engine does it, as the file says.
    """
    spaces = {"Replace", "Prepend"} if files.tokenizer["model"].get("byte_fallback") else {NFC}
    for kind in _normalizers(files.tokenizer.get("normalizer")):
        if kind not in spaces:
            raise UserError(
                f"{files.path} changes text by the normalizer {kind} before it is split, and "
                "llama.cpp would not, so that it would read other tokens; give --to=mlx"
            )


def _normalizers(node: dict[str, Any] | None) -> Iterable[str]:
    if node is not None and node["type"] == "Sequence":
        for child in node["normalizers"]:
            yield from _normalizers(child)
    elif node is not None:
        other = node["type"] == "Replace" and node["pattern"] != {"String": " "}
        yield f"Replace of {node['pattern']}" if other else node["type"]


def _model_keys(files: _Files, tokens: list[str]) -> dict[str, MetadataValue]:
    model = files.tokenizer["model"]
    _refuse_normalizers(files)
    if model.get("byte_fallback"):
        return _sentencepiece_keys(files, tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer_name(files),
        "tokenizer.ggml.merges": [_merge_text(merge) for merge in model["merges"]],
    }


def _pre_tokenizer_name(files: _Files) -> str:
    steps = tuple(_splitting_steps(files.tokenizer.get("pre_tokenizer")))
    key = (steps, bool(files.tokenizer["model"].get("ignore_merges")))
    if key not in PRE_TOKENIZERS:
        known = ", ".join(dict.fromkeys(PRE_TOKENIZERS.values()))
        raise UserError(
            f"{files.path} splits text by "
            f"{' then '.join(steps) or 'nothing'}{', whole words first' if key[1] else ''}, for "
            f"which bitquilt knows no name in llama.cpp (it knows {known}); give --to=mlx"
        )
    return PRE_TOKENIZERS[key]


def _splitting_steps(node: dict[str, Any] | None) -> Iterable[str]:
    """The pre-tokenizer as a list of words; a step that does not split is left out."""
    if node is None:
        return
    kind = node["type"]
    if kind == "Sequence":
        for child in node["pretokenizers"]:
            yield from _splitting_steps(child)
    elif kind == "Split" and node["behavior"] == "Isolated" and not node["invert"]:
        yield f"regex {node['pattern'].get('Regex')}"
    elif kind == "Digits":
        yield "digits" if node["individual_digits"] else "numbers"
    elif kind == "Punctuation" and node["behavior"] == "Contiguous":
        yield "punctuation"
    elif kind == "ByteLevel" and not node["add_prefix_space"]:
        if node.get("use_regex", True):
            yield "gpt-2"
    else:
        yield json.dumps(node, sort_keys=True)


def _merge_text(merge: str | list[str]) -> str:
    """A merge as GGUF writes it: two parts with a space between, spaces inside a part shifted."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", chr(ord(" ") + 256)) for part in merge)


def _sentencepiece_keys(files: _Files, tokens: list[str]) -> dict[str, MetadataValue]:
    """SentencePiece BPE: llama.cpp joins the pair whose result scores highest.

    tokenizer.json keeps the merges in that order, so minus the rank of the first merge that makes
    a token is its score, whatever numbers the original had.
    """
    made: dict[str, int] = {}
    for rank, merge in enumerate(files.tokenizer["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        made.setdefault(left + right, rank)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [-float(made.get(token, len(made))) for token in tokens],
        "tokenizer.ggml.add_space_prefix": _prepends_space(files),
    }


def _prepends_space(files: _Files) -> bool:
    """Whether text gets a space in front, by the normalizer or the Metaspace pre-tokenizer."""
    node = json.dumps([files.tokenizer.get("normalizer"), files.tokenizer.get("pre_tokenizer")])
    return (
        '"Prepend"' in node
        or '"prepend_scheme": "first"' in node
        or ('"prepend_scheme": "always"' in node)
    )


def _vocabulary(files: _Files, size: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; ids that the tokenizer lacks are unused padding."""
    spm = bool(files.tokenizer["model"].get("byte_fallback"))
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(TokenType.UNUSED)] * size
    unknown = files.tokenizer["model"].get("unk_token")
    for text, index in files.tokenizer["model"]["vocab"].items():
        _check_id(files, text, index, size)
        tokens[index], types[index] = text, _type_of(text, unknown) if spm else _NORMAL
    for added in files.tokenizer.get("added_tokens") or []:
        text, index = added["content"], added["id"]
        _check_id(files, text, index, size)
        if spm and types[index] == TokenType.UNKNOWN:
            continue
        control = added["special"] or _looks_special(text)
        tokens[index] = text.replace(SPACE, " ") if spm and not control else text
        types[index] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    return tokens, types


def _check_id(files: _Files, text: str, index: int, size: int) -> None:
    if index >= size:
        raise UserError(
            f"{files.path} gives {text!r} the id {index}, but the model has {size} embeddings; "
            "the tokenizer belongs to another model: put the model's own there, or if tokens were "
            "added to it without an embedding, take them out of added_tokens"
        )


def _type_of(text: str, unknown: str | None) -> int:
    if text == unknown:
        return int(TokenType.UNKNOWN)
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return int(TokenType.BYTE)
    return int(TokenType.NORMAL)


def _looks_special(text: str) -> bool:
    """Control tokens that their tokenizer forgot to mark; llama.cpp would print them otherwise."""
    return (text.startswith("<|") and text.endswith("|>")) or (
        text.startswith("<unused") and text.endswith(">")
    )


def _ends(stated: Mapping[str, Sequence[int]], tokens: list[str]) -> list[int]:
    """The tokens that end a turn, each once, by the files that state them."""
    for file, ends in stated.items():
        if beyond := [index for index in ends if not 0 <= index < len(tokens)]:
            raise UserError(
                f"{file} gives eos_token_id {beyond[0]}, but the model has {len(tokens)} "
                "embeddings; compare it with the one on the model's page"
            )
    return list(dict.fromkeys(index for ends in stated.values() for index in ends))


def _special_ids(
    files: _Files, model_config: dict[str, Any], stated: list[int], tokens: list[str]
) -> dict[str, MetadataValue]:
    """bos, eos, pad and unk by the tokenizer's names; the other ends of a turn as eot and so on.

    Ends that llama.cpp does not know by their texts come first: it has a few roles only.
    """
    found: dict[str, MetadataValue] = {}
    for role in ("bos", "eos", "pad", "unk"):
        index = _named_id(files, role, tokens)
        if index is None:
            index = next(iter(_as_list(model_config.get(f"{role}_token_id"))), None)
        if index is not None and 0 <= index < len(tokens):
            found[role] = index
    ends = [i for i in stated if i != found.get("eos")]
    ends.sort(key=lambda i: (tokens[i] in END_TEXTS, "eom" in tokens[i]))
    there = set(tokens)
    roles = [role for role in END_ROLES[1:] if there.isdisjoint(FIM_TEXTS.get(role, ()))]
    if lost := [i for i in ends[len(roles) :] if tokens[i] not in END_TEXTS]:
        raise UserError(
            f"{len(stated)} tokens end this model's turns, and llama.cpp has no place for "
            f"{tokens[lost[0]]!r}; leave it out of eos_token_id in generation_config.json"
        )
    placed = zip(roles, ends, strict=False)
    found.update({r: i for r, i in placed if r not in FIM_TEXTS or tokens[i] not in END_TEXTS})
    names = {ours: theirs for theirs, ours in SPECIAL_TOKENS.items()}
    return {
        f"tokenizer.ggml.{names.get(role, role)}_token_id": index for role, index in found.items()
    }


def _named_id(files: _Files, role: str, tokens: list[str]) -> int | None:
    value = files.config.get(f"{role}_token")
    text = value.get("content") if isinstance(value, dict) else value
    return tokens.index(text) if text in tokens else None


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _added_automatically(files: _Files, keys: dict[str, MetadataValue]) -> dict[str, MetadataValue]:
    """Whether encoding puts bos in front and eos behind, found by encoding a word.

    ``add_bos_token`` in tokenizer_config.json overrides, as it does in transformers.
    """
    encoded = files.loaded.encode("a").ids
    bos, eos = keys.get("tokenizer.ggml.bos_token_id"), keys.get("tokenizer.ggml.eos_token_id")
    first = bool(encoded) and encoded[0] == bos
    last = bool(encoded) and encoded[-1] == eos
    return {
        "tokenizer.ggml.add_bos_token": bool(files.config.get("add_bos_token", first)),
        "tokenizer.ggml.add_eos_token": bool(files.config.get("add_eos_token", last)),
    }

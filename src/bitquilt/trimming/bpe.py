"""tokenizer.json with a BPE, byte-level or with byte fallback: read, and cut to some tokens.

What is cut still reads any text: every byte has a token, in either kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bitquilt.errors import UserError
from bitquilt.runtime.files import read_json
from bitquilt.trimming.vocabulary import Merge, MergeTable, kept_merges

TOKENIZER = "tokenizer.json"
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of bytes where a tokenizer falls back to them."""
ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
"""The characters that stand for bytes in a byte-level tokenizer."""
RESERVED = re.compile(
    r"<unused_?\d+>|\[unused_?\d+\]|<\|reserved(_special_token|_token)?_\d+\|>|<\|dummy_\d+\|>"
    r"|<\|extra_\d+\|>|<SPECIAL_\d+>|<reserved_?\d+>"
)
"""Tokens that nobody trained: those of Gemma, BERT, Llama 3, Phi, Qwen, Mistral and Baichuan."""
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
_IDS = re.compile(r"_token_ids?$|^(begin_)?suppress_tokens$")
"""Fields of a config that hold ids of tokens."""


@dataclass(frozen=True)
class BpeFile:
    """A tokenizer.json."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, directory: Path | None, name: str) -> BpeFile:
        """Read the tokenizer of a model.

        Args:
            directory: has its tokenizer.json.
            name: of the model, for errors.

        Raises:
            UserError: there is none, or it is not of a kind that can be cut.
        """
        path = directory / TOKENIZER if directory is not None else None
        if path is None or not path.exists():
            raise UserError(
                f"{name} has no tokenizer.json, and only the vocabulary of one can be trimmed; "
                "quantize the model as it is"
            )
        found = cls(path, read_json(path))
        if reason := found._cannot_be_cut():
            raise UserError(
                f"the vocabulary of {name} cannot be trimmed: its {path.name} {reason}, and "
                "bitquilt trims BPE and Unigram vocabularies that have a token for every byte; "
                "quantize the model as it is"
            )
        return found

    def _cannot_be_cut(self) -> str:
        """Say why; empty where it can."""
        model = self.content.get("model") or {}
        if model.get("type", "BPE") != "BPE" or "merges" not in model:
            return f"is of type {model.get('type')}"
        return self._cannot_be_left(model)

    def _cannot_be_left(self, model: dict[str, Any]) -> str:
        """Say why what is left of a vocabulary would not do; empty where it would."""
        for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(field):
                return f"has a {field}"
        if not (self.byte_bound or self._alphabet >= ALPHABET):
            return "has no token for some bytes"
        steps = [step["type"] for step in _processors(self.content.get("post_processor"))]
        other = [step for step in steps if step not in ("TemplateProcessing", "ByteLevel")]
        return f"ends with a step {other[0]}, which holds ids" if other else ""

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token → id, added tokens too."""
        added = {one["content"]: int(one["id"]) for one in self.added}
        return {**self.content["model"]["vocab"], **added}

    @cached_property
    def merges(self) -> list[Merge]:
        """The merges in their order."""
        return [
            (left, right)
            for merge in self.content["model"]["merges"]
            for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
        ]

    @property
    def by_frequency(self) -> Iterable[str]:
        """The tokens that merges make, the most frequent of the text that it was made of first."""
        return dict.fromkeys(left + right for left, right in self.merges)

    def ways(self) -> Callable[[str], Collection[str] | None]:
        """Give what tells the tokens that one is made by, itself included.

        Returns:
            a function, which gives None where a token cannot be made.
        """
        table = MergeTable(self.merges)
        whole_words = bool(self.content["model"].get("ignore_merges"))

        def way(token: str) -> Collection[str] | None:
            made = table.way(token)
            # a word that is a token needs no merges there
            return frozenset((token,)) if made is None and whole_words else made

        return way

    @property
    def added(self) -> list[dict[str, Any]]:
        """The tokens that are found whole in a text: control tokens, and words added later."""
        return self.content.get("added_tokens") or []

    @cached_property
    def byte_bound(self) -> bool:
        """Whether characters without a token fall back to the tokens of their bytes."""
        model = self.content["model"]
        return bool(model.get("byte_fallback")) and model["vocab"].keys() >= BYTES

    def text_of(self, token: str) -> str:
        """Give the text that a token stands for, with U+FFFD where it is a part of a character."""
        if self.byte_bound:
            return token.replace("\u2581", " ")
        return bytes(_BYTES.get(one, 0) for one in token).decode("utf-8", "replace")

    def without_reserved(self, used: str, ids: Collection[int]) -> BpeFile:
        """Give the tokenizer without the tokens that are reserved for what never came.

        Args:
            used: text that may name such tokens because they are used: chat templates.
            ids: those that a config names.
        """
        steps = (self.content.get(part) for part in ("post_processor", "padding", "normalizer"))
        used += "".join(map(json.dumps, steps))
        gone = {
            one["content"]
            for one in self.added
            if RESERVED.fullmatch(one["content"])
            and one["content"] not in used
            and one["id"] not in ids
        }
        content = {
            **self.content,
            "added_tokens": [one for one in self.added if one["content"] not in gone],
            "model": {**self.content["model"], **self._without(gone)},
        }
        return type(self)(self.path, content)

    def _without(self, gone: Collection[str]) -> dict[str, Any]:
        """Give what of the model changes where tokens are gone; the others keep their ids."""
        vocab = self.content["model"]["vocab"]
        return {"vocab": {token: index for token, index in vocab.items() if token not in gone}}

    @property
    def _alphabet(self) -> set[str]:
        return {token for token in self.content["model"]["vocab"] if len(token) == 1}

    @cached_property
    def required(self) -> set[str]:
        """The tokens that any text may need: of bytes, the unknown one, and those added."""
        unknown = self.content["model"].get("unk_token")
        bytes_ = BYTES if self.byte_bound else ALPHABET
        return {
            *bytes_,
            *(one["content"] for one in self.added),
            *([unknown] if unknown in self.vocabulary else []),
        }

    def cut(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Give the content with some of the tokens under new ids.

        Args:
            ids: kept token → its new id; holds all added tokens.
        """
        model, old = self.content["model"], self.vocabulary
        new = {old[token]: index for token, index in ids.items()}
        padding = self.content.get("padding")
        return {
            **self.content,
            "padding": {**padding, "pad_id": new[padding["pad_id"]]} if padding else padding,
            "added_tokens": [{**one, "id": ids[one["content"]]} for one in self.added],
            "post_processor": _with_new_ids(self.content.get("post_processor"), new),
            "model": {**model, **self._cut_model(ids)},
        }

    def _cut_model(self, ids: Mapping[str, int]) -> dict[str, Any]:
        """Give what of the model changes where only some tokens are left, under new ids."""
        vocabulary = {token: ids[token] for token in self.content["model"]["vocab"] if token in ids}
        merges = kept_merges(self.merges, vocabulary.keys())
        return {"vocab": vocabulary, "merges": [list(merge) for merge in merges]}


def _processors(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List the steps that come after the splitting."""
    if node is None:
        return []
    return node["processors"] if node["type"] == "Sequence" else [node]


def _with_new_ids(node: dict[str, Any] | None, new: Mapping[int, int]) -> dict[str, Any] | None:
    """Give a step, or a sequence of steps, with the ids of its special tokens replaced."""
    if node is None:
        return None
    if node["type"] == "Sequence":
        return {**node, "processors": [_with_new_ids(one, new) for one in node["processors"]]}
    if "special_tokens" not in node:
        return node
    special = {
        name: {**one, "ids": [new[index] for index in one["ids"]]}
        for name, one in node["special_tokens"].items()
    }
    return {**node, "special_tokens": special}


def ids_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ids of tokens that a config.json or generation_config.json names."""
    for name, value in config.items():
        if _IDS.search(name) and value is not None:
            yield from value if isinstance(value, list) else [value]


def with_new_ids(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Give a config.json or generation_config.json with the ids of its tokens replaced.

    Ids that no kept token has leave a list, and a field of their own becomes null.

    Args:
        config: its fields.
        new: id of a kept token → its new id.
    """
    found = dict(config)
    for name, value in config.items():
        if not _IDS.search(name) or value is None:
            continue
        many = isinstance(value, list)
        found[name] = [new[one] for one in value if one in new] if many else new.get(value)
    return found

"""tokenizer.json with a Unigram vocabulary and a token for every byte, cut to some tokens.

A text is split into the tokens whose scores have the largest sum (Kudo 2018, arXiv 1804.10959). So
every token can be made by itself, and a text whose tokens are all kept is split as before: that way
is still there, and fewer compete with it. LLM-jp's models have such tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bitquilt.trimming.bpe import BYTES, TOKENIZER, BpeFile
from bitquilt.trimming.vocabulary import Merge

UNIGRAM = "Unigram"


def tokenizer_to_cut(directory: Path | None, name: str) -> BpeFile:
    """Read the tokenizer of a model, of either kind.

    Args:
        directory: has its tokenizer.json.
        name: of the model, for errors.

    Raises:
        UserError: there is none, or it is not of a kind that can be cut.
    """
    return (UnigramFile if _is_unigram(directory) else BpeFile).read(directory, name)


def _is_unigram(directory: Path | None) -> bool:
    try:
        content = json.loads((Path(directory or "") / TOKENIZER).read_text(encoding="utf-8"))
        return bool(content["model"]["type"] == UNIGRAM)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # told as of any other


class UnigramFile(BpeFile):
    """A tokenizer.json whose tokens have scores, and no merges; a token's id is its place."""

    def _cannot_be_cut(self) -> str:
        model = self.content["model"]
        entries = model.get("vocab")
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            return "has a vocabulary without scores"
        unknown = model.get("unk_id")
        if not isinstance(unknown, int) or not 0 <= unknown < len(entries):
            return "has no unknown token"
        return self._cannot_be_left(model)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token → id, added tokens too."""
        added = {one["content"]: int(one["id"]) for one in self.added}
        return {**{entry[0]: index for index, entry in self._entries}, **added}

    @property
    def _entries(self) -> list[tuple[int, tuple[str, float]]]:
        """The ids of tokens with their texts and scores; without reserved ones that are gone."""
        vocab = self.content["model"]["vocab"]
        return [(index, entry) for index, entry in enumerate(vocab) if entry is not None]

    @property
    def merges(self) -> list[Merge]:
        """None."""
        return []

    @property
    def by_frequency(self) -> Iterable[str]:
        """The tokens by their scores, which are logarithms of probabilities."""
        return [token for token, _ in sorted((e for _, e in self._entries), key=lambda e: -e[1])]

    def ways(self) -> Callable[[str], Collection[str] | None]:
        """Give what tells the tokens that one is made by: itself."""
        return lambda token: (token,)

    @cached_property
    def byte_bound(self) -> bool:
        """Whether characters without a token fall back to the tokens of their bytes."""
        there = {entry[0] for _, entry in self._entries}
        return bool(self.content["model"].get("byte_fallback")) and there >= BYTES

    @property
    def _alphabet(self) -> set[str]:
        return set()  # no byte-level tokenizer is of this kind

    @cached_property
    def required(self) -> set[str]:
        """The tokens that any text may need: of bytes, the unknown one, and those added."""
        model = self.content["model"]
        return {*BYTES, model["vocab"][model["unk_id"]][0], *(one["content"] for one in self.added)}

    def _without(self, gone: Collection[str]) -> dict[str, Any]:
        vocab = self.content["model"]["vocab"]
        return {"vocab": [None if entry[0] in gone else entry for entry in vocab]}

    def _cut_model(self, ids: Mapping[str, int]) -> dict[str, Any]:
        model = self.content["model"]
        kept = [entry for _, entry in self._entries if entry[0] in ids]
        assert [ids[token] for token, _ in kept] == [*range(len(kept))]
        return {"vocab": kept, "unk_id": ids[model["vocab"][model["unk_id"]][0]]}


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], int | float)
    )

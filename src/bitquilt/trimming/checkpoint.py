"""A checkpoint with some of its tokens, written as a Hugging Face directory.

One tensor is in memory at a time. Tensors keep the type that they are stored in; those of a
quantized source are float32, which loses nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint
from bitquilt.models.licence import terms_of
from bitquilt.models.sources.hugging_face import (
    CUT_FROM,
    CUT_KEPT,
    CUT_OF,
    TEMPLATE_FOLDER,
    TRIMMED,
)
from bitquilt.runtime.files import read_json
from bitquilt.trimming.bpe import TOKENIZER, BpeFile, with_new_ids

ASKED = "asked"
"""The field of :data:`TRIMMED` with all that the choice of tokens depends on."""
TOKENIZER_SETTINGS = "tokenizer_config.json"
NAMED_TOKENS = "special_tokens_map.json"
COPIED = ("chat_template.jinja", "chat_template.json")
CUT = (f"{EMBEDDING}.weight", f"{HEAD}.weight")
"""The tensors with a row for each token."""
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class CutCheckpoint:
    """A checkpoint, and the tokens that are kept of it."""

    checkpoint: Checkpoint
    tokenizer: BpeFile
    kept: tuple[int, ...]
    """The ids of the kept tokens, ascending; a token's new id is its place here."""
    asked: Mapping[str, Any]
    """All that the choice of tokens depends on."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that are left."""
        return {
            name: (len(self.kept), *shape[1:]) if name in CUT else shape
            for name, shape in self.checkpoint.shapes.items()
        }

    @property
    def dtypes(self) -> dict[str, str]:
        """The type that each tensor is stored in."""
        stored = self.checkpoint.tensor_types
        return {
            name: kind if (kind := stored.get(name, "F32")) in STORED else "F32"
            for name in self.checkpoint.shapes
        }

    @property
    def new_ids(self) -> dict[int, int]:
        """Id of a kept token → its new id."""
        return {old: new for new, old in enumerate(self.kept)}

    def load(self, name: str) -> torch.Tensor:
        """Load a tensor as it is stored, with the rows that are kept."""
        tensor = self.checkpoint.load(name)
        if name in CUT:
            tensor = tensor[torch.tensor(self.kept)]
        return tensor.to(STORED[self.dtypes[name]])

    @property
    def nbytes(self) -> dict[str, int]:
        """The bytes of each tensor."""
        dtypes = self.dtypes
        return {
            name: STORED[dtypes[name]].itemsize * math.prod(shape)
            for name, shape in self.shapes.items()
        }

    def write(self, directory: Path, advance: Callable[[int], None]) -> None:
        """Write everything into a new directory; ``advance`` is told of bytes of weights."""
        self.write_description(directory)
        self._write_weights(directory / "model.safetensors", advance)

    def write_description(self, directory: Path) -> None:
        """Write everything but the weights into a new directory."""
        directory.mkdir()
        for name, content in self._texts().items():
            (directory / name).write_text(content, encoding="utf-8", newline="")
        for name, raw in terms_of(self.checkpoint).documents().items():
            (directory / name).write_bytes(raw)
        source = self.tokenizer.path.parent
        for name in COPIED:
            if (source / name).exists():
                shutil.copyfile(source / name, directory / name)
        if (source / TEMPLATE_FOLDER).is_dir():
            shutil.copytree(source / TEMPLATE_FOLDER, directory / TEMPLATE_FOLDER)

    def _texts(self) -> dict[str, str]:
        """Give the files that are written rather than copied: name → content."""
        new, generation = self.new_ids, self.checkpoint.generation_config
        marker = {
            CUT_FROM: self.checkpoint.name,
            CUT_OF: self.checkpoint.matrices[EMBEDDING][0],
            ASKED: self.asked,
            CUT_KEPT: list(self.kept),
        }
        by_text = {
            token: new[old] for token, old in self.tokenizer.vocabulary.items() if old in new
        }
        found = {
            "config.json": _json(self._config()),
            TOKENIZER: _json(self.tokenizer.cut(by_text), indent=None),
            TRIMMED: _json(marker, indent=None),
            "README.md": self._card(),
        }
        for name in (TOKENIZER_SETTINGS, NAMED_TOKENS):
            if (path := self.tokenizer.path.parent / name).exists():
                left = _with_tokens(read_json(path), self.tokenizer.vocabulary)
                found[name] = _json(_settings(left, new))
        if generation:
            found["generation_config.json"] = _json(with_new_ids(generation, new))
        return found

    def _config(self) -> dict[str, Any]:
        config = with_new_ids(self.checkpoint.config, self.new_ids)
        model_type = config["model_type"]
        return {
            **config,
            "architectures": config.get("architectures")
            or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]],
            "dtype": NAMES[STORED[self.dtypes[CUT[0]]]],
            "vocab_size": len(self.kept),
        }

    def _card(self) -> str:
        """Write a card with the original's terms, from which those of a copy are read."""
        fields = dict(terms_of(self.checkpoint).fields)
        fields.pop("base_model_relation", None)
        rows, _ = self.checkpoint.matrices[EMBEDDING]
        return (
            f"---\n{ModelCardData(**fields).to_yaml()}\n---\n\n"
            f"{self.checkpoint.name} with {len(self.kept):,} of its {rows:,} tokens, cut by "
            "`bitquilt trim`. The weights that are left are the original's.\n"
        )

    def _write_weights(self, path: Path, advance: Callable[[int], None]) -> None:
        """Write the tensors in their order, each as it is loaded."""
        shapes, dtypes, nbytes = self.shapes, self.dtypes, self.nbytes
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start = end
            end += nbytes[name]
            header[name] = {
                "dtype": dtypes[name],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in shapes:
                tensor = self.load(name).contiguous()
                assert tuple(tensor.shape) == shapes[name]
                file.write(tensor.view(torch.uint8).numpy().data)
                advance(tensor.nbytes)


def _settings(settings: dict[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Give tokenizer_config.json with the new ids of its added tokens."""
    added = settings.get("added_tokens_decoder")
    if added is None:
        return settings
    kept = {str(new[int(old)]): token for old, token in added.items() if int(old) in new}
    return {**settings, "added_tokens_decoder": kept}


def _with_tokens(settings: dict[str, Any], vocabulary: Container[str]) -> dict[str, Any]:
    """Leave out of the lists of tokens those that are gone: loading would add them again."""

    def there(token: Any) -> bool:
        content = token.get("content") if isinstance(token, dict) else token
        return not isinstance(content, str) or content in vocabulary

    lists = {
        name: [token for token in value if there(token)]
        for name, value in settings.items()
        if name in ("additional_special_tokens", "extra_special_tokens") and isinstance(value, list)
    }
    return settings | lists


def _json(content: dict[str, Any], indent: int | None = 2) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"

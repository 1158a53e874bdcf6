"""The tokenizer of a Hugging Face directory where tokenizer.json is missing or wrong.

Then the small files of the directory are copied into the user's cache, with a tokenizer.json that
engines can read, and that directory stands for the tokenizer's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitquilt.errors import UserError
from bitquilt.gguf.tokenizer import SPLITTINGS
from bitquilt.models.checkpoint import Finding
from bitquilt.runtime.cache import tokenizers_to_read
from bitquilt.runtime.files import atomic_write, read_json

WHOLE, CONFIG, TEKKEN = "tokenizer.json", "tokenizer_config.json", "tekken.json"
SYSTEM_PROMPT = "SYSTEM_PROMPT.txt"
HF_CONVERSION = 1
"""Raised whenever the same files would become another tokenizer."""

_MISTRALS = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
_LEAST_TEKKEN = 100_000
"""Tekken's vocabularies are larger."""
_KEPT = ("*.json", "*.jinja", "*.md", "*.txt", "LICEN[CS]E*", "COPYING*", "NOTICE*")


def usable_tokenizer(directory: Path) -> tuple[Path, list[Finding]]:
    """Give the directory of a model's tokenizer, and what is to be said of it.

    It is the model's own, unless its tokenizer is in Mistral's ``tekken.json`` only, or splits text
    as Llama 3 where Mistral's vocabulary wants Tekken's splitting: so it was published for a while.
    Source: transformers' ``convert_tekken_tokenizer`` and ``_patch_mistral_regex``.

    Raises:
        UserError: tekken.json cannot be read.
    """
    if not (directory / WHOLE).exists() and (directory / TEKKEN).exists():
        said = f"transformers converts {TEKKEN} to a {WHOLE}, because engines read only the latter."
        return _kept(directory, lambda part: _convert(directory, part)), [Finding(TEKKEN, said)]
    if (directory / WHOLE).exists() and _splits_as_llama(directory):
        said = (
            f"{WHOLE} splits text as Llama 3 does, but its vocabulary is Mistral's and was trained "
            "with Tekken's splitting. Tekken's splitting is used, as transformers does with "
            "fix_mistral_regex."
        )
        return _kept(directory, lambda part: _mend(directory, part)), [Finding(WHOLE, said)]
    return directory, []


def about_system_prompt(directory: Path, template: str | None) -> list[Finding]:
    """Say of a SYSTEM_PROMPT.txt how it is given to the model."""
    path = directory / SYSTEM_PROMPT
    if not path.exists():
        return []
    begins = path.read_text(encoding="utf-8", errors="replace").strip()[:40]
    if template is not None and begins in template:
        said = "The chat template adds it to conversations without a system message."
        return [Finding(SYSTEM_PROMPT, said)]
    said = (
        "The model's authors mean it to begin every conversation, but the chat template does not "
        "add it: give it with `bitquilt run --system`, or as the system message."
    )
    return [Finding(SYSTEM_PROMPT, said)]


def _splits_as_llama(directory: Path) -> bool:
    config = read_json(directory / "config.json")
    version = str(config.get("transformers_version") or "4").partition(".")[0]
    if config.get("model_type") not in _MISTRALS or version not in ("3", "4"):
        return False
    content = read_json(directory / WHOLE)
    first = _first_split(content)
    pattern = first.get("pattern") if first else None
    (wrong,) = SPLITTINGS["llama-bpe"].patterns
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    large = isinstance(vocabulary, dict) and len(vocabulary) > _LEAST_TEKKEN
    return large and isinstance(pattern, dict) and pattern.get("Regex") == wrong


def _first_split(content: dict[str, Any]) -> dict[str, Any] | None:
    """The first step of the splitting, if it is by an expression."""
    node = content.get("pre_tokenizer")
    if isinstance(node, dict) and node.get("type") == "Sequence":
        steps = node.get("pretokenizers")
        node = steps[0] if isinstance(steps, list) and steps else None
    return node if isinstance(node, dict) and node.get("type") == "Split" else None


def _mend(directory: Path, part: Path) -> None:
    content = read_json(directory / WHOLE)
    first = _first_split(content)
    assert first is not None  # it was looked at
    (right,) = SPLITTINGS["tekken"].patterns
    first["pattern"] = {"Regex": right}
    _write_json(part / WHOLE, content)


def _convert(directory: Path, part: Path) -> None:
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    path = directory / TEKKEN
    read_json(path)
    try:
        converted = convert_tekken_tokenizer(str(path))
        stated = converted.chat_template
        converted.chat_template = None
        converted.save_pretrained(part)
    except ImportError as error:
        raise UserError(
            f"{path} has an old format, without a list of control tokens, and transformers needs "
            "mistral-common to convert it; run `pip install mistral-common`, or give a checkpoint "
            "with tokenizer.json"
        ) from error
    except Exception as error:  # it has classes of its own for what it misses
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not a tokenizer that transformers can convert ({reason}); download it again"
        ) from error
    if isinstance(stated, str) and not any((part / name).exists() for name in _TEMPLATES):
        (part / _TEMPLATES[0]).write_text(stated, encoding="utf-8")


_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def _kept(directory: Path, make: Any) -> Path:
    """The directory in the cache, made once of these files."""
    files = sorted({file for kind in _KEPT for file in directory.glob(kind) if file.is_file()})
    name = f"{_digest(files)[:32]}-{HF_CONVERSION}-hf"
    place = tokenizers_to_read() / name
    if not place.exists():
        with atomic_write(place) as part:
            part.mkdir()
            for file in files:
                if file.name not in (TEKKEN, "model.safetensors.index.json"):
                    shutil.copyfile(file, part / file.name)
            make(part)
    return place


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

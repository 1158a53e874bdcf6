"""On what terms a model is passed on: what its card, header and config state, and the texts there.

A Hugging Face model states its licence in the front matter of README.md; a GGUF file does in its
header, and may have a README.md beside it. Nothing is assumed of a model that states nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.licence_files import NOTICE, document_directories, is_licence, terms_files

INHERITED = ("language", "pipeline_tag")
GATE = "extra_gated_"
"""Prefix of the fields that ask visitors something before they get the files."""
RESTRICTED = ("noncommercial", "non-commercial", "cc-by-nc", "research")
"""Licences whose name has one of these forbid commercial use."""
NOTICES = {
    "gemma": (
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms"
    ),
    "llama3": (
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta "
        "Platforms, Inc. All Rights Reserved."
    ),
    **{
        f"llama{version}": (
            f"Llama {version} is licensed under the Llama {version} Community License, Copyright "
            "© Meta Platforms, Inc. All Rights Reserved."
        )
        for version in ("3.1", "3.2", "3.3")
    },
}
"""``license`` → what the licence wants to stand in a text file called Notice."""
HUB = "https://huggingface.co/"
RELATION = "quantized"
"""The hub's word for how a quantized model and the original are related."""
KEYS = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
"""A field of a card → the key of a GGUF header."""
_STATED = tuple(KEYS)
_LANGUAGES = "general.languages"
_MOST_BASES = 100
"""Models that a merge can have been made of."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a model states of its licence, and the files with its text."""

    fields: Mapping[str, Any]
    """Front matter for the card of a copy: the licence, the language, the questions of a gate, and
    ``base_model`` with its relation where it is known."""
    stated_in: str
    """The place that names the licence; empty where none does."""
    texts: Mapping[str, Path]
    """The name of every file that states terms → where it is."""
    searched: str
    """The places that were looked at, for a sentence."""
    problem: str | None = None
    """What cannot be read or contradicts itself, as a sentence."""

    @property
    def stated(self) -> dict[str, Any]:
        """The fields that name the licence; empty where the model names none."""
        return {name: self.fields[name] for name in _STATED if name in self.fields}

    @property
    def name(self) -> str:
        """The licence's name for people; empty where the model names none."""
        return str(self.stated.get("license_name") or self.stated.get("license") or "")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence's name says that commercial use is not allowed."""
        said = f"{self.stated.get('license', '')} {self.stated.get('license_name', '')}".lower()
        return any(word in said for word in RESTRICTED)

    @property
    def notice(self) -> str | None:
        """What the licence wants to be said wherever the model goes."""
        called = (str(name).lower() for name in self.stated.values())
        return next((NOTICES[name] for name in called if name in NOTICES), None)

    @property
    def lacks_text(self) -> bool:
        """Whether the licence is one of few models, and its text is not there."""
        own = (
            self.non_commercial or self.notice is not None or self.stated.get("license") == "other"
        )
        return own and not any(map(is_licence, self.texts))

    @property
    def lacks_agreement(self) -> bool:
        """Whether every copy must come with the licence's text, and it is not there.

        That is what the terms of Gemma (3.1) and Llama (1.b) ask for.
        """
        return self.notice is not None and self.lacks_text

    def documents(self) -> dict[str, bytes]:
        """Read the files that go with every copy: name → content."""
        found = {name: path.read_bytes() for name, path in self.texts.items()}
        if self.notice is None:
            return found
        notices = [name for name in found if name.upper().startswith(NOTICE)]
        if not any(self.notice.encode() in found[name] for name in notices):
            name = next((name for name in notices if name.upper() == NOTICE), NOTICE)
            there = [found[name].rstrip()] if name in found else []
            found[name] = b"\n\n".join([*there, self.notice.encode()]) + b"\n"
        return found


def terms_of(checkpoint: Checkpoint) -> Terms:
    """Read on what terms a model may be passed on; only small files beside it are opened."""
    if checkpoint.gguf_source is not None:
        return _of_gguf(checkpoint, checkpoint.gguf_source)
    return _of_directory(checkpoint, checkpoint.tokenizer_dir)


def _of_directory(checkpoint: Checkpoint, directory: Path | None) -> Terms:
    """Read the terms of a Hugging Face directory; None for a config alone."""
    card, problem = _card([directory] if directory else [])
    config = {name: checkpoint.original_config.get(name) for name in (*_STATED, "license_file")}
    base: Mapping[str, Any] = card
    if checkpoint.hub_id:
        base = {"base_model": checkpoint.hub_id, "base_model_relation": RELATION}
    return _terms(
        checkpoint,
        fields={**config, **card},
        base=base,
        stated_in="README.md" if card.get("license") else "config.json",
        directories=[directory] if directory else [],
        searched="README.md, config.json or LICENSE" + (f" in {directory}" if directory else ""),
        problem=problem,
    )


def _of_gguf(checkpoint: Checkpoint, source: Path) -> Terms:
    """Read the terms of a GGUF file: those in its header, and what is missing there beside it."""
    directories = list(document_directories(source))
    card, problem = _card(directories)
    header = {
        ours: checkpoint.gguf_general.get(key)
        for ours, key in {**KEYS, "language": _LANGUAGES}.items()
    }
    theirs, ours = card.get("license"), header["license"]
    if theirs and ours and str(theirs).lower() != str(ours).lower():
        problem = (
            f"the README.md beside {source} says that its licence is {theirs}, but its header "
            f"says {ours}; correct or remove the README.md"
        )
        card = {}
    return _terms(
        checkpoint,
        fields=card | {name: value for name, value in header.items() if value},
        base=_base_of_gguf(checkpoint, card),
        stated_in=f"the header of {source}" if ours else "README.md",
        directories=directories,
        searched=f"the header of {source}, or in README.md or LICENSE beside it",
        problem=problem,
    )


def _card(directories: Iterable[Path]) -> tuple[dict[str, Any], str | None]:
    """Read the nearest card; one that cannot be read is empty, and the sentence says why."""
    try:
        return next(filter(None, map(card_metadata, directories)), {}), None
    except UserError as error:
        return {}, str(error)


def _terms(
    checkpoint: Checkpoint,
    *,
    fields: dict[str, Any],
    base: Mapping[str, Any],
    stated_in: str,
    directories: list[Path],
    searched: str,
    problem: str | None,
) -> Terms:
    """Put together what was found; a licence that has a text and no name is called other."""
    texts = terms_files(directories, [fields.get("license_file"), fields.get("license_link")])
    if not fields.get("license"):
        licence = next(filter(is_licence, texts), None)
        stated_in = str(texts[licence]) if licence else ""
        fields |= {"license": "other", "license_link": licence} if licence else {}
    link = fields.get("license_link")
    if isinstance(link, str) and "://" not in link and link not in texts and checkpoint.hub_id:
        fields["license_link"] = f"{HUB}{checkpoint.hub_id}/blob/main/{link}"
    inherited = (*_STATED, *INHERITED)
    kept = {n: v for n, v in fields.items() if v and (n in inherited or n.startswith(GATE))}
    told = {name: base[name] for name in ("base_model", "base_model_relation") if base.get(name)}
    return Terms(
        fields=kept | told, stated_in=stated_in, texts=texts, searched=searched, problem=problem
    )


def card_metadata(directory: Path) -> dict[str, Any]:
    """Read the front matter of the directory's README.md; empty where there is none.

    Raises:
        UserError: the front matter is not YAML that the hub would take.
    """
    from huggingface_hub import ModelCard

    card = directory / "README.md"
    if not card.is_file():
        return {}
    try:
        found: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # huggingface_hub and its YAML have no common class
        reason = " ".join(str(error).split())
        raise UserError(
            f"the front matter of {card}, which states the licence, cannot be read ({reason}); "
            "correct it"
        ) from error
    return found


def licence_keys(checkpoint: Checkpoint) -> dict[str, str]:
    """Give the keys of a GGUF header that name the licence; none where a GGUF source has them."""
    if "general.license" in checkpoint.gguf_general:
        return {}
    stated = terms_of(checkpoint).stated
    return {KEYS[name]: value for name, value in stated.items() if isinstance(value, str)}


def base_model_keys(checkpoint: Checkpoint) -> dict[str, str | int]:
    """Give the keys of a GGUF header that say what a file was made from.

    The address of an original that is not known to be on the hub is not made up. Source:
    ``general.base_model`` in the GGUF specification.
    """
    if checkpoint.gguf_source is None:
        base = [checkpoint.hub_id or checkpoint.name]
    elif "general.base_model.count" in checkpoint.gguf_general:
        return {}
    else:
        said = terms_of(checkpoint).fields.get("base_model", [])
        base = [said] if isinstance(said, str) else said
    keys: dict[str, str | int] = {"general.base_model.count": len(base)} if base else {}
    for number, repository in enumerate(base):
        prefix = f"general.base_model.{number}"
        owner, _, name = repository.rpartition("/")
        keys[f"{prefix}.name"] = name
        if owner:
            keys[f"{prefix}.organization"] = owner
            keys[f"{prefix}.repo_url"] = f"{HUB}{repository}"
    return keys


def _base_of_gguf(checkpoint: Checkpoint, card: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a GGUF file was made from, as a card would; empty where nobody says."""
    get = checkpoint.gguf_general.get
    if said := card.get("base_model"):
        relation = card.get("base_model_relation", RELATION)
        return {
            "base_model": said,
            "base_model_relation": relation if relation == RELATION else "",
        }
    sources = (
        get(f"general.source.{key}") for key in ("huggingface.repository", "repo_url", "url")
    )
    original = next(filter(None, map(_hub_id, sources)), None)
    count = range(min(int(get("general.base_model.count", 0)), _MOST_BASES))
    bases = [_hub_id(get(f"general.base_model.{number}.repo_url")) for number in count]
    if known := [one for one in bases if one and not original]:
        return {"base_model": known[0] if len(known) == 1 else known}
    found = original or checkpoint.hub_id
    return {"base_model": found, "base_model_relation": RELATION} if found else {}


def _hub_id(address: object) -> str | None:
    """Give the ``owner/name`` of a repository on the hub; None of any other address."""
    text = address if isinstance(address, str) else ""
    found = re.fullmatch(rf"(?:{re.escape(HUB)})?([\w.-]+/[\w.-]+)/?", text)
    return found[1] if found else None

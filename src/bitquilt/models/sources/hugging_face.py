"""A Hugging Face directory as a checkpoint, and a config without weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitquilt.errors import UserError
from bitquilt.models import canonical, layout
from bitquilt.models.architectures import REWRITES, WRAPPERS
from bitquilt.models.audit import audit, audit_template
from bitquilt.models.canonical import Canonical
from bitquilt.models.chat_template import DEFAULT, default_template, templates_by_name
from bitquilt.models.checkpoint import EMBEDDING, HEAD, Checkpoint, Finding, Vocabulary
from bitquilt.models.fingerprint import checkpoint_fingerprint
from bitquilt.models.generation import read_generation
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.adapter import about_adapter, adapter_error, is_adapter
from bitquilt.models.sources.quantized import QuantizedTensor, joined
from bitquilt.models.sources.tensors import (
    about_quantization,
    bytes_by_type,
    checked,
    rows_to_look_at,
)
from bitquilt.models.sources.tokenizer_files import about_system_prompt, usable_tokenizer
from bitquilt.runtime.files import read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
"""Has one more template in each file, beside the one in a file of its own."""
TEMPLATE_FIELDS = ("tokenizer_config.json", "chat_template.json")
"""Files that have the template in a field."""

TRIMMED = "trimmed.json"
"""Says of a model that `bitquilt trim` made what it was cut from."""
CUT_FROM, CUT_OF, CUT_KEPT = "trimmed from", "of", "kept"
"""Its fields: the name of the original, the rows of its embedding, and the ids that are kept."""

VISION_PARTS = ("vision_tower.", "vision_model.", "multi_modal_projector.")
"""What the names of the tensors of a vision tower begin with."""
_VISION = re.compile(rf"^(model\.)?({'|'.join(map(re.escape, VISION_PARTS))})")
_IGNORED = {
    r"rotary_emb\.inv_freq$": "RoPE frequencies follow from rope_theta",
    r"^(model\.)?audio_tower\.": "only the language model is kept",
    _VISION.pattern: "the language model is kept apart from what sees",
}
"""Stored tensors without a place in the canonical form, and why that loses nothing of the text."""


def open_directory(directory: Path, name: str) -> Checkpoint:
    """Read a directory's config, headers and tokenizer; weights stay on disk.

    Raises:
        UserError: something is missing, damaged, contradictory or not supported.
    """
    original = read_json(directory / "config.json")
    files = safetensors.files(directory)
    if not files:
        return without_weights(directory, name)
    scanned = safetensors.scan(files)
    if is_adapter(scanned):
        raise adapter_error(directory)
    scanned = joined(scanned, original)
    names = canonical.source_names(scanned)
    stored = {names[raw]: (raw, at) for raw, at in scanned.items()}
    form = canonical.canonical(_with_tying(original, stored))
    findings = _account_for_every_tensor(form, stored)
    _compare_shapes(form, stored, original)
    place, converted = usable_tokenizer(directory)
    _require_tokenizer(place)
    trimmed = trimmed_vocabulary(directory)
    template, where = chat_template(place)
    sources = {tensor: stored[o.source][1] for tensor, o in form.origins.items() if o.source}
    nbytes = {t: sources[t].nbytes if t in sources else 0 for t in form.shapes}
    dtypes = {tensor: source.dtype for tensor, source in sources.items()}
    beside = [place / file for file in (*TOKENIZER_FILES, TEMPLATE_FILE)]
    return Checkpoint(
        name=name,
        config=form.config,
        original_config=original,
        shapes=form.shapes,
        reader=_reader(form, stored),
        source_types=bytes_by_type(dtypes, nbytes),
        tokenizer_dir=place,
        chat_template=template,
        named_templates=other_templates(directory),
        generation_config=read_generation(directory),
        findings=(
            *audit(original, form.config, form.shapes),
            *audit_template(template, where),
            *about_system_prompt(directory, template),
            *converted,
            *about_quantization(dtypes),
            *about_adapter(directory),
            *([Finding("vocabulary", str(trimmed))] if trimmed is not None else []),
            *findings,
        ),
        fingerprint=checkpoint_fingerprint(
            form.config, form.shapes, [*files, *(file for file in beside if file.exists())]
        ),
        source_bytes=nbytes,
        tensor_types=dtypes,
        sampler=_sampler(form, stored),
        trimmed=trimmed,
        vision=directory if any(map(_VISION.match, stored)) else None,
    )


def trimmed_vocabulary(directory: Path) -> Vocabulary | None:
    """Read what is left of a vocabulary; None where nothing says that it was trimmed.

    Raises:
        UserError: the file that says it is damaged.
    """
    path = directory / TRIMMED
    if not path.exists():
        return None
    said = read_json(path, "trim the model again")
    original, tokens, kept = (said.get(field) for field in (CUT_FROM, CUT_OF, CUT_KEPT))
    if not (isinstance(original, str) and isinstance(tokens, int) and isinstance(kept, list)):
        raise UserError(f"{path} does not say what the model was cut from; trim the model again")
    return Vocabulary(original, len(kept), tokens)


def without_weights(directory: Path, name: str) -> Checkpoint:
    """What a directory says of a model without its weights: shapes, tokenizer if there is one."""
    described = open_config(read_json(directory / "config.json"), name)
    place, converted = usable_tokenizer(directory)
    if not (place / "tokenizer.json").exists():
        return described
    _require_tokenizer(place)
    template, where = chat_template(place)
    return replace(
        described,
        tokenizer_dir=place,
        chat_template=template,
        named_templates=other_templates(directory),
        generation_config=read_generation(directory),
        findings=(
            *described.findings,
            *audit_template(template, where),
            *about_system_prompt(directory, template),
            *converted,
        ),
    )


def open_config(config: dict[str, Any], name: str) -> Checkpoint:
    """A checkpoint without weights: its shapes follow from the config, its ``load`` raises.

    Raises:
        UserError: the architecture, or one field of it, has no exact canonical form.
    """
    form = canonical.canonical(config)
    dtype = _stated_dtype(config)
    width = {"F32": 4, "BF16": 2, "F16": 2}[dtype]
    nbytes = {
        tensor: width * torch.Size(shape).numel() if form.origins[tensor].source else 0
        for tensor, shape in form.shapes.items()
    }

    def no_weights(tensor: str) -> torch.Tensor:
        raise UserError(
            f"{name} is a config without weights, so {tensor} cannot be read; only plan works on "
            "a config, everything else needs the safetensors files"
        )

    return Checkpoint(
        name=name,
        config=form.config,
        original_config=config,
        shapes=form.shapes,
        reader=no_weights,
        source_types={dtype: sum(nbytes.values())},
        tokenizer_dir=None,
        chat_template=None,
        generation_config={},
        findings=audit(config, form.config, form.shapes),
        fingerprint=checkpoint_fingerprint(form.config, form.shapes, []),
        source_bytes=nbytes,
    )


def chat_template(directory: Path) -> tuple[str | None, str | None]:
    """The chat template and the file that holds it.

    (None, None) for a model without one; (None, file) where what the file holds is not a text.

    A file of its own wins over tokenizer_config.json, as in transformers. Processors of models that
    also see have theirs in chat_template.json, which counts where there is no other.
    """
    alone = directory / TEMPLATE_FILE
    if alone.exists():
        try:
            return alone.read_text(encoding="utf-8"), TEMPLATE_FILE
        except UnicodeDecodeError:
            return None, TEMPLATE_FILE
    stated, name = _stated_template(directory)
    return default_template(stated), name


def other_templates(directory: Path) -> dict[str, str]:
    """The chat templates that a directory has beside the default one: name → source."""
    if (directory / TEMPLATE_FILE).exists():
        files = sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))
        return {file.stem: _read_template(file) for file in files}
    named = templates_by_name(_stated_template(directory)[0])
    return {name: source for name, source in named.items() if name != DEFAULT}


def _read_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; download it again, or remove it") from error


def _stated_template(directory: Path) -> tuple[Any, str | None]:
    """What the first of the fields that states any template holds, and its file."""
    for name in TEMPLATE_FIELDS:
        path = directory / name
        if stated := read_json(path).get("chat_template") if path.exists() else None:
            return stated, name
    return None, None


StoredTensors = dict[str, tuple[str, safetensors.StoredTensor]]
"""Source name without wrapper prefix → (name in the file, where it is)."""


def _reader(form: Canonical, stored: StoredTensors) -> Callable[[str], torch.Tensor]:
    def read(name: str) -> torch.Tensor:
        origin = form.origins[name]
        if origin.source is None:
            return torch.ones(form.shapes[name])
        raw, at = stored[origin.source]
        weights = at.decoded() if isinstance(at, QuantizedTensor) else safetensors.read(raw, at)
        tensor = checked(weights, name, form.shapes[name], at.file)
        return canonical.in_canonical_order(origin, tensor)

    return read


def _sampler(form: Canonical, stored: StoredTensors) -> Callable[[str], torch.Tensor]:
    """Some rows of a matrix as they are stored, whatever else the file's tensor has."""

    def read(name: str) -> torch.Tensor:
        source = form.origins[name].source
        assert source is not None, "only norms are added"
        raw, at = stored[source]
        return _rows(raw, at, rows_to_look_at(at.shape[0]))

    return read


def _rows(raw: str, at: safetensors.StoredTensor, rows: list[int]) -> torch.Tensor:
    """Some rows of a matrix as float32, whatever it is stored as."""
    if isinstance(at, QuantizedTensor):
        return at.decoded()[rows]
    return safetensors.read_rows(raw, at, rows)


def _with_tying(config: dict[str, Any], stored: StoredTensors) -> dict[str, Any]:
    """A wrapper that does not say whether the embedding is the head has one of its own or not."""
    if canonical.states_tying(config) or config.get("model_type") not in WRAPPERS:
        return config
    return {**config, "tie_word_embeddings": f"{HEAD}.weight" not in stored}


def no_head_error() -> UserError:
    """Say of weights without a head what may be the matter."""
    return UserError(
        f"the weights have no {HEAD}.weight, and config.json does not tie it to the embedding: "
        "without a head, as in embedding models, a model predicts no tokens; give a model that "
        "generates text, or set tie_word_embeddings if its head is the embedding"
    )


def _account_for_every_tensor(form: Canonical, stored: StoredTensors) -> list[Finding]:
    """Findings for tensors left out; UserError for missing ones and for ones without a place."""
    wanted = {origin.source for origin in form.origins.values() if origin.source}
    missing = [name for name in wanted if name not in stored]
    if missing == [f"{HEAD}.weight"]:
        raise no_head_error()
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(wanted)} tensors that config.json asks for are not in the "
            f"weights, among them {min(missing)}; download the checkpoint again"
        )
    findings = []
    ignored: dict[str, list[str]] = {}
    for name in stored.keys() - wanted:
        if name == f"{HEAD}.weight" and form.config["tie_word_embeddings"]:
            findings.append(_duplicate_head(stored))
            continue
        because = next((why for kind, why in _IGNORED.items() if re.search(kind, name)), None)
        if because is None and name.endswith(".bias") and not safetensors.read(*stored[name]).any():
            because = "it adds nothing, every number is 0"
        if because is None:
            raise UserError(
                f"{name} ({list(stored[name][1].shape)}) has no place in a "
                f"{form.config['model_type']} model, and leaving it out would change the model; "
                "check model_type in config.json"
            )
        ignored.setdefault(because, []).append(name)
    for because, tensors in sorted(ignored.items()):
        others = f" and {len(tensors) - 1} more like it" if len(tensors) > 1 else ""
        findings.append(Finding(min(tensors), f"Not used{others}: {because}."))
    return findings


def _duplicate_head(stored: StoredTensors) -> Finding:
    """A stored head of a tied model must be the embedding; 64 spread rows decide."""
    head, embedding = stored[f"{HEAD}.weight"], stored[f"{EMBEDDING}.weight"]
    count = min(embedding[1].shape[0], head[1].shape[0])
    rows = [i * count // 64 for i in range(64)]
    same = head[1].shape == embedding[1].shape and torch.equal(
        _rows(*head, rows), _rows(*embedding, rows)
    )
    if not same:
        raise UserError(
            "tie_word_embeddings is true, but lm_head.weight differs from "
            "model.embed_tokens.weight; set it to false in config.json to use the stored head"
        )
    return Finding(
        "lm_head.weight", "Not used: a copy of the embedding, which is tied to the head."
    )


def _compare_shapes(form: Canonical, stored: StoredTensors, original: dict[str, Any]) -> None:
    dims = layout.letters(form.config)
    for name, origin in form.origins.items():
        if origin.source is None:
            continue
        at = stored[origin.source][1]
        expected = form.shapes[name]
        if at.shape == expected:
            continue
        fields = {
            _field(letter, original)
            for i, letter in enumerate(dims[name])
            if i >= len(at.shape) or at.shape[i] != expected[i]
        }
        raise UserError(
            f"{origin.source} is {list(at.shape)} in {at.file.name}, but config.json asks for "
            f"{list(expected)} by {' and '.join(sorted(fields))}; "
            "config and weights are not of the same model: download both again"
        )


def _field(letter: str, original: dict[str, Any]) -> str:
    """The config field that decides a dimension, by the name that the original config uses."""
    rewrite = REWRITES.get(str(original.get("model_type")))
    return (rewrite.fields if rewrite else {}).get(letter) or layout.FIELDS[letter]


def _require_tokenizer(directory: Path) -> None:
    for file in TOKENIZER_FILES:
        if not (directory / file).exists():
            raise UserError(
                f"{directory} has no {file}; copy the tokenizer's files there, or write them with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        read_json(directory / file)  # damage is found here, before any work


def _stated_dtype(config: dict[str, Any]) -> str:
    """The dtype that a config states; checkpoints that state none are in float32."""
    stated = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return {"bfloat16": "BF16", "float16": "F16"}.get(stated.removeprefix("torch."), "F32")

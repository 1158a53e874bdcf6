"""The card of a quantized model: what the hub reads, what people need, only measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from bitquilt.calibration import corpus
from bitquilt.evaluation import results
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.report import ollama
from bitquilt.report.figures import cell, extent
from bitquilt.report.origin import Gate, Origin
from bitquilt.report.plots import environment
from bitquilt.targets import GGUF, MLX

COLUMNS = ("kl", "kl_999", "agreement", "flips", "perplexity_ratio", "bits_per_byte")


@dataclass(frozen=True)
class Model:
    """What is published: files of one original, and where."""

    candidates: Sequence[ModelFile]
    original: Checkpoint
    origin: Origin
    repository: str
    """``user/name`` on the hub."""
    gate: Gate | None
    """``auto`` or ``manual``, where the hub asks something of who wants the original."""

    @cached_property
    def evaluated(self) -> dict[str, dict[str, Any]]:
        """What is known of files, by name: of these bytes, measured against this original."""
        records = {one.name: results.kept(one.path) for one in self.candidates}
        return {
            name: record
            for name, record in records.items()
            if record and record["fingerprint"] == self.original.fingerprint
        }


def card(model: Model) -> str:
    """README.md of the repository."""
    return f"---\n{_metadata(model)}\n---\n\n{_text(model)}"


def modelfiles(model: Model) -> dict[str, str]:
    """Name → content of an Ollama Modelfile for every GGUF file whose template Ollama can have."""
    ggufs = [one for one in model.candidates if one.target is GGUF]
    found = {one.name: ollama.modelfile(model.original, one.name) for one in ggufs}
    only = len(ggufs) == 1
    return {
        "Modelfile" if only else f"Modelfile-{Path(name).stem}": text
        for name, text in found.items()
        if text
    }


def _metadata(model: Model) -> str:
    """The front matter, as YAML."""
    origin, targets = model.origin, _targets(model)
    fields: dict[str, Any] = {**origin.licence, **origin.passed_on}
    if origin.hub_id:
        fields |= {"base_model": origin.hub_id, "base_model_relation": "quantized"}
    fields.setdefault("pipeline_tag", "text-generation")
    data = ModelCardData(
        **fields,
        library_name=targets[0],
        tags=["bitquilt", *targets, "quantized"],
    )
    return data.to_yaml()


def _targets(model: Model) -> list[str]:
    return sorted({candidate.target.name for candidate in model.candidates})


def _text(model: Model) -> str:
    origin, found = model.origin, model.evaluated
    values = {
        "title": model.repository.rpartition("/")[2],
        "base": origin.hub_id,
        "original": origin.name,
        "engines": " and ".join(dict.fromkeys(one.engine for one in model.candidates)),
        "licence": origin.licence_name,
        "non_commercial": origin.non_commercial,
        "gated": bool(model.gate),
        "files": [_file(one, found.get(one.name)) for one in model.candidates],
        "measured": _measured(found),
        "detailed": [_detailed(name, record) for name, record in found.items()],
        "snippets": _snippets(model),
        "commands": _commands(model),
    }
    text: str = environment().get_template("card.md").render(values)
    return text


def _file(candidate: ModelFile, record: Mapping[str, Any] | None) -> dict[str, str]:
    """A row of the table; a file that was not evaluated has no figures, and says so."""
    row = {"name": candidate.name, "bytes": f"{candidate.nbytes:,}"}
    if record is None:
        unknown = dict.fromkeys(("bits", "agreement", "perplexity"), "")
        return {**row, **unknown, "kl": "not measured"}
    measured = record["rows"][0]
    figures = next(iter(measured["figures"].values()))
    cells = {name: _inline(figures[name], name) for name in ("kl", "agreement", "perplexity")}
    return {**row, "bits": f"{measured['bits']:.3f}", **cells}


def _inline(estimate: Mapping[str, float], name: str) -> str:
    read = cell(estimate, name)
    return f"{read['value']} [{read['interval']}]" if read["interval"] else read["value"]


def _measured(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the figures come from, and the noise under them."""
    if not found:
        return "No file was evaluated; `bitquilt eval` does it."
    record = next(iter(found.values()))
    texts: dict[str, list[str]] = {}
    for name, one in found.items():
        texts.setdefault(_read(one), []).append(name)
    read = "; ".join(
        f"{', '.join(names)}: {text}" if len(texts) > 1 else text for text, names in texts.items()
    )
    floors = "; ".join(
        f"{floor['name']} {cell(floor['kl'], 'kl')['value']}" for floor in record["floors"]
    )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"KL(original ‖ file) per token in nats, with 95 % intervals over documents, on {read}. "
        f"With nothing quantized it is {floors}. Measured by `bitquilt eval` with {versions}."
    )


def _read(record: Mapping[str, Any]) -> str:
    """What text the figures of a file are over."""
    count = extent(record)
    if record["text"] == corpus.fingerprint(corpus.bundled("held-out")):
        return f"{count} of bitquilt's held-out text, which it never calibrates on"
    return f"{count} of another text (SHA-256 {record['text'][:12]})"


def _detailed(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    row = record["rows"][0]
    rows = [
        {"domain": domain, "cells": [_inline(figures[key], key) for key in COLUMNS]}
        for domain, figures in row["figures"].items()
    ]
    return {"name": name, "engine": row["engine"], "rows": rows}


def _snippets(model: Model) -> list[dict[str, str]]:
    """How each engine runs it."""
    repository, found = model.repository, []
    for candidate in model.candidates:
        if candidate.target is MLX:
            line = f'mlx_lm.generate --model {repository} --prompt "What is 347 + 585?"'
            found.append({"name": "mlx-lm", "text": line})
        else:
            line = f"llama-cli --hf-repo {repository} --hf-file {candidate.name}"
            found.append({"name": f"llama.cpp, {candidate.name}", "text": line})
    found.append({"name": "LM Studio", "text": f"lms get https://huggingface.co/{repository}"})
    name = repository.rpartition("/")[2].lower()
    for file in modelfiles(model):
        text = f"ollama create {name} -f {file}\nollama run {name}"
        found.append({"name": f"Ollama, in a folder with `{file}` and its GGUF file", "text": text})
    return found


def _commands(model: Model) -> list[str]:
    """What makes files of the same mixes again, from the recipes that are published with them."""
    reference = model.origin.hub_id or model.origin.name
    found = []
    for candidate in model.candidates:
        mlx = candidate.target is MLX
        path = candidate.path
        recipe = path / "recipe.json" if mlx else path.with_suffix(".recipe.json")
        if recipe.is_file():
            asked = f"--recipe {recipe.name} --to {candidate.target}"
            found.append(f"bitquilt quantize {reference} {asked}")
    return found

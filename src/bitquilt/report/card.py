"""The card of a quantized model: what the hub reads, what people need, only measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, ModelCardData

from bitquilt.evaluation.eval_file import load_beside, weights_file
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.evaluation.results import Evaluation
from bitquilt.evaluation.wikitext import WikitextFigures
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.report import ollama
from bitquilt.report.figures import (
    MeasuredFile,
    figure_text,
    kind_label,
    kinds_note,
    lacks_documents,
)
from bitquilt.report.origin import Gate, PublishedOriginal
from bitquilt.report.plots import environment
from bitquilt.report.run_record import OutputRecord, find_record, published_command
from bitquilt.report.vision import VisionTower
from bitquilt.report.wikitext import TOOL_NAMES, confidence_cells, protocol_note, tool_figure
from bitquilt.targets.layout import bits_per_weight

COLUMNS = ("kl", "kl_999", "agreement", "flips", "perplexity_ratio", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to be published: files of one original, and where."""

    files: Sequence[ModelFile]
    """The files."""
    original: Checkpoint
    """The model that they were made from."""
    origin: PublishedOriginal
    """Its terms."""
    repository: str
    """``user/name`` on the hub."""
    towers: Sequence[VisionTower]
    """What their images are seen with."""
    gate: Gate | None
    """``auto`` or ``manual`` where the hub asks visitors something before they get the original."""

    @cached_property
    def weights(self) -> dict[Path, CommitOperationAdd]:
        """The files with weights, made ready to be uploaded, which hashes them: once is enough."""
        paths = [weights_file(one.path) for one in self.files]
        paths += [tower.path for tower in self.towers]
        return {path: CommitOperationAdd(path.name, path) for path in paths}

    def _digest(self, file: ModelFile) -> str:
        return self.weights[weights_file(file.path)].upload_info.sha256.hex()

    @cached_property
    def evaluated(self) -> dict[str, Evaluation]:
        """What is known of files, by name: of these bytes, measured against this original."""
        evaluations = {one.name: load_beside(one.path, self._digest(one)) for one in self.files}
        return {
            name: evaluation
            for name, evaluation in evaluations.items()
            if evaluation and evaluation.fingerprint == self.original.fingerprint
        }

    @cached_property
    def records(self) -> dict[str, OutputRecord]:
        """What the runs noted that made files of this original, by the files' names."""
        records = {
            one.name: find_record(one.path, one.nbytes, self._digest(one)) for one in self.files
        }
        return {
            name: record
            for name, record in records.items()
            if record and record.fingerprint == self.original.fingerprint
        }

    @cached_property
    def figures(self) -> dict[str, MeasuredFile]:
        """What was measured of files, by name: by ``eval``, else at the end of ``quantize``."""
        made = {name: record.figures for name, record in self.records.items()}
        return made | {name: MeasuredFile.of(one) for name, one in self.evaluated.items()}

    @property
    def not_measured(self) -> list[str]:
        """Name the files of which no figures are known."""
        return [one.name for one in self.files if one.name not in self.figures]


def model_card(publication: Publication) -> str:
    """README.md of the repository."""
    return f"---\n{_metadata(publication)}\n---\n\n{_text(publication)}"


def modelfiles(publication: Publication) -> dict[str, str]:
    """Name → content of an Ollama Modelfile for every GGUF file whose template Ollama can have."""
    ggufs = [one for one in publication.files if one.target.ollama_runs]
    found = {one.name: ollama.modelfile(publication.original, one.path) for one in ggufs}
    only = len(ggufs) == 1
    return {
        "Modelfile" if only else f"Modelfile-{Path(name).stem}": text
        for name, text in found.items()
        if text
    }


def _metadata(publication: Publication) -> str:
    """Make the front matter, as YAML."""
    origin, targets = publication.origin, _targets(publication)
    fields = dict(origin.terms.fields)
    task = "image-text-to-text" if publication.towers else "text-generation"
    fields.setdefault("pipeline_tag", task)
    data = ModelCardData(
        **fields,
        library_name=targets[0],
        tags=["bitquilt", *targets, "quantized"],
    )
    return data.to_yaml()


def _targets(publication: Publication) -> list[str]:
    return sorted({file.target.name for file in publication.files})


def _text(publication: Publication) -> str:
    origin, found = publication.origin, publication.evaluated
    made, commands = _commands(publication)
    for_ollama = modelfiles(publication)
    values = {
        "title": publication.repository.rpartition("/")[2],
        "base": origin.hub_id,
        "original": origin.name,
        "source": origin.file,
        "stored_as": origin.stored_as,
        "trimmed": origin.trimmed,
        "engines": " and ".join(dict.fromkeys(one.engine for one in publication.files)),
        "licence": origin.terms.name,
        "non_commercial": origin.terms.non_commercial,
        "notice": origin.terms.notice,
        "documents": sorted(origin.terms.documents()),
        "gated": bool(publication.gate),
        "lead": _lead(publication),
        "tables": _tables(publication),
        "towers": [
            {
                "name": one.path.name,
                "bytes": f"{one.nbytes:,}",
                "stored_as": one.stored_as,
                "read": one.files[0].target.images_are_read,
            }
            for one in publication.towers
        ],
        "blind": publication.original.vision is not None and not publication.towers,
        "wikitext": _wikitext(found),
        "detailed": [_detailed(name, evaluation) for name, evaluation in found.items()],
        "modelfiles": for_ollama,
        "snippets": _snippets(publication, for_ollama),
        "made": made,
        "commands": commands,
    }
    text: str = environment().get_template("card.md").render(values)
    return text


def _tables(publication: Publication) -> list[dict[str, Any]]:
    """Make a table for each text that files were measured on: figures of one text compare."""
    on_text: dict[str, list[ModelFile]] = {}
    for file in publication.files:
        found = publication.figures.get(file.name)
        on_text.setdefault(found.text if found else "", []).append(file)
    return [
        {
            "files": [row for file in files for row in _rows(publication, file)],
            "measured": _measured(publication, files[0].name),
        }
        for files in on_text.values()
    ]


def _rows(publication: Publication, file: ModelFile) -> list[dict[str, str]]:
    """Make the rows of a file, one for each kind of text; where it was not measured, one that has
    no figures, and says so.
    """
    found = publication.figures.get(file.name)
    weights = file.weights
    about = {
        "name": f"`{file.name}`",
        "bytes": f"{file.nbytes:,}",
        "bits": f"{bits_per_weight(file.tensor_bytes, weights):.3f}",
        "bits_on_disk": f"{bits_per_weight(file.nbytes, weights):.3f}",
    }
    if found is None:
        unknown = dict.fromkeys(("text", "agreement", "perplexity", "own_perplexity"), "")
        return [{**about, **unknown, "kl": "not measured"}]
    rows = []
    for kind, figures in found.kinds.items():
        own = figure_text(figures.own_perplexity, "perplexity").value
        cells = {
            name: str(figure_text(getattr(figures, name), name))
            for name in ("kl", "agreement", "perplexity")
        }
        rows.append({**about, "text": kind_label(kind), **cells, "own_perplexity": own})
        about = dict.fromkeys(about, "")
    return rows


def _lead(publication: Publication) -> str:
    """Say how close the closest file is to the original; nothing where none was measured."""
    if not publication.figures:
        return ""
    texts = [found.text for found in publication.figures.values()]
    on_text = max(texts, key=texts.count)
    measured = {n: one for n, one in publication.figures.items() if one.text == on_text}
    closest = min(measured, key=lambda name: measured[name].kl.mean)
    return f"`{closest}` has {measured[closest].told}."


def _measured(publication: Publication, name: str) -> str:
    """Say where a table's figures come from, and how much noise is under them.

    Args:
        publication: what is published.
        name: one of the table's files.
    """
    found = publication.figures.get(name)
    if found is None:
        return "These files were not measured; `bitquilt eval` measures them."
    note = f" {kinds_note(found.kinds)}".rstrip()
    what = "KL(original ‖ file) per token in nats"
    if not found.evaluated:
        intervals = "" if found.lacking else ", with 95 % intervals over documents"
        return (
            f"{what}{intervals}, on {found.text}. Measured by {found.engine} on the weights read "
            f"back from each file when `bitquilt quantize` wrote it.{found.lacking}{note}"
        )
    evaluation = publication.evaluated[name]
    floors = "; ".join(
        f"{figure_text(one.kl, 'kl').value} for {one.name}, on {one.tokens:,} tokens"
        for one in evaluation.floors
    )
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    return (
        f"{what}, with 95 % intervals over documents, on {found.text}. Even without quantization, "
        f"engines differ from the original by {floors}. Measured by `bitquilt eval` with "
        f"{versions}.{note}"
    )


def _detailed(name: str, evaluation: Evaluation) -> dict[str, Any]:
    (found,) = evaluation.files
    rows = [
        {
            "domain": domain,
            "cells": [str(figure_text(getattr(figures, field), field)) for field in COLUMNS],
        }
        for domain, figures in found.figures.items()
    ]
    lacking = lacks_documents(found.figures)
    return {"name": name, "engine": found.engine, "rows": rows, "lacking": lacking}


def _wikitext(evaluated: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Make a table of the figures of llama-perplexity's protocol for each text they are of."""
    on_text: dict[str, dict[str, WikitextFigures]] = {}
    for name, evaluation in evaluated.items():
        if (figures := evaluation.files[0].wikitext) is not None:
            on_text.setdefault(protocol_note(figures), {})[name] = figures
    return [
        {
            "note": note,
            "names": list(TOOL_NAMES.values()),
            "rows": [
                {"name": name, "cells": [tool_figure(figures, field) for field in TOOL_NAMES]}
                for name, figures in files.items()
            ],
            "confidence": [
                {"name": name, "rows": [confidence_cells(one) for one in figures.by_confidence]}
                for name, figures in files.items()
            ],
        }
        for note, files in on_text.items()
    ]


def _snippets(publication: Publication, for_ollama: Mapping[str, str]) -> list[dict[str, str]]:
    """Show how each engine runs the files."""
    repository, found = publication.repository, []
    for file in publication.files:
        target, name = file.target, file.name
        title = target.engine if target.own_repository else f"{target.engine}, {name}"
        found.append({"name": title, "text": target.run_command(repository, name)})
    for tower in publication.towers:
        file, sees = tower.files[0], tower.path.name
        text = file.target.see_command(repository, file.name, sees)
        title = f"{file.target.image_engine}, {file.name} with an image"
        found.append({"name": title, "text": text})
    found.append({"name": "LM Studio", "text": f"lms get https://huggingface.co/{repository}"})
    name = repository.rpartition("/")[2].lower()
    for modelfile in for_ollama:
        text = f"ollama create {name} -f {modelfile}\nollama run {name}"
        found.append(
            {"name": f"Ollama, in a folder with `{modelfile}` and its GGUF file", "text": text}
        )
    return found


def _commands(publication: Publication) -> tuple[list[str], list[str]]:
    """List the commands that make the files again.

    Returns:
        those that made files, where a run's record is beside them; and for the other files those
        that make their mixes again, from the published recipes.
    """
    origin = publication.origin
    reference = origin.file or origin.hub_id or origin.name
    made, again = [], []
    for file in publication.files:
        recipe = file.target.recipe_path(file.path)
        if (record := publication.records.get(file.name)) is not None:
            made.append(published_command(record.command, reference, origin.trimmed))
        elif recipe.is_file():
            asked = f"--recipe {recipe.name} --to {file.target}"
            again.append(f"bitquilt quantize {reference} {asked}")
    return list(dict.fromkeys(made)), again

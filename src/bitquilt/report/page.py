"""One self-contained HTML page about quantized files: no script, no request, readable anywhere."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from bitquilt import __version__
from bitquilt.allocation.history import latest_histories
from bitquilt.allocation.selection import verdict
from bitquilt.evaluation.results import EngineCheck, TextSample
from bitquilt.models.names import kind_of, layer_of
from bitquilt.report import plots
from bitquilt.report.figures import (
    HEADINGS,
    answers_read,
    figure_text,
    kind_label,
    kinds_note,
    lacks_documents,
)
from bitquilt.report.peers import FrontPoint, compared, peers_beside
from bitquilt.report.plots import PARTS, Plot, environment
from bitquilt.report.run_record import OutputRecord, bits_of_type, load
from bitquilt.runtime.extras import require_resvg
from bitquilt.runtime.files import atomic_write, read_json
from bitquilt.runtime.sizes import human
from bitquilt.targets import TARGETS

KIND_FIELDS = ("kl", "agreement", "perplexity")
"""What the first table has of each kind of text."""
PNG_ZOOM = 3
"""Pixels per unit of a plot's view box."""

DARK, LIGHT = "#1f1d1a", "#fff"
RAMP = (
    (2.6, ("#7a2e12", LIGHT), ("#ffb98c", DARK)),
    (3.2, ("#a8480f", LIGHT), ("#e08a52", DARK)),
    (3.8, ("#e0935a", DARK), ("#a3541f", LIGHT)),
    (4.4, ("#f2cfae", DARK), ("#5e3a22", LIGHT)),
    (5.0, ("#d5e2f1", DARK), ("#2d3b4d", LIGHT)),
    (6.0, ("#8db7e6", DARK), ("#305a8a", LIGHT)),
    (7.5, ("#1f5fa8", LIGHT), ("#6fa6e2", DARK)),
    (math.inf, ("#143f70", LIGHT), ("#b3d4f7", DARK)),
)
"""Bits below which a cell has a colour: its own and that of its text, by day and by night."""


@dataclass(frozen=True)
class Report:
    """The page and its plots."""

    html: str
    plots: Sequence[Plot]


def make_report(work_dir: str | Path) -> Report:
    """Gather what a work directory and the evaluations beside its files say.

    Raises:
        UserError: it is not a work directory, or none of its files is left.
    """
    work = Path(work_dir)
    files = load(work)
    settings = read_json(work / "settings.json")
    on_one_text = compared(files)
    points = [*map(FrontPoint.of, on_one_text), *peers_beside(on_one_text)]
    drawn = [plots.pareto_plot(points), plots.parts_plot(files)]
    if (searched := plots.search_plot(latest_histories(work))) is not None:
        drawn.append(searched)
    html = _html(files, on_one_text, points, settings, {plot.name: plot for plot in drawn})
    return Report(html, drawn)


def write_page(report: Report, path: Path) -> None:
    """Put the page at a path, whole or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(report.html, encoding="utf-8")


def write_plots(report: Report, page: Path) -> list[Path]:
    """Put the plots beside a page, as PNG in the colours of the day.

    Raises:
        UserError: resvg, which draws them, is not installed.
    """
    require_resvg()
    from resvg_py import svg_to_bytes

    style = plots.standalone_css()
    paths = []
    for plot in report.plots:
        paths.append(page.with_name(f"{page.stem}-{plot.name}.png"))
        with atomic_write(paths[-1]) as beside:
            beside.write_bytes(svg_to_bytes(plot.svg(style), zoom=PNG_ZOOM))
    return paths


def _html(
    files: Sequence[OutputRecord],
    on_one_text: Sequence[OutputRecord],
    points: Sequence[FrontPoint],
    settings: Mapping[str, Any],
    drawn: Mapping[str, Plot],
) -> str:
    evaluated = [record for record in files if record.evaluation]
    text = on_one_text[0].figures.text
    shown = [*on_one_text, *(record for record in files if record.figures.text != text)]
    closest = {record.name: rank for rank, record in enumerate(_by_kl(on_one_text))}
    values = {
        "name": settings["model"],
        "style": stylesheet(),
        "lead": f"{_lead(files, on_one_text)} {settings.get('vocabulary', '')}".rstrip(),
        "measured_on": _measured_on(shown),
        "texts": _texts(shown),
        "file_names": [record.name for record in files],
        "pareto": drawn["pareto"].svg(),
        "front_notes": _front_notes(files, on_one_text, points),
        "mixes": _mixes(files),
        "parts": drawn["parts"].svg(),
        "search": drawn["search"].svg() if "search" in drawn else "",
        "maps": [
            _map(record)
            for record in sorted(_by_kl(files), key=lambda one: closest.get(one.name, len(closest)))
        ],
        "byte_rows": _byte_rows(files),
        "evaluations": [_evaluation(record) for record in evaluated],
        "asked": " ".join(dict.fromkeys(map(_answers_read, evaluated))),
        "noise": _noise(evaluated),
        "samples": _samples(evaluated),
        "commands": list(dict.fromkeys(record.command for record in files)),
        "facts": _facts(files, settings),
        "version": __version__,
    }
    titles = {
        "files": "Files",
        "size": "Size",
        "map": "Bits",
        "bytes": "Bytes",
        "search": "Search",
        "evaluation": "Evaluation",
        "samples": "Side by side",
        "reproduce": "Reproduce",
    }
    empty = {"search": values["search"], "evaluation": evaluated, "samples": values["samples"]}
    values["sections"] = [(key, title) for key, title in titles.items() if empty.get(key, True)]
    return environment().get_template("page.html").render(values)


def _by_kl(files: Sequence[OutputRecord]) -> list[OutputRecord]:
    return sorted(files, key=lambda record: record.kl.mean)


def stylesheet() -> str:
    """Give the style sheet of the page, plots included."""
    ramp = [{"day": day, "night": night} for _, day, night in RAMP]
    style = environment().get_template("style.css")
    return style.render(ramp=ramp, plot_css=plots.css())


def _lead(files: Sequence[OutputRecord], on_one_text: Sequence[OutputRecord]) -> str:
    """Say which file is the closest to the original, how close it is, and whether that is sure."""
    closest = min(on_one_text, key=lambda record: record.kl.mean)
    kl = closest.figures.told
    if len(files) == 1:
        return f"{closest.name}: {kl}, {human(closest.nbytes)}, {closest.bits:.2f} bits per weight."
    among = "" if len(on_one_text) == len(files) else " of those measured on the same text"
    lead = (
        f"{len(files)} files, from {human(files[0].nbytes)} to {human(files[-1].nbytes)}. The "
        f"closest{among} is {closest.name}: {kl}, {human(closest.nbytes)}."
    )
    rivals = [one.name for one in on_one_text if one is not closest and _overlap(one, closest)]
    if rivals:
        lead += f" {' and '.join(rivals)} may be as close: intervals do not tell them apart."
    return lead


def _overlap(one: OutputRecord, closest: OutputRecord) -> bool:
    """Whether the KL of a file may be as low as that of the closest; without intervals it may."""
    apart: bool = one.kl.low > closest.kl.high
    return not apart


def _front_notes(
    files: Sequence[OutputRecord],
    on_one_text: Sequence[OutputRecord],
    points: Sequence[FrontPoint],
) -> list[str]:
    """Say what the plot of KL against size shows, what it does not, and how to add to it."""
    notes = []
    kinds = on_one_text[0].figures.kinds
    if note := kinds_note(kinds):
        notes.append(f"The plot has the KL {kind_label(next(iter(kinds)))}. {note}")
    if presets := [point.label for point in points if point.is_preset]:
        is_one = "is a preset" if len(presets) == 1 else "are presets"
        notes.append(
            f"{', '.join(presets)} {is_one}: the engine's own choice of types, rounded by bitquilt."
        )
    shown = {point.name for point in points}
    if left_out := [record.name for record in files if record.name not in shown]:
        notes.append(
            f"Not shown, because they were measured on another text: {', '.join(left_out)}."
        )
    if theirs := [point.name for point in points if not point.ours]:
        notes.append(f"Made by others, and measured on the same text: {', '.join(theirs)}.")
        return notes
    names = shlex.join(record.name for record in files)
    original = shlex.quote(shlex.split(files[0].command)[2])
    engines = " or ".join(TARGETS[name].presets for name in dict.fromkeys(r.target for r in files))
    notes.append(
        f"No file that {engines} made at these sizes was measured here. To compare with one, put "
        f"it beside these files, run `bitquilt eval {names} PEER --against {original}` there, and "
        "make this page again."
    )
    return notes


def _mixes(files: Sequence[OutputRecord]) -> list[tuple[str, str]]:
    """Give file → what the mixes of other methods and presets would do at its bytes."""
    ranked = [record for record in files if len(record.rankings) > 1]
    said = [(record.name, verdict(record.rankings)) for record in ranked]
    return [(name, f"{text[0].upper()}{text[1:]}.") for name, text in said]


def _measured_on(files: Sequence[OutputRecord]) -> str:
    """Name the text that the figures of the first table are over, or say that texts differ."""
    read = list(dict.fromkeys(_text_of(record) for record in files))
    if len(read) == 1:
        return f"Measured on {read[0]}.{files[0].figures.lacking}"
    return (
        "The files were not measured on the same text, so compare only figures below the same "
        "heading, or run `bitquilt eval` on all files at once."
    )


def _text_of(record: OutputRecord) -> str:
    """Say what a file was measured on, and where it was not `bitquilt eval`, by what."""
    figures = record.figures
    if figures.evaluated:
        return figures.text
    return f"{figures.text}, when `bitquilt quantize` wrote the file"


def _texts(files: Sequence[OutputRecord]) -> list[dict[str, Any]]:
    """Make the rows of the first table, text by text, each with the original's row."""
    on_text: dict[str, list[OutputRecord]] = {}
    for record in files:
        on_text.setdefault(_text_of(record), []).append(record)
    return [
        {
            "name": name if len(on_text) > 1 else "",
            "own": [
                {
                    "kind": kind_label(kind),
                    "perplexity": figure_text(one.own_perplexity, "perplexity"),
                }
                for kind, one in records[0].figures.kinds.items()
            ],
            "files": [_file(record) for record in records],
        }
        for name, records in on_text.items()
    ]


def _file(record: OutputRecord) -> dict[str, Any]:
    figures = record.figures
    return {
        "name": record.name,
        "size": human(record.nbytes),
        "bits": f"{record.bits:.3f}",
        "bits_on_disk": f"{record.bits_on_disk:.3f} with everything on disk",
        "engine": figures.engine,
        "kinds": [
            {"kind": kind_label(kind)}
            | {name: figure_text(getattr(one, name), name) for name in KIND_FIELDS}
            for kind, one in figures.kinds.items()
        ],
    }


def _map(record: OutputRecord) -> dict[str, Any]:
    """Make a map, layers × kinds of matrix; what is outside the layers is in a sentence."""
    layers: dict[int, dict[str, str]] = {}
    outside = []
    for module in record.allocation:
        layer = layer_of(module)
        if layer is not None:
            layers.setdefault(layer, {})[_short(module)] = module
        else:
            outside.append(
                f"{kind_of(module)}: {record.allocation[module]}, {record.bits_of(module):.3g} bits"
            )
    kinds = list(dict.fromkeys(name for row in layers.values() for name in row))
    rows = [
        {"layer": layer, "cells": [_cell_of(record, row[name]) for name in kinds]}
        for layer, row in sorted(layers.items())
    ]
    return {
        "name": record.name,
        "types": _types_of(record),
        "kinds": kinds,
        "rows": rows,
        "outside": "; ".join(outside),
    }


def _short(module: str) -> str:
    return kind_of(module).removesuffix("_proj")


def _types_of(record: OutputRecord) -> list[dict[str, str]]:
    """List the types of a file, the most frequent first: the map's legend."""
    counts = Counter(record.allocation.values()).most_common()
    bits = {qtype: bits_of_type(qtype) for qtype, _ in counts}
    return [
        {
            "name": qtype,
            "css": _colour(bits[qtype]),
            "text": f"{qtype}: {bits[qtype]:.3g} bits",
            "count": f"{count} × {qtype}",
        }
        for qtype, count in counts
    ]


def _cell_of(record: OutputRecord, module: str) -> dict[str, str]:
    bits, qtype = record.bits_of(module), record.allocation[module]
    return {
        "css": _colour(bits),
        "bits": f"{bits:.3g}",
        "qtype": qtype,
        "said": f"{module}: {qtype}, {bits:.3g} bits per weight",
    }


def _colour(bits: float) -> str:
    """Give the class of a cell with so many bits."""
    return f"b{next(i for i, (below, _, _) in enumerate(RAMP) if bits < below)}"


def _byte_rows(files: Sequence[OutputRecord]) -> list[dict[str, Any]]:
    used = [part for part in PARTS if any(record.breakdown.get(part) for record in files)]
    return [
        {"name": part, "numbers": [f"{record.breakdown.get(part, 0):,}" for record in files]}
        for part in used
    ]


def _answers_read(record: OutputRecord) -> str:
    """Say what the answers are that a file was measured on; nothing where it was on none."""
    found = record.evaluation
    return answers_read(found.own) if found else ""


def _evaluation(record: OutputRecord) -> dict[str, Any]:
    found = record.measured
    assert found is not None
    rows = [
        {
            "label": name,
            "cells": [figure_text(getattr(figures, field), field) for field in HEADINGS],
        }
        for name, figures in found.figures.items()
    ]
    return {
        "name": record.name,
        "engine": found.engine,
        "headings": list(HEADINGS.values()),
        "rows": rows,
        "check": f"{_check_sentence(found.check)} {lacks_documents(found.figures)}".rstrip(),
    }


def _check_sentence(check: EngineCheck) -> str:
    in_engine, in_torch, between = (
        figure_text(kl, "kl").value for kl in (check.in_engine, check.in_torch, check.between)
    )
    return (
        f"On {check.tokens:,} of the tokens, the file's KL is {in_engine} nats/token in the "
        f"engine and {in_torch} in torch with the same weights; the engine's own arithmetic adds "
        f"{between}."
    )


def _noise(evaluated: Sequence[OutputRecord]) -> str:
    """Say what noise is under all figures, from every evaluation."""
    floors = {
        floor.name: f"{figure_text(floor.kl, 'kl').value} nats/token"
        for record in evaluated
        if record.evaluation
        for floor in record.evaluation.floors
    }
    said = ", ".join(f"{value} ({name})" for name, value in floors.items())
    return (
        f"Even without quantization, engines differ from the original by a mean KL of {said}; "
        "anything below that is noise."
    )


def _samples(evaluated: Sequence[OutputRecord]) -> list[dict[str, Any]]:
    """Give the answers of every file that differ from the original's."""
    found = []
    for record in evaluated:
        assert record.measured is not None
        samples = record.measured.samples
        other = [_sample(one) for one in samples if one.original != one.answer]
        if samples:
            same = (
                f"{len(samples) - len(other)} of {len(samples)} answers are the same, word for word"
            )
            found.append({"name": record.name, "same": same, "samples": other})
    return found


def _sample(sample: TextSample) -> dict[str, Any]:
    original, answer = differences(sample.original, sample.answer)
    return {"question": sample.question, "original": original, "answer": answer}


def differences(one: str, other: str) -> tuple[Markup, Markup]:
    """Give both texts as HTML, ``<del>`` around what only the first says, ``<ins>`` the second."""
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (one, other))
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    left, right = Markup(), Markup()
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        said, says = escape("".join(ours[i1:i2])), escape("".join(theirs[j1:j2]))
        if tag == "equal":
            left, right = left + said, right + says
            continue
        left += Markup("<del>{}</del>").format(said) if said else ""
        right += Markup("<ins>{}</ins>").format(says) if says else ""
    return left, right


def _facts(files: Sequence[OutputRecord], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List everything that the figures depend on."""
    windows = settings["windows"]
    facts = [
        ("model", settings["model"]),
        ("fingerprint of the model (its config, shapes and some bytes)", settings["checkpoint"]),
        *([("vocabulary", settings["vocabulary"])] if "vocabulary" in settings else []),
        ("fingerprint of the calibration text", settings["calibration"]),
        (
            "calibration text read",
            f"{windows['calibration']} windows of {windows['window']} tokens, for the inputs of "
            "each matrix, and for how much an error in it changes the output",
        ),
        ("seeds", "as in the commands; 0 if they name none"),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(settings["versions"].items()))),
    ]
    for record in files:
        weights = f"{record.name}/model.safetensors" if record.path.is_dir() else record.name
        facts.append((f"SHA-256 of {weights}", record.sha256))
        if record.evaluation:
            versions = record.evaluation.versions
            facts.append(("fingerprint of the held-out text", record.evaluation.text))
            facts.append(("evaluated with", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return list(dict.fromkeys(facts))

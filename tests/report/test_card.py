"""The card: metadata that the hub reads, the original's terms, and no figure nobody measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from bitquilt.calibration import corpus
from bitquilt.evaluation.eval_file import load_beside, save_beside
from bitquilt.metrics.kl import Estimate
from bitquilt.metrics.teacher import HeldOutFigures
from bitquilt.models import open_checkpoint
from bitquilt.report import publish
from bitquilt.report.card import Publication, model_card
from bitquilt.report.config import PublicationConfig
from bitquilt.report.run_record import save
from bitquilt.runtime.workdir import WorkDir
from bitquilt.targets import GGUF
from tests.factories import tiny_checkpoint
from tests.quick import invoke
from tests.report.conftest import SETTINGS, evaluation, protocol_figures, quantized, record

MATTER = """---
license: {licence}
license_name: fair-noncommercial-research-license
language: [en]
extra_gated_prompt: Do you accept?
extra_gated_fields:
  Affiliation: text
---
# Tiny
"""


@pytest.fixture
def original(tmp_path) -> Path:
    directory = tiny_checkpoint(tmp_path, layers=1)
    (directory / "README.md").write_text(MATTER.format(licence="other"))
    return directory


@pytest.fixture
def files(tmp_path, original) -> list[Path]:
    """Two of them, the first evaluated."""
    paths = [tmp_path / "tiny-4.5bit.gguf", tmp_path / "tiny-3bit.gguf"]
    for path, qtype in zip(paths, ("Q8_0", "Q4_0"), strict=True):
        quantized(original, path, qtype)
    fingerprint = open_checkpoint(original).fingerprint
    save_beside(replace(evaluation(paths[0], 0.0355), fingerprint=fingerprint))
    return paths


def publication(files: list[Path], original: Path, **more: str) -> Publication:
    config = PublicationConfig(against=original, repository="me/tiny-GGUF", **more)
    return publish.publication(files, config)


@pytest.fixture
def text(files, original) -> str:
    return model_card(publication(files, original))


def test_bits_are_told_of_the_tensors_and_of_everything_on_disk(text, files, original):
    assert "| file | bytes on disk | bits per weight | … of everything on disk |" in text
    weights = open_checkpoint(original).weights
    for file in files:
        bits = [nbytes * 8 / weights for nbytes in (GGUF.data_bytes(file), file.stat().st_size)]
        assert f"| {bits[0]:.3f} | {bits[1]:.3f} |" in text


def test_metadata_is_what_the_hub_reads(text):
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "other"
    assert data["license_name"] == "fair-noncommercial-research-license"
    assert data["extra_gated_prompt"] == "Do you accept?"
    assert data["extra_gated_fields"] == {"Affiliation": "text"}
    assert data["library_name"] == "gguf"
    assert data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data  # a directory is not on the hub


def test_non_commercial_terms_are_said_in_words(text):
    assert "for non-commercial use only, like the original" in text
    assert "Like the original it is\ngated." in text


def test_only_measured_figures(text):
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "0.0355 [0.0284 – 0.0426]" in rows["`tiny-4.5bit.gguf`"]
    assert "not measured" in rows["`tiny-3bit.gguf`"]
    assert rows["`tiny-3bit.gguf`"].endswith("| not measured |  |  |  |")
    assert "the original by 3.3e-05 for BF16 in llama.cpp, on 3,042 tokens." in text


def test_figures_of_llama_perplexitys_protocol_have_a_table(files, original, text):
    """A table with the tool's own names, and none where nobody asked for them."""
    assert "Mean KLD" not in text
    known = load_beside(files[0])
    (file,) = known.files
    wikitext = protocol_figures("wiki.test.raw")
    measured = replace(file, path=str(files[0]), wikitext=wikitext)
    save_beside(replace(known, files=[measured]))
    card = model_card(publication(files, original))
    header, rule, row = card[card.index("| file | Mean PPL(Q)") :].splitlines()[:3]
    assert header.count("|") == rule.count("|") == row.count("|")
    assert "| Mean ln(PPL(Q)/PPL(base)) | Mean KLD | Median KLD | 99.9% KLD |" in header
    assert row.startswith("| `tiny-4.5bit.gguf` | 12.500000 ± 0.250000 | ")
    assert "| 0.011000 ± 0.000300 | 0.004000 | 0.250000 |" in row
    assert row.endswith("| 2.100 ± 0.100 % | 94.500 ± 0.200 % |")
    assert "| `tiny-4.5bit.gguf` | 90% – 99% | 1,020 | 0.002000 ± 0.000100 | 99.000% |" in card
    assert "in the way of `llama-perplexity --kl-divergence`, on wiki.test.raw" in card


def test_figures_against_another_original_are_not_used(files, original):
    save_beside(evaluation(files[0], 0.0355))
    text = model_card(publication(files, original))
    assert "0.0355" not in text


def test_what_text_was_read_is_said(files, original):
    """The bundled one is never calibrated on; of another nobody knows."""
    fingerprint = open_checkpoint(original).fingerprint
    bundled = corpus.fingerprint(corpus.bundled("held-out"))
    found = replace(evaluation(files[1], 0.09), fingerprint=fingerprint, text=bundled)
    save_beside(found)
    text = model_card(publication(files, original))
    other, bundled = text.split("## Files")[1].split("## Run it")[0].split("tiny-3bit.gguf")[:2]
    read = (
        "65,774 tokens of 234 documents unlike the calibration text and 65,774 tokens of 234 "
        "documents like the calibration text, of"
    )
    assert f"{read} another text (fingerprint {'e' * 12})" in other
    assert "tiny-4.5bit.gguf" in other
    assert f"{read} bitquilt's held-out text" in bundled


def test_figures_of_other_bytes_are_not_used(files, original):
    quantized(original, files[0], "Q6_K")  # made again, evaluated before
    text = model_card(publication(files, original))
    assert "0.0355" not in text
    assert "These files were not measured; `bitquilt eval` measures them." in text


def made(
    file: Path,
    original: Path,
    folder: Path,
    original_figures: HeldOutFigures | None = None,
    **changed: object,
) -> None:
    """Leave the record of a run that made a file in a work directory."""
    noted = record(file.resolve(), 0.0388)
    noted = replace(noted, original=original_figures or noted.original)
    noted = replace(
        noted,
        nbytes=file.stat().st_size,
        fingerprint=open_checkpoint(original).fingerprint,
        **changed,
    )
    with WorkDir(folder, SETTINGS) as work:
        save(work, noted)


def test_what_quantize_measured_is_on_the_card(files, original, tmp_path, monkeypatch):
    """By the hash of the file: it may have another name, or be elsewhere than its record."""
    _, other = files
    made(other, original, tmp_path / "tiny.work")
    for moved in (other, other.with_name("renamed.gguf"), tmp_path / "far" / "away.gguf"):
        moved.parent.mkdir(exist_ok=True)
        other = other.rename(moved)
        monkeypatch.chdir(tmp_path)
        text = model_card(publication([other], original))
        assert "not measured" not in text
        row, below = text[text.index(f"| `{other.name}`") :].splitlines()[:2]
        assert "| on unlike text | 0.0388 [0.031 – 0.0466] |" in row
        assert row.endswith("| 4.987 |")  # the original's perplexity on that text
        assert below.startswith("|  |  |  |  | on like text | 0.0194 [")
        assert below.endswith("| 6.649 |")
        assert (
            "on 512 tokens of 12 documents unlike the calibration text and 512 tokens of 12 "
            f"documents like the calibration text, of another text (fingerprint {'f' * 12}). "
            "Measured by torch on the "
            "weights read back from each file when `bitquilt quantize` wrote it."
        ) in text


def test_a_card_does_not_speak_of_intervals_that_there_are_not(files, original, tmp_path):
    _, other = files
    folder = tmp_path / "tiny.work"
    made(other, original, folder)
    assert "with 95 % intervals over documents, on" in model_card(publication([other], original))
    noted = record(other, 0.0388)
    few = replace(noted.closing.unlike, kl=Estimate(0.0388, math.nan, math.nan))
    of_few = HeldOutFigures(unlike=few, like=None)
    own = HeldOutFigures(unlike=replace(noted.original.unlike, documents=3), like=None)
    made(other, original, folder, closing=of_few, original_figures=own)
    text = model_card(publication([other], original))
    assert "95 %" not in text
    assert (
        "There are too few documents for an interval (3; at least 5 are needed) unlike the "
        "calibration text."
    ) in text


def test_a_record_of_other_bytes_or_another_original_is_not_used(files, original, tmp_path):
    _, other = files
    made(other, original, tmp_path / "tiny.work", sha256="0" * 64)
    assert "0.0388" not in model_card(publication([other], original))
    made(other, original, tmp_path / "tiny.work")
    assert "0.0388" in model_card(publication([other], original))
    elsewhere = tiny_checkpoint(tmp_path / "elsewhere", layers=1, dtype=torch.bfloat16)
    (elsewhere / "README.md").write_text(MATTER.format(licence="other"))
    assert "0.0388" not in model_card(publication([other], elsewhere))


def test_each_table_has_figures_of_one_text(files, original, tmp_path):
    first, other = files
    made(other, original, tmp_path / "tiny.work")
    text = model_card(publication(files, original))
    tables = text.split("## Files")[1].split("<details>")[0].split("| file |")[1:]
    assert len(tables) == 2
    for table, file, measured in zip(tables, files, ("0.0355", "0.0388"), strict=True):
        assert f"`{file.name}`" in table
        assert measured in table
    assert "4.987" not in tables[0]
    assert first.name not in tables[1]


def test_the_command_of_the_run_is_told_without_places_of_its_machine(files, original, tmp_path):
    first, other = files
    other.with_suffix(".recipe.json").write_text("{}")
    command = f"bitquilt quantize {original} --bits 4.5 --output {tmp_path} --tune --ray ''"
    command = f"{command} --calibration '{tmp_path}/my text.txt' --seed 3"
    made(first, original, tmp_path / "tiny.work", command=command)
    text = model_card(publication(files, original))
    name = publication(files, original).origin.name
    told = f"bitquilt quantize {name} --bits 4.5 --tune --calibration 'my text.txt' --seed 3\n"
    assert told in text
    assert f"bitquilt quantize {name} --recipe tiny-3bit.recipe.json --to gguf\n" in text
    assert str(tmp_path) not in text
    quantized(original, first, "Q4_0")
    assert "--seed 3" not in model_card(publication(files, original))


def test_command_writes_card_and_modelfiles(files, original, tmp_path, capfd):
    out = tmp_path / "out"
    request = ("card", *files, "--against", original, "--repo", "me/tiny-GGUF", "-o", out)
    assert invoke(*request) == 0
    capfd.readouterr()
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "Modelfile-tiny-4.5bit", "Modelfile-tiny-3bit"}
    assert "FROM ./tiny-3bit.gguf" in (out / "Modelfile-tiny-3bit").read_text()


def test_an_original_that_is_quantized_itself_is_told_and_made_from_again(original, tmp_path):
    """Even with the hub id of what it once was: the file is what KL is the distance to."""
    source = quantized(original, tmp_path / "tiny.Q4_0.gguf", "Q4_0")
    file = quantized(source, tmp_path / "tiny-q8.gguf", "Q8_0")
    (tmp_path / "tiny-q8.recipe.json").write_text('{"default": "Q8_0"}')
    text = model_card(publication([file], source, base_model="maker/tiny"))
    assert "`tiny.Q4_0.gguf`, which is quantized to Q4_0 itself: KL is the distance from" in text
    assert "bitquilt quantize tiny.Q4_0.gguf --recipe tiny-q8.recipe.json --to gguf" in text
    plain = model_card(publication([quantized(original, tmp_path / "plain.gguf")], original))
    assert "itself: KL" not in plain


def test_the_first_sentence_has_the_kl_on_both_kinds_of_text(text):
    lead = text.split("## Files")[0]
    assert (
        "`tiny-4.5bit.gguf` has a mean KL of 0.0355 nats per token from the original on text "
        "unlike the calibration text (0.0118 on text like it)."
    ) in lead
    assert (
        "Like text is of the same domains as the calibration text; unlike text is of other "
        "domains." in text
    )

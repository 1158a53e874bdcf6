"""Moments that nothing keeps give the files that kept ones give, and a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bitquilt
from bitquilt.converted import layer_passes
from bitquilt.converted.layer_passes import LayerPasses
from bitquilt.gguf.header import read_header
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.progress import Recorded
from tests.quick import QUICK

TEXT = {name: QUICK[name] for name in ("text_budget", "calibration")}


def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_passes, "KEPT_ON_DISK", 0)


def made_of(directory: Path, output: Path, **options):
    output.mkdir(exist_ok=True)
    settings = {"bits": 5, "engine_check": False, "progress": bitquilt.Silent(), **TEXT, **options}
    (made,) = bitquilt.quantize_base(directory, output=output, **settings)
    return made


@needs_converter
@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma3_text"])  # experts; tied
def test_files_are_as_good_as_with_kept_moments(kind: str, tmp_path: Path, monkeypatch) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    kept = made_of(directory, tmp_path / "kept")
    nothing_is_kept(monkeypatch)
    made = made_of(directory, tmp_path / "passes")
    work = tmp_path / "passes" / f"{kind}.work"
    assert not (work / "moments").exists()
    assert (work / "costs").exists()
    assert made.plan.nbytes == pytest.approx(kept.plan.nbytes, rel=0.01)
    # packed moments are in half precision, so that a few codes differ
    assert made.plan.predicted_kl == pytest.approx(kept.plan.predicted_kl, rel=0.02)
    mean = made.figures.headline.kl.mean
    assert mean == pytest.approx(kept.figures.headline.kl.mean, rel=0.1)
    assert read_header(made.paths[0]).tensors.keys() == read_header(kept.paths[0]).tensors.keys()


@needs_converter
def test_a_run_that_was_stopped_in_the_second_pass_goes_on_there(
    tmp_path: Path, monkeypatch
) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16)
    nothing_is_kept(monkeypatch)
    whole = made_of(directory, tmp_path / "whole")
    used, use = [], LayerPasses._use

    def stopped(self, do, part, statistics) -> None:
        if len(used) == 3:  # two layers estimated, and what is in none; then one is rounded
            use(self, do, part, statistics)
        if len(used) == 4:
            raise KeyboardInterrupt
        used.append(part)
        if len(used) <= 3:
            use(self, do, part, statistics)

    monkeypatch.setattr(LayerPasses, "_use", stopped)
    with pytest.raises(KeyboardInterrupt):
        made_of(directory, tmp_path / "stopped")
    monkeypatch.setattr(LayerPasses, "_use", use)
    said = Recorded()
    again = made_of(directory, tmp_path / "stopped", progress=said)
    assert again.paths[0].read_bytes() == whole.paths[0].read_bytes()
    stages = [line.partition(":")[0] for line in said.lines]
    assert "Reading text and trying types" not in stages
    # and once more: everything is there
    made_of(directory, tmp_path / "stopped", progress=(said := Recorded()))
    stages = [line.partition(":")[0] for line in said.lines]
    assert "Reading text again, and rounding" not in stages


@needs_converter
def test_a_preset_needs_no_estimates(tmp_path: Path, monkeypatch) -> None:
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    kept = made_of(directory, tmp_path / "kept", bits=None, recipe="Q4_0")
    nothing_is_kept(monkeypatch)
    made = made_of(directory, tmp_path / "passes", bits=None, recipe="Q4_0")
    assert made.plan.types == kept.plan.types
    mean = made.figures.headline.kl.mean
    assert mean == pytest.approx(kept.figures.headline.kl.mean, rel=0.1)

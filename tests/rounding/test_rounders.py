"""Two passes over the text against statistics and candidates that are kept."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from bitquilt import qtypes
from bitquilt.calibration import collect
from bitquilt.calibration.collect import collect_statistics
from bitquilt.calibration.statistics import CalibrationStats
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import EMBEDDING, HEAD
from bitquilt.rounding import rounders, row_sample
from bitquilt.rounding.layer_bank import ESTIMATED, POLISHED, ROUNDED, LayerBank
from bitquilt.rounding.round_layers import finish_layers, polish_layers
from bitquilt.rounding.rounders import BankRounder, EstimatingRounder, TwoPassRounder
from bitquilt.rounding.text_readers import ReaderProcesses, TextReaders
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint

TYPES = ["Q4_0", "Q5_0", "IQ4_NL"]
TOKENS = torch.randint(3, 200, (6, 64), generator=torch.Generator().manual_seed(0))
FOLDS = torch.tensor([0, 1, 2, 0, 1, 2])


def two_passes(bank, candidates):
    """The rounder, which has no process beside this one."""
    readers = TextReaders("", bank, ReaderProcesses([]), Silent())
    return TwoPassRounder(bank, TOKENS, FOLDS, candidates, readers, Silent())


class Both:
    """The same tiny model, rounded in both ways."""

    def __init__(self, place, tied):
        self.checkpoint = open_checkpoint(tiny_checkpoint(place, "qwen3", tied=tied))
        self.candidates = dict.fromkeys(self.checkpoint.matrices, TYPES)
        kept, streamed = WorkDir(place / "kept", {}), WorkDir(place / "streamed", {})
        self.kept = LayerBank(self.checkpoint, kept, "full")
        self.streamed = LayerBank(self.checkpoint, streamed, "full")
        collect_statistics(BlockwiseModel(self.checkpoint), TOKENS, FOLDS, kept, Silent())
        BankRounder(self.kept, Silent()).score(self.candidates, "gguf")
        self.rounder = two_passes(self.streamed, self.candidates)
        self.rounder.score(self.candidates, "gguf")

    def cost_of(self, module, bank):
        """What the polished matrix of a bank costs by the kept statistics."""
        statistics = CalibrationStats(self.checkpoint, self.kept.work)
        rounded = qtypes.get("IQ4_NL").dequantize(bank.polished(module, "IQ4_NL"))
        error, hessian = (
            rounded - self.checkpoint.load(f"{module}.weight"),
            statistics.hessian(module),
        )
        return float(statistics.predicted_kl(module, error, hessian).sum())


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def both(request, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "fast_precision", lambda _: "highest")
    monkeypatch.setattr(row_sample, "LEAST_SAMPLED_ROWS", 32)
    monkeypatch.setattr(row_sample, "SHARE", 2)
    return Both(tmp_path, request.param)


def test_a_few_rows_tell_what_candidates_cost(both):
    ratios = []
    for module in both.checkpoint.matrices:
        whole, few = both.kept.scores(module), both.streamed.scores(module)
        assert set(few) == set(TYPES)
        ratios += [math.log(few[name] / whole[name]) for name in TYPES]
        order = sorted(TYPES, key=whole.__getitem__)
        assert few[order[0]] < few[order[-1]]
    ratios = torch.tensor(ratios)
    assert abs(float(ratios.mean())) < 0.05
    assert float(ratios.square().mean().sqrt()) < 0.15


def test_the_first_pass_keeps_no_matrix_and_no_statistics(both):
    folder = both.streamed.work.path
    assert not (folder / ROUNDED).exists()
    assert {file.name for file in (folder / "hessians").iterdir()} == {"head.safetensors"}
    assert not (folder / "weights").exists()
    assert (folder / ESTIMATED).exists()


def test_the_second_pass_makes_what_the_bank_would_have_made(both):
    chosen = {module: ["IQ4_NL"] for module in both.checkpoint.matrices}
    both.rounder.make(chosen, "gguf")
    polish_layers(both.kept, chosen, Silent())
    for module in both.checkpoint.matrices:
        costs = [both.cost_of(module, bank) for bank in (both.kept, both.streamed)]
        assert costs[1] == pytest.approx(costs[0], rel=0.02)
        in_block = module not in (EMBEDDING, HEAD)
        assert ("IQ4_NL" in both.streamed.cells(module, POLISHED)) == in_block


def test_what_files_have_is_forgotten(both):
    chosen = {module: ["IQ4_NL"] for module in both.checkpoint.matrices}
    both.rounder.make(chosen, "gguf")
    folder, scores = both.streamed.work.path, both.streamed.scores(EMBEDDING)
    assert all((folder / name).exists() for name in (ROUNDED, POLISHED))
    both.streamed.forget_matrices()
    assert not any((folder / name).exists() for name in (ROUNDED, POLISHED))
    assert both.streamed.scores(EMBEDDING) == scores


def test_a_mix_is_the_same_where_its_candidates_go_and_where_they_have_gone(both):
    bank, mix = both.kept, dict.fromkeys(both.checkpoint.matrices, "IQ4_NL")
    polish_layers(bank, {module: [name] for module, name in mix.items()}, Silent())
    expected = {cell: bank.polished(*cell) for cell in mix.items()}
    rounder = BankRounder(bank, Silent(), settles=True)
    for _ in range(2):
        rounder.settle([mix], "gguf")
        assert not (bank.work.path / ROUNDED).exists()
        for cell, packed in expected.items():
            there = bank.polished(*cell)
            assert all(torch.equal(part, there[name]) for name, part in packed.items())
        bank.forget_matrices()


def test_from_kept_statistics_as_from_two_passes(both):
    shutil.rmtree(both.kept.work.path / ROUNDED)
    bank = LayerBank(both.checkpoint, both.kept.work, "full")
    rounder = EstimatingRounder(bank, Silent())
    rounder.score(both.candidates, "gguf")
    assert not (both.kept.work.path / ROUNDED).exists()
    chosen = {module: ["IQ4_NL"] for module in both.checkpoint.matrices}
    rounder.make(chosen, "gguf")
    both.rounder.make(chosen, "gguf")
    for module in both.checkpoint.matrices:  # Hessians are packed where they are kept
        assert bank.scores(module) == pytest.approx(both.streamed.scores(module), rel=0.02)
        costs = [both.cost_of(module, one) for one in (bank, both.streamed)]
        assert costs[1] == pytest.approx(costs[0], rel=0.02)


def test_estimates_decide_even_when_matrices_are_there(both):
    before = both.streamed.scores("model.layers.0.mlp.down_proj")
    both.rounder.make({m: ["Q4_0"] for m in both.checkpoint.matrices}, "gguf")
    assert both.streamed.scores("model.layers.0.mlp.down_proj") == before


def test_what_is_there_is_not_read_for_again(both, monkeypatch):
    both.rounder.make(both.candidates, "gguf")

    def fail(*_):
        raise AssertionError("the text is read again")

    monkeypatch.setattr(BlockwiseModel, "run", fail)
    both.rounder.score(both.candidates, "gguf")
    both.rounder.make(both.candidates, "gguf")


def test_an_interrupted_pass_goes_on_to_the_same_bytes(both, monkeypatch, tmp_path):
    shutil.copytree(both.streamed.work.path, tmp_path / "again")
    again = LayerBank(both.checkpoint, WorkDir(tmp_path / "again", {}), "full")
    rounder = two_passes(again, both.candidates)
    chosen, blocks = {module: ["IQ4_NL"] for module in both.checkpoint.matrices}, []

    def interrupted(*arguments):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(finish_layers(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(rounders, "finish_layers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rounder.make(chosen, "gguf")
    rounder.make(chosen, "gguf")
    both.rounder.make(chosen, "gguf")
    for module in chosen:
        for part, tensor in both.streamed.polished(module, "IQ4_NL").items():
            assert torch.equal(again.polished(module, "IQ4_NL")[part], tensor)

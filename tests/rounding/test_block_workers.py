"""Blocks in processes of their own, against the same blocks in this one."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from bitquilt.calibration import collect
from bitquilt.calibration.block_moments import BlockMoments
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.rounding.block_workers import BlockTask, BlockWorkers
from bitquilt.rounding.layer_bank import ESTIMATED, POLISHED, LayerBank
from bitquilt.rounding.rounders import TwoPassRounder
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint

TOKENS = torch.randint(3, 200, (6, 64), generator=torch.Generator().manual_seed(0))
FOLDS = torch.tensor([0, 1, 2, 0, 1, 2])


class Lines(Silent):
    """Keeps what is said of processes."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        if "process" in line:
            self.lines.append(line)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "fast_precision", lambda _: "highest")
    return tiny_checkpoint(tmp_path, "qwen3", tied=True)


def rounded(model, place, devices, progress=None, before=lambda _: None):
    """Round everything on two types, in two passes; return artefacts and their facts by name."""
    checkpoint = open_checkpoint(model)
    bank = LayerBank(checkpoint, WorkDir(place, {}), "full")
    candidates = {module: ["Q4_0", "IQ4_NL"] for module in checkpoint.matrices}
    progress = progress or Silent()
    with BlockWorkers(str(model), bank, devices, progress) as workers:
        before(workers)
        rounder = TwoPassRounder(bank, TOKENS, FOLDS, candidates, workers, progress)
        rounder.score(candidates, "gguf")
        rounder.make(candidates, "gguf")
    names = [
        str(file.relative_to(place).with_suffix(""))
        for folder in (ESTIMATED, POLISHED)
        for file in (place / folder).rglob("*.safetensors")
    ]
    return {name: (arrays(bank.work.load(name)), bank.work.facts(name)) for name in names}


def arrays(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def kill(worker):
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()


def test_processes_make_the_same_bytes(model, tmp_path):
    here = rounded(model, tmp_path / "here", [])
    assert here
    assert rounded(model, tmp_path / "there", ["cpu", "cpu"]) == here


def test_where_one_dies_the_other_does_its_blocks(model, tmp_path):
    here, said = rounded(model, tmp_path / "here", []), Lines()

    def one_dies(workers):
        kill(workers._workers[0])

    assert rounded(model, tmp_path / "there", ["cpu", "cpu"], said, one_dies) == here
    assert said.lines == [
        "The process that rounded block 1 on cpu has ended; the others go on with it"
    ]


def test_where_all_die_this_process_goes_on(model, tmp_path):
    here, said = rounded(model, tmp_path / "here", []), Lines()

    def all_die(workers):
        list(map(kill, workers._workers))

    assert rounded(model, tmp_path / "there", ["cpu"], said, all_die) == here
    assert said.lines == [
        "The process that rounded block 1 on cpu has ended; this process goes on with it"
    ]


def refused(*_):
    raise UserError("this block cannot be rounded")


def test_what_a_block_is_refused_for_is_raised_here(model, tmp_path):
    bank = LayerBank(open_checkpoint(model), WorkDir(tmp_path / "work", {}), "full")
    moments = BlockMoments(layer=0, hessians={}, shares={}, outputs={}, weights={}, diagonals={})
    with BlockWorkers(str(model), bank, ["cpu"], Silent()) as workers:
        assert not workers.do(BlockTask(refused, moments, {}))
        with pytest.raises(UserError, match="this block cannot be rounded"):
            workers.wait()


def test_an_interrupted_run_leaves_no_process(model, tmp_path):
    bank = LayerBank(open_checkpoint(model), WorkDir(tmp_path / "work", {}), "full")
    workers = BlockWorkers(str(model), bank, ["cpu"], Silent())
    processes = [worker._process for worker in workers._workers]

    def interrupted():
        with workers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in processes)
